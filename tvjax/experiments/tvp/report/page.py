"""What is on the page of a TVP run beside its figures."""

import dataclasses
from html import escape

from tvjax.evals.learned import ROUNDING, USABLE
from tvjax.experiments.tvp.report.findings import headline
from tvjax.experiments.tvp.report.gallery import gallery
from tvjax.experiments.tvp.report.members import baseline_label, titles
from tvjax.experiments.tvp.report.reader import TVPRun
from tvjax.experiments.tvp.report.shifts import icl_ratio, oracle_ratio, tvp_ratio
from tvjax.experiments.tvp.report.summary import Condition, Measure, Summary
from tvjax.report.html import box
from tvjax.report.page import Contents
from tvjax.report.reader import Run
from tvjax.report.tables import Cell, Row, Table, measured
from tvjax.report.words import UNLEARNED, number

PROVENANCE = (
    "Task vectors in models trained from scratch, and the TVP-loss, are the work of Yang, Lin, Lee, Papailiopoulos and"
    ' Nowak, "Task Vectors in In-Context Learning: Emergence, Formation, and Benefit" (arXiv 2501.09240, COLM 2025).'
    " Only its abstract, its one-line summary and a review could be read, and no code is public: tvjax is a"
    " re-implementation from the paper's description. The definitions of the risks are ours, and so are the placeholder"
    " z, the layers that are refused, and the thresholds for a usable and a weak vector."
)


def contents(run: Run) -> Contents:
    """The figures, the heading and the other parts of the page of a TVP run."""
    typed = TVPRun.of(run)
    summary = typed.summary
    accuracy = summary.base.accuracy
    above = [
        f'<p class="quiet">{escape(_subtitle(summary))}</p>',
        box(headline(summary)),
        "<h2>Results</h2>",
        _results(summary, summary.base.risk, "risk", summary.risk_unit),
        _results(summary, accuracy, "accuracy", "fraction correct") if accuracy else "",
        f'<p class="quiet">{escape(_method(summary))}</p>',
    ]
    below = [
        _shifts(summary),
        _notes(summary),
        f"<h2>What is the paper's, what is ours</h2><p>{escape(PROVENANCE)}</p>",
    ]
    return Contents(f"{summary.task}: task vectors", above, gallery(typed), below)


def _subtitle(summary: Summary) -> str:
    return (
        f"{len(summary.members)} model{'s' if len(summary.members) > 1 else ''} of {summary.num_layers} layers, layout"
        f" {summary.layout}, K = {summary.base.num_demonstrations} demonstrations, evaluated on"
        f" n = {summary.num_prompts} prompts"
    )


def _method(summary: Summary) -> str:
    written = "in place of" if summary.edit == "replace" else "added to"
    return (
        "ICL risk is that of the prompt's own query after K demonstrations. TVP risk is that of a fresh query, answered"
        f" zero-shot with the vector {written} the layer's own state. The prior answers without any demonstration,"
        f" {_references(summary.base.risk)}. Layer 0 is the embedding, layer l the residual stream after block"
        f" l. Brackets are 90% bootstrap intervals over {summary.num_prompts} prompts; they hold the trained model"
        f" fixed. A vector is called usable when its TVP risk is, with its whole interval, at most {USABLE:g} of the"
        f" prior's, and weak when it is below the prior's. Where the whole interval of ICL risk at K is not below the"
        f" prior's the page says \N{LEFT DOUBLE QUOTATION MARK}{UNLEARNED}\N{RIGHT DOUBLE QUOTATION MARK} and compares"
        " nothing with it. A best layer is named only where TVP risk is below the prior's. Risks below"
        f" {ROUNDING:g} of the prior's are shown as 0: they are the rounding of float32. The best layer"
        " is chosen on the same prompts that it is"
        " measured on, which flatters it a little."
    )


def _references(measure: Measure) -> str:
    """What the references beside the prior do, as the end of its sentence."""
    oracle = "the oracle as well as the demonstrations allow" if measure.oracle else "and this family has no oracle"
    if not measure.baselines:
        return oracle
    return f"{oracle}; baselines are fitted to each prompt's demonstrations and know nothing of the family"


def _results(summary: Summary, measure: Measure, word: str, unit: str) -> str:
    last = summary.base.num_demonstrations
    heads = ("", f"ICL {word}, K = {last}", f"TVP {word}, prescribed layer", f"TVP {word}, best layer", "Zero-shot")
    rows = []
    for index, (member, name, scores) in enumerate(zip(summary.members, titles(summary), measure.scores, strict=True)):
        best = "" if summary.works(index, member.best_layer) else "none works: "
        cells = (
            measured(scores.icl[last]),
            measured(scores.tvp[member.prescribed_layer], f"layer {member.prescribed_layer}: "),
            measured(scores.tvp[member.best_layer], best or f"layer {member.best_layer}: "),
            measured(scores.zero_shot),
        )
        rows.append(Row((Cell(name, f"{member.name}, seed {member.seed}"), *cells)))
    baselines = [(baseline_label(summary, name), entry.icl[last]) for name, entry in measure.baselines.items()]
    for name, entry in (("prior", measure.prior), ("oracle", measure.oracle and measure.oracle[last]), *baselines):
        if entry:
            rows.append(Row((name, measured(entry)), reference=True))
    caption = f"{word.capitalize()}: {unit}, with 90% bootstrap intervals"
    return Table(caption, heads, tuple(rows)).html()


def _shifts(summary: Summary) -> str:
    """The shifts by members, each risk relative to the prior's under the same shift."""
    if not summary.shifts:
        return ""
    groups = (("", 5), *((name, 2) for name in titles(summary)))
    heads = ("Shift", "What changes", "K", "Prior risk", "Oracle", *("ICL", "TVP") * len(summary.members))
    rows = tuple(_shift(summary, condition) for condition in (summary.base, *summary.shifts))
    caption = (
        "Risk divided by the prior's risk under the same shift: ICL after K demonstrations, TVP at the prescribed"
        " layer. Emphasized: the whole 90% interval is below 1, better than the prior."
    )
    return f"<h2>Shifts</h2>\n{Table(caption, heads, rows, groups).html()}"


def _shift(summary: Summary, condition: Condition) -> Row:
    oracle, cells = oracle_ratio(condition), []
    for index, member in enumerate(summary.members):
        for ratio in (icl_ratio(condition, index), tvp_ratio(condition, index, member)):
            good = bool(ratio.high < 1) and summary.learned(index)
            cells.append(dataclasses.replace(measured(ratio), good=good))
    what = "the prompts of training" if condition is summary.base else condition.summary
    known = str(condition.num_demonstrations), number(condition.risk.prior.value)
    against = number(oracle.value) if oracle else "none"
    return Row((condition.name, Cell(what, wrap=True), *known, against, *cells))


def _notes(summary: Summary) -> str:
    items = "".join(f"<li>{escape(note)}</li>" for note in summary.notes)
    return f"<h2>Notes</h2><ul>{items}</ul>" if items else ""
