"""The report of the TVP-loss on text: does it make a vector that works, and what does it do to in-context learning?"""

from collections.abc import Mapping
from html import escape
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from tvjax.errors import UserError
from tvjax.evals.learned import above
from tvjax.report.html import Exhibit, box
from tvjax.report.page import Contents, Page
from tvjax.report.reader import Metrics, Run
from tvjax.report.style import MARKERS, QUIET, bottom_legend, hues, log_axis, log_limits, open_figure, quiet
from tvjax.report.tables import Cell, Head, Row, Table, estimate, of
from tvjax.report.words import SINK

EVIDENCE = "90% bootstrap interval over questions"
OVER_SEEDS = "90% interval over {n} seeds (Student's t)"
MOST = 8
"""The most arms in one figure, in their order; the table has all."""
GROUPS = {"train": "train tasks", "heldout": "held-out tasks"}
KINDS = {
    "zero_shot": "zero-shot",
    "single_vector": "vector of one prompt",
    "vector": "vector of {p} prompts",
    "best_vector": "the same at the layer best on dev",
    "few_shot": "{k}-shot",
}
SHIFTS = {
    "few_shot": "{k}-shot",
    "shuffled_shot": "labels shuffled",
    "template_shot": "another template",
    "more_shot": "twice as many demonstrations",
    "joined_shot": "two inputs in one",
}
MARGIN = 0.05
"""The loss of in-context accuracy that counts as kept, and the gain of accuracy that counts as a gain. [ours]"""
QUESTIONS = {
    "vector": "a vector that is not there without the loss?",
    "half": "does the vector of one prompt reach half of {k}-shot?",
    "icl": "is {k}-shot kept?",
    "shifts": "under every shift?",
}
RULES = (
    "Rules, fixed before the runs: the loss makes a vector (yes) where the 90% interval of what the vector of one"
    " prompt gains over the arm without the loss, at the same layer, is all above 0, and does not (no) where it is all"
    " below 0.05. (If that arm's vectors of one prompt were asked at another layer, its vector of all prompts is taken"
    " there, which is the better one; that was added when the first answers were known.) Half is"
    " reached where the interval of its accuracy less half of that with demonstrations is all above 0, and is not where"
    " it is all below 0. In-context learning is kept where the interval of the difference to the arm without the loss"
    " is all above -0.05, and is not where it is all below 0. Otherwise it is not known."
)
HEADLINES = {"vector": "vector", "few_shot": "in-context learning", "zero_shot": "zero-shot answer"}
SCOPE = (
    "These intervals are over the questions of these tasks, each by itself, for one fine-tuning run a member: another"
    " seed or other tasks, held out or not, may differ by more, and of several comparisons one may be clear by luck."
)
OURS = (
    "The TVP-loss is after Yang et al., Task Vectors in In-Context Learning (2025), who describe it for models trained"
    " from scratch on synthetic tasks; fine-tuning on few-shot prompts of many tasks, and asking tasks that were held"
    " out, is after Min et al., MetaICL (2022); reading the mean state at the last token of few-shot prompts, after"
    " Hendel et al. (2023). To join them is ours: theta is the state at the last token of a query, in the place of the"
    " placeholder z, and is written at the last token of the zero-shot prompt of a fresh pair. So are the tasks and"
    " their split. A small model that is trained for this run has seen all pairs of the train tasks, as a pretrained"
    " one has seen what its words mean, and none of the held-out tasks; fine-tuning sees the train split of the train"
    " tasks alone."
)


def arms_of(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Members of the same settings over their seeds; of a run that knows none, each member."""
    return list(summary["arms"] if "arms" in summary else summary["members"])


def seeds_of(summary: Mapping[str, Any]) -> int:
    """The most seeds that an arm has."""
    return max(len(arm.get("seeds", (0,))) for arm in arms_of(summary))


def evidence(summary: Mapping[str, Any]) -> str:
    """What the intervals are over."""
    seeds = seeds_of(summary)
    return EVIDENCE if seeds == 1 else f"{OVER_SEEDS.format(n=seeds)}; of one seed, over questions"


def setting(member: Mapping[str, Any]) -> str:
    """What a member was fine-tuned on, with its name."""
    if member["tvp_weight"] is None:
        return f"{member['name']}: before fine-tuning"
    extra = f"TVP-loss at layer {member['prescribed_layer']}"
    if member.get("answered_from") == "demonstrations":
        extra = "as many answers more, from demonstrations"
    loss = f" + {member['tvp_weight']:g} \N{MULTIPLICATION SIGN} {extra}"
    return f"{member['name']}: ICL loss" + (loss if member["tvp_weight"] else " only")


def _kinds(summary: Mapping[str, Any]) -> dict[str, str]:
    """What is measured, as readers know it."""
    numbers = {"k": summary["num_demonstrations"], "p": summary["num_prompts"]}
    return {kind: label.format(**numbers) for kind, label in KINDS.items()}


def works(summary: Mapping[str, Any], member: Mapping[str, Any], group: str, kind: str) -> bool:
    """Whether a member's vector or k-shot accuracy is clearly above its own zero-shot accuracy.

    Zero-shot accuracy works if it is clearly above that of the model before fine-tuning.
    """
    bare = arms_of(summary)[0] if kind == "zero_shot" else member
    return above(member["means"][group][f"{kind}_ci"], bare["means"][group]["zero_shot"])


def cautions(summary: Mapping[str, Any]) -> list[str]:
    """The sentences before any comparison: members that are one model, or that do not learn in context. [ours]"""
    sentences = [f"{' and '.join(n)} ended as one model, bit for bit: do not compare them." for n in _twins(summary)]
    if summary.get("query_first"):
        sentences.append(SINK)
    for group, tasks in GROUPS.items():
        arms = arms_of(summary)
        failed = [m["name"] for m in arms if not works(summary, m, group, "few_shot")]
        if failed:
            names = "no model" if len(failed) == len(arms) else ", ".join(failed)
            helps = "learns in context" if names == "no model" else "do not learn in context"
            sentences.append(
                f"On {tasks} {names} {helps}: {summary['num_demonstrations']}-shot accuracy is not clearly above"
                " zero-shot, so that there is nothing that a vector could carry."
            )
    return sentences


def _twins(summary: Mapping[str, Any]) -> list[list[str]]:
    return list(summary.get("identical_members", []))


def headline(summary: Mapping[str, Any]) -> list[str]:
    """What the TVP-loss did, in sentences made from the paired differences, in either direction; failures first.

    Two members that do not work are not compared.
    """
    named = {arm["name"]: arm for arm in arms_of(summary)}
    against = [d for d in summary["differences"] if named[d["minus"]]["tvp_weight"] is not None]
    compared: list[str] = []
    neither: list[str] = []
    for d in against:
        for group, tasks in GROUPS.items():
            for kind, what in HEADLINES.items():
                if not any(works(summary, named[d[which]], group, kind) for which in ("of", "minus")):
                    bare = "that of the model before fine-tuning" if kind == "zero_shot" else "zero-shot"
                    neither.append(
                        f"On {tasks} the {what} of neither {d['of']} nor {d['minus']} is clearly above {bare}."
                    )
                    continue
                one = named[d["of"]]["means"][group][kind]
                other = one - d[group][kind]  # with its vector at the same layer
                low, high = d[group][f"{kind}_ci"]
                verdict = "better" if low > 0 else "worse" if high < 0 else "neither clearly better nor clearly worse"
                compared.append(
                    f"On {tasks} the {what} of {d['of']} is {verdict} than that of {d['minus']}: {one:.2f} against"
                    f" {other:.2f}, a difference of {of(d[group], kind, '+.2f').plain()}."
                )
    first = cautions(summary)
    return (
        [*first, *neither, *compared, scope(summary)]
        if against
        else [*first, "No member differs from another by the TVP-loss alone: the table compares each with the model."]
    )


def scope(summary: Mapping[str, Any]) -> str:
    """What the intervals do not say."""
    seeds = seeds_of(summary)
    if seeds == 1:
        return SCOPE
    return (
        f"These intervals are over {seeds} seeds of fine-tuning on the same tasks and questions: other tasks, held out"
        " or not, or another model may differ by more, and of several comparisons one may be clear by luck."
    )


def verdicts(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What is known of each arm with a TVP-loss, on each group of tasks: yes, no or not known, by `RULES`."""
    arms = {arm["name"]: arm for arm in arms_of(summary)}
    rows = []
    for d in summary["differences"]:
        arm, other = arms[d["of"]], arms[d["minus"]]
        if not arm["tvp_weight"] or other["tvp_weight"] != 0 or "over_half_ci" not in arm["means"]["train"]:
            continue
        for group in GROUPS:
            less, means = d[group], arm["means"][group]
            shifts = [_verdict(less[f"{kind}_ci"], -MARGIN, 0) for kind in SHIFTS if f"{kind}_ci" in less][1:]
            answers = {
                "vector": _verdict(less["single_vector_ci"], 0, MARGIN),
                "half": _verdict(means["over_half_ci"], 0, 0),
                "icl": _verdict(less["few_shot_ci"], -MARGIN, 0),
            }
            if shifts:
                answers["shifts"] = next((v for v in ("no", "not known") if v in shifts), "yes")
            rows.append({"arm": arm["name"], "group": group, **answers})
    return rows


def _verdict(interval: list[float], above_this: float, below_this: float) -> str:
    low, high = interval
    return "yes" if low > above_this else "no" if high < below_this else "not known"


def _about(summary: Mapping[str, Any]) -> str:
    tasks = {group: len(summary["tasks"][group]) for group in GROUPS}
    return (
        f"{summary['model']['path']} ({summary['model']['model_type']}), {summary['num_layers']} layers, fine-tuned for"
        f" {summary['steps']} steps; {tasks['train']} train and {tasks['heldout']} held-out tasks,"
        f" K = {summary['num_demonstrations']}"
    )


def _table(summary: Mapping[str, Any], kinds: Mapping[str, str | Head], caption: str) -> Table:
    """A row an arm or a difference of two, on each group of tasks; a column a kind of answers."""
    rows = []
    for group, tasks in GROUPS.items():
        for arm in arms_of(summary):
            cells = (of(arm["means"][group], kind) for kind in kinds)
            rows.append(Row((Cell(tasks), Cell(setting(arm)), *cells), names=2))
        for d in summary["differences"]:
            name, cells = f"{d['of']} - {d['minus']}", (of(d[group], kind, "+.2f") for kind in kinds)
            rows.append(Row((Cell(tasks), Cell(name), *cells), names=2, reference=True))
    return Table(caption, ("", "", *kinds.values()), tuple(rows))


def lines(summary: Mapping[str, Any]) -> list[str | Table]:
    """The results for the terminal."""
    parts: list[str | Table] = [_about(summary), *cautions(summary), ""]
    parts.append(f"accuracy on the test split, macro average over tasks [{evidence(summary)}; of differences, paired]")
    parts.append(_table(summary, _kinds(summary), ""))
    known = _known(summary)
    if known:
        parts += ["", "what is known, by the rules on the page", known]
    headlines = [text for text in headline(summary) if text not in parts]
    return [*parts, "", *headlines]


def contents(run: Run) -> Contents:
    """What is on the page of a run."""
    summary = run.summary
    tuned = [arm for arm in arms_of(summary) if arm["tvp_weight"] is not None][: MOST - 1]
    metrics = [[_metrics(run, name) for name in arm.get("members", [arm["name"]])] for arm in tuned]
    written = "replaces the state" if summary["edit"] == "replace" else "is added to the state"
    parts = [
        f'<p class="quiet">{escape(_about(summary))}</p>',
        box(headline(summary)),
        "<h2>Results</h2>",
        _verdicts_table(summary),
        _means_table(summary),
        f"<p>A vector is read at the last token of few-shot prompts and {written} at the last token of zero-shot ones,"
        " at the prescribed layer unless another is named. The vector of one prompt is what the loss trains; its"
        f" accuracy is the mean over {summary['num_single']} prompts of each task.</p>",
        _shifts_table(summary),
        _tasks_table(summary),
        f"<h2>What is whose</h2><p>{escape(OURS)}</p>",
    ]
    return Contents(
        "the TVP-loss on text", parts, [_accuracies(summary), _layers(summary), _training(summary, tuned, metrics)]
    )


def _metrics(run: Run, name: str) -> Metrics:
    """The log of a member, which trained beside all others, beside some, or alone."""
    folder = run.path / "parts"
    parts = sorted(f"parts/{path.name}" for path in folder.iterdir()) if folder.is_dir() else [""]
    for part in parts[:-1]:
        try:
            return run.metrics([name], part)[0]
        except UserError:  # of other members
            continue
    return run.metrics([name], parts[-1])[0]


def _means_table(summary: Mapping[str, Any]) -> str:
    caption = (
        "Accuracy (fraction of answers with every token right) on the test split, macro average over tasks, with"
        f" {evidence(summary)}. Differences are paired: on the same questions, seed by seed."
    )
    return _table(summary, _kinds(summary), caption).html()


def _shifts_table(summary: Mapping[str, Any]) -> str:
    """In-context learning on prompts unlike the training prompts."""
    kinds = {kind: label.format(k=summary["num_demonstrations"]) for kind, label in SHIFTS.items()}
    if any(kind not in arms_of(summary)[0]["means"]["train"] for kind in kinds):
        return ""
    caption = f"In-context learning under shifts, of fewer questions than above, with {evidence(summary)}"
    return _table(summary, kinds, caption).html()


def _verdicts_table(summary: Mapping[str, Any]) -> str:
    known = _known(summary)
    return f"{known.html()}<p>{escape(RULES)}</p>" if known else ""


def _known(summary: Mapping[str, Any]) -> Table | None:
    """What is known of each arm, by `RULES`; None if there is nothing to compare."""
    known = verdicts(summary)
    if not known:
        return None
    labels = {arm["name"]: setting(arm) for arm in arms_of(summary)}
    questions = {
        kind: text.format(k=summary["num_demonstrations"]) for kind, text in QUESTIONS.items() if kind in known[0]
    }
    rows = tuple(
        Row((Cell(GROUPS[group]), Cell(labels[row["arm"]]), *(Cell(row[kind]) for kind in questions)), names=2)
        for group in GROUPS
        for row in known
        if row["group"] == group
    )
    return Table("What is known", ("", "", *questions.values()), rows)


def _tasks_table(summary: Mapping[str, Any]) -> str:
    shown = {kind: label for kind, label in _kinds(summary).items() if kind in HEADLINES}
    few = arms_of(summary)[: MOST // 2]
    heads = [f"{member['name']}, {label}" for label in shown.values() for member in few]
    rows = []
    for group, tasks in summary["tasks"].items():
        for task in tasks:
            cells = [
                estimate(member["accuracy"][kind][task], member["accuracy_ci"][kind][task])
                for kind in shown
                for member in few
            ]
            rows.append(Row((Cell(task), Cell(GROUPS[group]), *cells, Cell(str(summary["num_questions"][task])))))
    left = len(arms_of(summary)) - len(few)
    caption = f"Accuracy by task, with {evidence(summary)}" + (f"; {left} more arms in summary.json" if left else "")
    return Table(caption, ("", "", *heads, "questions"), tuple(rows)).html()


def _looks(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """How each member is drawn: grey before fine-tuning."""
    arms = arms_of(summary)[:MOST]
    colors = [QUIET, *hues(len(arms) - 1)]
    return [
        {"color": colors[m], "marker": MARKERS[m % len(MARKERS)], "label": setting(member)}
        for m, member in enumerate(arms)
    ]


def _panels(drawn: Figure) -> list[tuple[str, Axes]]:
    """A panel for each group of tasks, from 0 to 1."""
    axes = drawn.subplots(1, len(GROUPS), sharey=True)
    for ax in axes:
        ax.set_ylim(-0.03, 1.03)
    return list(zip(GROUPS, axes, strict=True))


def _legend(drawn: Figure, looks: list[dict[str, Any]]) -> None:
    bottom_legend(drawn, [Line2D([], [], **look) for look in looks], 3)


def _accuracies(summary: dict[str, Any]) -> Exhibit:
    looks, kinds = _looks(summary), {k: v for k, v in _kinds(summary).items() if k != "best_vector"}

    def draw() -> Figure:
        """A panel a group of tasks, a place a way to ask, a point a member."""
        below = f"accuracy on the test split, macro average over tasks; lines: {evidence(summary)}"
        drawn = open_figure(9.6, 3.4, "What each model answers right", below)
        for group, ax in _panels(drawn):
            for m, (member, look) in enumerate(zip(arms_of(summary)[:MOST], looks, strict=True)):
                x = np.arange(len(kinds)) + min(0.16, 0.7 / len(looks)) * (m - (len(looks) - 1) / 2)
                means = member["means"][group]
                low, high = np.array([means[f"{kind}_ci"] for kind in kinds]).T
                ax.vlines(x, low, high, color=look["color"], linewidth=1.4)
                ax.plot(x, [means[kind] for kind in kinds], linestyle="none", markersize=5.5, **look)
            ax.set_xticks(range(len(kinds)), [label.replace(" of ", "\nof ") for label in kinds.values()])
            quiet(ax, "", "accuracy" if group == "train" else "", GROUPS[group])
            ax.grid(False, axis="x")
        _legend(drawn, looks)
        return drawn

    return Exhibit(
        "accuracies",
        "With and without the TVP-loss",
        "Accuracy zero-shot, with a vector and with demonstrations, of each model, on train and held-out tasks",
        f"Vectors at the prescribed layer. Where the marks of a vector stand near those of {kinds['few_shot']}, one"
        " vector does the work of demonstrations.",
        draw,
    )


def _layers(summary: dict[str, Any]) -> Exhibit:
    looks, layers = _looks(summary), np.array(summary.get("layers", range(summary["num_layers"] + 1)))

    def draw() -> Figure:
        """A panel a group of tasks, a line a member."""
        below = (
            f"vectors of {summary['num_prompts']} prompts, test split; rings: prescribed layers; bands: "
            + evidence(summary)
        )
        drawn = open_figure(9.6, 3.4, "Vectors by the layer at which they are written", below)
        for group, ax in _panels(drawn):
            for member, look in zip(arms_of(summary)[:MOST], looks, strict=True):
                curve, band = (np.array(member["means"][group][f"vector_by_layer{end}"]) for end in ("", "_ci"))
                ax.fill_between(layers, band[:, 0], band[:, 1], color=look["color"], alpha=0.15, linewidth=0)
                ax.plot(layers, curve, markersize=4, linewidth=1.7, **look)
                if member["tvp_weight"]:
                    layer = member["prescribed_layer"]
                    ring = {"color": look["color"], "marker": "o", "markersize": 12, "fillstyle": "none"}
                    ax.plot([layer], curve[layers == layer], linestyle="none", **ring)
            quiet(ax, "layer", "accuracy" if group == "train" else "", GROUPS[group])
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        _legend(drawn, looks)
        return drawn

    return Exhibit(
        "layers",
        "By layer",
        "Accuracy with vectors written at each layer, of each model, on train and held-out tasks",
        "At layer 0 the last token's embedding is the same in every prompt; at the last layer the state that replaces"
        " another is the answer itself, and the query is not read any more.",
        draw,
    )


def _training(summary: dict[str, Any], tuned: list[dict[str, Any]], metrics: list[list[Metrics]]) -> Exhibit:
    looks = _looks(summary)[1:]

    def draw() -> Figure:
        """A row a measure, ICL on the left and TVP on the right."""
        below = "fresh prompts of the pairs that are trained on, at each evaluation; means over prompts and seeds"
        drawn = open_figure(9.6, 4.6, "During fine-tuning", below)
        grid = drawn.subplots(2, 2, sharex=True, sharey="row")
        for row, (word, unit) in zip(grid, (("risk", "nats a token"), ("accuracy", "fraction right")), strict=True):
            values = []
            for ax, kind in zip(row, ("icl", "tvp"), strict=True):
                for members, look in zip(metrics, looks, strict=True):
                    read = [series.get(f"eval_{kind}_{word}") for series in members]
                    steps, scores = read[0][0], np.mean([scores for _, scores in read], 0)
                    ax.plot(steps, scores[:, -1], markersize=4, **look)
                    values.append(scores[:, -1])
                after = f"after {summary['num_demonstrations']} demonstrations"
                where = after if kind == "icl" else "vector of one prompt, at the prescribed layer"
                quiet(ax, "step" if word == "accuracy" else "", f"{word}\n{unit}", f"{kind.upper()} {word}, {where}")
            if word == "risk":
                log_axis(row[0], "y", *log_limits(values))
            else:
                row[0].set_ylim(-0.03, 1.03)
        _legend(drawn, looks)
        return drawn

    return Exhibit(
        "training",
        "Training",
        f"ICL and TVP risk and accuracy during fine-tuning, of {len(tuned)} arms",
        "Both are measured of every member, whatever it is trained on. Step 0 is the model before fine-tuning.",
        draw,
    )


PAGE = Page(lines, contents)
