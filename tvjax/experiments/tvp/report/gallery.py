"""The figures of a run in reading order, each with its heading, its alternative text, and what to look for in it."""

from tvjax.experiments.tvp.report.figures import icl_figure, tvp_figure
from tvjax.experiments.tvp.report.findings import by_setting, robustness
from tvjax.experiments.tvp.report.members import titles
from tvjax.experiments.tvp.report.probes import Probe, probe_figure, probes_shown, rank_figure, rank_text
from tvjax.experiments.tvp.report.progress import heatmap_figure, training_figure
from tvjax.experiments.tvp.report.reader import TVPRun
from tvjax.experiments.tvp.report.shifts import shifts_figure
from tvjax.experiments.tvp.report.vectors import pca_figure
from tvjax.report.html import Exhibit


def gallery(run: TVPRun) -> list[Exhibit]:
    """The figures that `run` has data for."""
    exhibits = [_training(run), _icl(run), _tvp(run)]
    if any(metrics.get("eval_tvp_risk_by_layer")[0].size for metrics in run.metrics):
        exhibits.append(_heatmap(run))
    probes = [member.probes for member in run.summary.members]
    if all(probes):
        exhibits += [_probe(run, probe) for probe in probes_shown(run.summary)]
    if all(one and one.rank for one in probes):
        exhibits.append(_rank(run))
    if run.summary.shifts:
        exhibits.append(_shifts(run))
    return [*exhibits, _pca(run)]


def _who(run: TVPRun) -> str:
    return "; ".join(titles(run.summary))


def _training(run: TVPRun) -> Exhibit:
    return Exhibit(
        "training",
        "Training",
        f"Lines of ICL risk (left) and TVP risk (right) against the training step, log scale, for {_who(run)}.",
        "Left, how well the prompts are answered from their demonstrations; right, how well a fresh query is answered"
        " from the vector alone. A TVP risk at the dashed line means that the vector says nothing of the task.",
        lambda: training_figure(run),
    )


def _icl(run: TVPRun) -> Exhibit:
    last = run.summary.base.num_demonstrations
    reached = by_setting(run.summary, [scores.icl[last].value for scores in run.summary.base.risk.scores])
    return Exhibit(
        "icl_by_demonstrations",
        "In-context learning",
        f"ICL risk by number of demonstrations, beside {' and '.join([*_beside(run), 'the prior'])}."
        f" At K = {last}: {reached}.",
        f"{''.join(_beside(run).values())}At K = {last} the risk is, for {reached}.",
        lambda: icl_figure(run.summary),
    )


def _beside(run: TVPRun) -> dict[str, str]:
    """The curves beside the members', and the purpose of each."""
    meanings = {}
    if run.summary.base.risk.oracle:
        meanings["the oracle"] = (
            "The closer a curve is to the oracle's, the more a model makes of the demonstrations; the oracle knows the"
            " family of tasks but not the task. "
        )
    if run.summary.base.risk.baselines:
        meanings["baselines"] = (
            "Dashed and dotted, methods that are fitted to each prompt's demonstrations alone and know nothing of the"
            " family. "
        )
    return meanings


def _tvp(run: TVPRun) -> Exhibit:
    pairs = zip(run.summary.members, run.summary.base.risk.scores, strict=True)
    best = by_setting(run.summary, [scores.tvp[member.best_layer].value for member, scores in pairs])
    written = "takes the place of z's state in" if run.summary.edit == "replace" else "is added to z's state in"
    return Exhibit(
        "tvp_by_layer",
        "Task vectors by layer",
        f"TVP risk by the layer that is replaced, beside the prior. Lowest of the inner layers: {best}.",
        f"The state of the placeholder z after a whole prompt {written} a zero-shot prompt, one layer at a time."
        f" Below the dashed line the state carries the task. Lowest of the inner layers: {best}.",
        lambda: tvp_figure(run.summary),
    )


def _heatmap(run: TVPRun) -> Exhibit:
    return Exhibit(
        "tvp_by_layer_and_step",
        "When a vector forms",
        f"Heatmaps of TVP risk relative to the prior, layer by training step, one panel each for {_who(run)}.",
        "Each cell is one layer at one evaluation; white is the prior's risk, blue is better. A blue row is a layer"
        " that holds the task, and where it begins is when it came.",
        lambda: heatmap_figure(run),
    )


def _probe(run: TVPRun, probe: Probe) -> Exhibit:
    numbers = probe.text(run.summary)
    return Exhibit(
        probe.stem,
        probe.question,
        f"{probe.question} Lines with bands for {_who(run)}. {numbers}",
        f"{probe.meaning} {numbers}",
        lambda: probe_figure(run.summary, probe),
    )


def _rank(run: TVPRun) -> Exhibit:
    return Exhibit(
        "rank",
        "The map that a vector carries",
        f"Which directions of y = W x the answers with one vector have, for {_who(run)}. {rank_text(run.summary)}",
        "For each prompt a linear map is fitted to the answers that its one vector gives to fresh x', and compared with"
        " W along W's own directions, the strongest first. A single vector is predicted to carry only rank one (Dong et"
        f" al. 2025): 1 in the first direction, 0 in the others. {rank_text(run.summary)}",
        lambda: rank_figure(run.summary),
    )


def _shifts(run: TVPRun) -> Exhibit:
    return Exhibit(
        "shifts",
        "Out of distribution",
        f"Bars of ICL risk and TVP risk relative to the prior under each shift, for {_who(run)}. "
        f"{robustness(run.summary)}",
        "Each risk is divided by that of the prior under the same shift, so that shifts which only rescale the answers"
        f" compare. {robustness(run.summary)} The numbers are in the table below.",
        lambda: shifts_figure(run.summary),
    )


def _pca(run: TVPRun) -> Exhibit:
    return Exhibit(
        "pca",
        "The vectors",
        f"Scatter plots of the task vectors' first two principal components, coloured by the task, for {_who(run)}.",
        "Where colours are sorted along a direction, the vectors' largest variation encodes that parameter. Unsorted"
        " colours don't prove the opposite: the task may lie in smaller components.",
        lambda: pca_figure(run),
    )
