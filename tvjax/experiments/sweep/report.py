"""The report of a sweep: its headline numbers over seeds, a heatmap of two axes, and curves over layers."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from tvjax.evals.learned import ROUNDING, USABLE, standing
from tvjax.report.comparison import headline
from tvjax.report.html import Exhibit, box
from tvjax.report.page import Contents, Page
from tvjax.report.reader import Run
from tvjax.report.results import DURING, OF_LOSS, rows
from tvjax.report.style import MARKERS, PRIOR, bottom_legend, hues, log_axis, log_limits, open_figure, quiet
from tvjax.report.tables import Cell, Row, Table, measured
from tvjax.report.words import Estimate, number

Entry = Mapping[str, Any]
Arm = tuple[tuple[str, Any], ...]
PLACE = ("run", "experiment", "metric", "layer", "index", "shift", "step", "value", "low", "high")
"""What says which number an entry is; the rest says which setting it is of."""
TRAINED = ("tvp_weight", "prescribed_layer")
SOURCE = "base.tvp.answered_from"
NO_LOSS = tuple(f"base.{field}" for field in OF_LOSS)
"""Fields that change nothing where there is no TVP-loss."""
MOST_LINES = 8
MOST_PANELS = 9
LONG = {
    "icl_risk": "ICL risk at K",
    "relative_icl_risk": "ICL risk / ICL loss alone",
    "tvp_risk_by_layer": "TVP risk at l*",
    "icl_accuracy": "ICL accuracy at K",
    "tvp_accuracy_by_layer": "TVP accuracy at l*",
    "zero_shot_risk": "0-shot risk",
    "zero_shot_accuracy": "0-shot accuracy",
    "prior_risk": "prior risk",
    "oracle_risk": "oracle risk at K",
    "prior_accuracy": "prior accuracy",
    "oracle_accuracy": "oracle accuracy at K",
}
"""Metrics, as readers know them."""


def _entries(summary: Entry) -> list[dict[str, Any]]:
    """The numbers over seeds as rows."""
    return rows(Run(Path(), {}, {}, {"numbers": summary["numbers"]}))


def _arm(row: Entry) -> Arm:
    """The setting that a number is of."""
    return tuple((name, value) for name, value in row.items() if name not in PLACE)


def _arms(table: Sequence[Entry]) -> list[Arm]:
    """The settings of members, in order; numbers of no member, such as the prior's, are of another kind."""
    arms = dict.fromkeys(_arm(row) for row in table)
    of_members = [arm for arm in arms if "tvp_weight" in dict(arm)]
    return of_members or list(arms)


def _name(field: str) -> str:
    return field.removeprefix("base.").rpartition(".")[2].replace("_", " ")


def _words(arm: Arm, varying: Sequence[str], left: str = "") -> str:
    """A setting in words, by what differs between settings: ``TVP-loss 0.3 at layer 2, width 32``.

    left: a field that is said elsewhere.
    """
    values, words, unread = dict(arm), [], {*TRAINED, left, SOURCE}
    if not values.get("tvp_weight", 1):
        words.append("ICL loss alone")
        unread |= set(NO_LOSS)
    elif "tvp_weight" in values:
        control = _is_control(arm)
        said = {"tvp_weight": f"{'control' if control else 'TVP-loss'} {values['tvp_weight']:g}"}
        if not control:
            said["prescribed_layer"] = f"layer {values['prescribed_layer']}"
        words.append(" at ".join(text for field, text in said.items() if field != left) or "control")
    words += [f"{_name(field)} {values.get(field)}" for field in varying if field not in unread]
    return ", ".join(words) or "all"


def _is_control(arm: Arm) -> bool:
    """Whether the fresh queries are answered from the demonstrations, by members that differ from others in that."""
    return dict(arm).get(SOURCE) == "demonstrations"


def _with_loss(arms: Sequence[Arm]) -> list[Arm]:
    """The settings with TVP-loss; of runs that have none, the control's, and otherwise all."""
    weighted = [arm for arm in arms if dict(arm).get("tvp_weight", 1)]
    return [arm for arm in weighted if not _is_control(arm)] or weighted or list(arms)


def _varying(arms: Sequence[Arm]) -> dict[str, list[Any]]:
    """The fields in which settings differ, with their values in order; of members with TVP-loss, if there are any."""
    values: dict[str, list[Any]] = {}
    for arm in _with_loss(arms):
        for field, value in arm:
            if value not in values.setdefault(field, []):
                values[field].append(value)
    return {field: inner for field, inner in values.items() if len(inner) > 1}


def _seeds(summary: Entry) -> int:
    return max((len(entry["by_seed"]) for entry in summary["numbers"]), default=1)


def table(summary: Entry) -> Table:
    """A line a setting, a column a headline number: the mean over seeds with its interval."""
    chosen = headline(_entries(summary))
    arms, fields = _arms(chosen), list(_varying(_arms(chosen)))
    of_members = [row for row in chosen if _arm(row) in arms]
    metrics = list(dict.fromkeys(row["metric"] for row in of_members))
    known = [metric for metric in metrics if metric in LONG]
    left, metrics = (len(metrics) - len(known), known) if known else (0, metrics)
    cells = {(_arm(row), row["metric"]): _number(row) for row in of_members}
    lines = [Row((_words(arm, fields), *(cells.get((arm, metric), Cell("")) for metric in metrics))) for arm in arms]
    for row in chosen:
        if _arm(row) not in arms:
            what = ", ".join(f"{_name(name)} {value}" for name, value in _arm(row))
            label = f"{LONG.get(row['metric'], row['metric'])}{f' ({what})' if what else ''}"
            lines.append(Row((label, _number(row)), reference=True))
    heads = ("setting", *(LONG.get(metric, metric) for metric in metrics))
    seeds = _seeds(summary)
    what = (
        f"{seeds} seeds, of risks the geometric mean; 90% intervals of Student's t over them"
        if seeds > 1
        else "one seed, its 90% interval over prompts"
    )
    more = _left_out(left, "numbers")
    return Table(f"Mean over {what}{'.' if more else ''}{more}", heads, tuple(lines))


def _estimate(row: Entry) -> Estimate:
    return Estimate(row["value"], row["low"], row["high"])


def _number(row: Entry) -> Cell:
    """The number with its interval; a risk that is the rounding of an exact answer is 0."""
    least = ROUNDING if row["metric"].endswith("risk") else 0.0
    return measured(_estimate(row).rounded(least))


def lines(summary: Entry) -> list[str | Table]:
    """The results for the terminal."""
    axes = ", ".join(f"{field} ({len(values)})" for field, values in summary["axes"].items())
    members = sum(part["num_members"] for part in summary["populations"])
    return [
        f"sweep of {summary['swept']} over {axes}: {members} members in {len(summary['populations'])} populations",
        *_cautions(summary),
        *_price(summary),
        table(summary),
    ]


def _cautions(summary: Entry) -> list[str]:
    """What comes before any number: settings that have not learned ICL, and that there is one seed."""
    chosen = headline(_entries(summary))
    priors = {frozenset(_arm(row)): row["value"] for row in chosen if row["metric"] == "prior_risk"}
    icl = {_arm(row): row["high"] for row in chosen if row["metric"] == "icl_risk"}
    failed = [
        _words(arm, list(_varying(list(icl))))
        for arm, high in icl.items()
        for setting, prior in priors.items()
        if setting <= set(arm) and standing(high / prior) != "good"
    ]
    sentences = []
    if failed:
        which = f" ({'; '.join(failed)})" if len(failed) < len(icl) else ""
        sentences.append(
            f"ICL was not learned in {len(failed)} of {len(icl)} settings{which}: the interval of its risk reaches"
            f" above {USABLE:g} of the prior's. Of these nothing can be said of vectors, and nothing compared."
        )
    if _seeds(summary) == 1:
        sentences.append("One seed: another seed would give other numbers; --sweep.population.seed=0:4.")
    return sentences


def _price(summary: Entry) -> list[str]:
    """What a vector that is usable costs in ICL risk, at the least; nothing if no setting has the ratio."""
    chosen = headline(_entries(summary))
    ratios = {_arm(row): row for row in chosen if row["metric"] == "relative_icl_risk"}
    vectors = {_arm(row): row["high"] for row in chosen if row["metric"] == "tvp_risk_by_layer"}
    priors = [(_arm(row), row["value"]) for row in chosen if row["metric"] == "prior_risk"]
    asked = [arm for arm in _with_loss(list(ratios)) if arm in vectors]
    usable = [
        arm
        for arm in asked
        if all(standing(vectors[arm] / prior) == "good" for setting, prior in priors if set(setting) <= set(arm))
    ]
    if not asked:
        return []
    least = min(usable, key=lambda arm: float(ratios[arm]["value"]), default=None)
    sentence = f"The vector is usable at l* in {len(usable)} of {len(asked)} settings with TVP-loss"
    if least is None:
        return [f"{sentence}."]
    cost = ratios[least]
    ends = f"[{number(cost['low'])}, {number(cost['high'])}]"
    words = _words(least, list(_varying(asked)))
    chosen_here = "; it was chosen for that among these seeds, so that others may show more" if len(asked) > 1 else ""
    return [
        f"{sentence}. Of these, {words} has the least ICL risk, {number(cost['value'])} {ends} times that of the ICL"
        f" loss alone{chosen_here}."
    ]


def _panels(arms: Sequence[Arm], varying: Mapping[str, Sequence[Any]], apart: Sequence[str]) -> list[Arm]:
    """The combinations of the varying fields that are no axis of a panel."""
    rest = [field for field in varying if field not in apart]
    return list(dict.fromkeys(tuple((name, value) for name, value in arm if name in rest) for arm in arms))


def _tradeoff(summary: Entry) -> list[Exhibit]:
    """What a vector costs: TVP risk at l* against ICL risk over that of the ICL loss alone, a mark a setting."""
    chosen = headline(_entries(summary))
    price = {_arm(row): row for row in chosen if row["metric"] == "relative_icl_risk"}
    risk = {_arm(row): row for row in chosen if row["metric"] == "tvp_risk_by_layer"}
    arms = [arm for arm in price if arm in risk]
    priors = [row["value"] for row in chosen if row["metric"] == "prior_risk"]
    if len(arms) < 2 or len(priors) != 1:
        return []
    varying = list(_varying(arms))
    fields = [field for field in varying if field not in TRAINED]
    layers = sorted({dict(arm)["prescribed_layer"] for arm in arms})
    weights = sorted({dict(arm)["tvp_weight"] for arm in arms})
    kinds = list(dict.fromkeys(_kind(arm, fields) for arm in arms))
    colors = dict(zip(kinds, hues(len(kinds)), strict=True))

    def draw() -> Figure:
        """One panel: colours are schedules and the like, marks are layers, sizes are weights."""
        below = "means over seeds with 90% intervals; larger marks: larger weights of the TVP-loss"
        drawn = open_figure(7.6, 5.0, "What a vector costs in-context learning", below)
        ax = drawn.subplots()
        for arm in arms:
            values, color = dict(arm), colors[_kind(arm, fields)]
            x, y = risk[arm], price[arm]
            ax.hlines(y["value"], x["low"], x["high"], color=color, alpha=0.35, linewidth=1)
            ax.vlines(x["value"], y["low"], y["high"], color=color, alpha=0.35, linewidth=1)
            marker = "x" if _is_control(arm) else MARKERS[layers.index(values["prescribed_layer"]) % len(MARKERS)]
            size = 4 + 2 * weights.index(values["tvp_weight"])
            ax.plot(x["value"], y["value"], marker, color=color, markersize=size, alpha=0.85)
        log_axis(ax, "x", *log_limits([np.array([row["value"] for row in (*risk.values(),)] + priors)]))
        log_axis(ax, "y", *log_limits([np.array([row["value"] for row in price.values()] + [1.0])]))
        ax.axvline(USABLE * priors[0], **PRIOR)
        ax.axhline(1, **PRIOR)
        quiet(ax, LONG["tvp_risk_by_layer"], LONG["relative_icl_risk"])
        keys = [Line2D([], [], color=color, linewidth=3, label=kind) for kind, color in colors.items()]
        plain: dict[str, Any] = {"color": "#5c5c5c", "linestyle": "none"}
        if any(not _is_control(arm) for arm in arms):
            keys += [
                Line2D([], [], marker=MARKERS[i % len(MARKERS)], label=f"layer {layer}", **plain)
                for i, layer in enumerate(layers)
            ]
        lines = f"left of the line: usable, at most {USABLE:g} of the prior's; below the other: better ICL than without"
        bottom_legend(drawn, [*keys, Line2D([], [], label=lines, **PRIOR)])
        return drawn

    alt = "; ".join(
        f"{_words(arm, varying)}: TVP risk {number(risk[arm]['value'])}, ICL {number(price[arm]['value'])} times"
        for arm in arms
    )
    caption = (
        "The best place is at the lower left: a vector that works, and in-context learning as good as without the"
        " TVP-loss. Ratios are taken seed by seed, on the same prompts."
    )
    return [Exhibit("price", "What a vector costs", alt, caption, draw)]


def _kind(arm: Arm, fields: Sequence[str]) -> str:
    """What a mark is coloured by: the control, or the fields beside weight and layer."""
    if _is_control(arm):
        return "control: the same queries, no vector"
    values = dict(arm)
    return ", ".join(f"{_name(field)} {values.get(field)}" for field in fields) or "TVP-loss"


def _heatmap(summary: Entry) -> list[Exhibit]:
    """For each headline number of members: colour and text over the two axes with the most values."""
    chosen = headline(_entries(summary))
    arms, varying = _arms(chosen), _varying(_arms(chosen))
    if len(varying) < 2:
        return []
    down, across = sorted(varying, key=lambda field: -len(varying[field]))[:2]
    metrics = [
        m for m in dict.fromkeys(row["metric"] for row in chosen if _arm(row) in arms) if not m.startswith("zero")
    ]
    trained = _with_loss(arms)
    every = _panels(trained, varying, (down, across))
    panels = every[:MOST_PANELS]
    values = {(_arm(row), row["metric"]): row["value"] for row in chosen}

    def grid(metric: str, panel: Arm) -> np.ndarray:
        cells = np.full((len(varying[down]), len(varying[across])), np.nan)
        for arm in trained:
            if set(panel) <= set(arm) and (arm, metric) in values:
                of = dict(arm)
                cells[varying[down].index(of[down]), varying[across].index(of[across])] = values[arm, metric]
        return cells

    def draw() -> Figure:
        """A row of panels a metric."""
        size = (len(panels), len(metrics))
        height = size[0] * (0.9 + 0.33 * len(varying[down]))
        title = f"{_name(down)} {chr(215)} {_name(across)}"
        drawn = open_figure(max(4.5, 4.2 * size[1]), height + 0.4, title, "mean over seeds")
        axes = drawn.subplots(*size, squeeze=False)
        for column, metric in enumerate(metrics):
            grids = [grid(metric, panel) for panel in panels]
            known = np.concatenate([g[np.isfinite(g)] for g in grids])
            norm = LogNorm(known.min(), known.max()) if known.min() > 0 else Normalize(known.min(), known.max())
            for line, (panel, cells) in enumerate(zip(panels, grids, strict=True)):
                ax = axes[line, column]
                ax.imshow(np.ma.masked_invalid(cells), norm=norm, cmap="YlGnBu", aspect="auto")
                for i, j in itertools.product(*map(range, cells.shape)):
                    if np.isfinite(cells[i, j]):
                        dark = norm(cells[i, j]) > 0.6
                        ax.text(
                            j, i, number(cells[i, j]), ha="center", va="center", fontsize=8, color="w" if dark else "k"
                        )
                about = ", ".join(f"{_name(name)} {value}" for name, value in panel)
                quiet(ax, _name(across), _name(down), f"{LONG.get(metric, metric)}{f', {about}' if about else ''}")
                ax.grid(False)
                ax.set_xticks(range(cells.shape[1]), map(str, varying[across]))
                ax.set_yticks(range(cells.shape[0]), map(str, varying[down]))
        return drawn

    alt = "; ".join(
        f"{LONG.get(metric, metric)}, {_words(arm, list(varying))}: {number(values[arm, metric])}"
        for metric in metrics
        for arm in trained
        if (arm, metric) in values
    )
    caption = (
        "Each cell is the mean over seeds of one setting; the table has the intervals, and the ICL loss alone, for"
        " which no layer is prescribed." + _left_out(len(every) - len(panels), "panels")
    )
    return [Exhibit("heatmap", f"By {_name(down)} and {_name(across)}", alt, caption, draw)]


def _curves(summary: Entry) -> list[Exhibit]:
    """A figure a by-layer metric, and one of each that was followed during training."""
    numbers = [row for row in _entries(summary) if "shift" not in row]
    prior = [row["value"] for row in numbers if row["metric"] == "prior_risk"]
    by_layer = [row for row in numbers if "layer" in row]
    by_step = [
        {**curve, "step": step, "value": value, "low": ends and ends[0], "high": ends and ends[1]}
        for curve in summary.get(DURING, [])
        for step, value, ends in zip(curve["step"], curve["value"], curve["value_ci"], strict=True)
    ]
    return [
        _curve([row for row in table if row["metric"] == metric], axis, prior if "risk" in metric else [])
        for axis, table in (("layer", by_layer), ("step", [_without_ends(row) for row in by_step]))
        for metric in dict.fromkeys(row["metric"] for row in table)
    ]


def _without_ends(row: Entry) -> Entry:
    return {name: value for name, value in row.items() if name != "value_ci"}


CAPTIONS = {
    "layer": "Along the layers whose state the vector replaces. Shades are 90% intervals over seeds.",
    "step": "At each evaluation during training, of vectors at the prescribed layer. Shades are 90% intervals over"
    " seeds. Curves that still fall at the end say that the numbers above are not of trained models.",
}


def _curve(table: Sequence[Entry], axis: str, prior: Sequence[float]) -> Exhibit:
    """A metric along an axis: a line a setting, at most eight a panel, panels by the field with the most values.

    prior: the prior's risks, drawn if there is one.
    """
    metric = table[0]["metric"]
    arms = _arms(table)
    varying = _varying(arms)
    first = next(iter(sorted(varying, key=lambda field: -len(varying[field]))), "")
    whole = len(arms) <= MOST_LINES
    every: list[Any] = [None] if whole else varying[first]
    keys = every[:MOST_PANELS]
    what = metric.removesuffix("_by_layer").replace("tvp", "TVP").replace("icl", "ICL").replace("_", " ")
    prior = prior if len(prior) == 1 else []
    where = "by layer" if axis == "layer" else "during training"
    # Without TVP-loss there is neither weight, layer nor schedule: it is in each panel of these, and else in its own.
    unread = {"ICL": {*TRAINED, *NO_LOSS}, "control": {"prescribed_layer"}}
    always = [
        arm
        for arm in arms
        if (not dict(arm).get("tvp_weight", 1) and first in unread["ICL"])
        or (_is_control(arm) and first in unread["control"])
    ]

    def inside(key: Any) -> list[Arm]:
        if key is None:
            return arms
        return [*always, *(a for a in arms if dict(a).get(first) == key and a not in always)]

    fewer = sum(max(0, len(inside(key)) - MOST_LINES) for key in keys)

    def draw() -> Figure:
        """Means with intervals."""
        columns = min(3, len(keys))
        height = -(-len(keys) // columns)
        drawn = open_figure(
            max(6.5, 3.6 * columns),
            2.7 * height + 0.8,
            f"{what} {where}",
            "mean (of risks geometric) and 90% interval over seeds",
        )
        axes = drawn.subplots(height, columns, squeeze=False, sharey=True).ravel()
        for ax in axes[len(keys) :]:
            ax.set_visible(False)
        shown = {key: inside(key)[:MOST_LINES] for key in keys}
        texts = dict.fromkeys(
            _words(arm, list(varying), first if key is not None else "") for key, arms in shown.items() for arm in arms
        )
        colors = dict(zip(texts, hues(len(texts)), strict=True))
        styles: dict[str, Line2D] = {}
        for ax, key in zip(axes, keys, strict=False):
            for arm in shown[key]:
                text = _words(arm, list(varying), first if key is not None else "")
                entries = sorted((row for row in table if _arm(row) == arm), key=lambda row: row[axis])
                color, marker = colors[text], MARKERS[list(colors).index(text) % len(MARKERS)]
                at, mean = [row[axis] for row in entries], [row["value"] for row in entries]
                ax.plot(at, mean, color=color, marker=marker, markersize=4, linewidth=1.4)
                if all(row["low"] is not None for row in entries):
                    low, high = ([row[end] for row in entries] for end in ("low", "high"))
                    ax.fill_between(at, low, high, color=color, alpha=0.15, linewidth=0)
                styles.setdefault(text, Line2D([], [], color=color, marker=marker, label=text))
            quiet(ax, axis, what, "" if key is None else f"{_name(first)} {key}")
            if axis == "layer":
                ax.set_xticks(range(1 + max(row["layer"] for row in table)))
            if "risk" in metric:
                drawn_at = [row[end] for row in table for end in ("value", "low", "high") if row[end] is not None]
                log_axis(ax, "y", *log_limits([np.array([*drawn_at, *prior])]))
            for value in prior:
                ax.axhline(value, **PRIOR)
        keys_below = list(styles.values()) + [Line2D([], [], label="prior", **PRIOR) for _ in prior]
        bottom_legend(drawn, keys_below)
        return drawn

    alt = "; ".join(
        f"{_words(arm, list(varying))}: " + ", ".join(number(row["value"]) for row in table if _arm(row) == arm)
        for arm in arms[:MOST_LINES]
    )
    caption = CAPTIONS[axis] + _left_out(len(every) - len(keys), "panels") + _left_out(fewer, "lines")
    stem = metric.removeprefix("tvp_risk_") if axis == "layer" else f"training_{metric.removesuffix('_by_layer')}"
    return Exhibit(stem, f"{what} {where}", alt, caption, draw)


def _left_out(count: int, what: str) -> str:
    """The sentence on what a figure has no room for; "" if it has all."""
    return f" {count} more {what} are left out here; eval/summary.json has all numbers." if count else ""


def _shifts(summary: Entry) -> list[str]:
    """A table a metric: a line a shift, a column a setting."""
    under = [row for row in _entries(summary) if "shift" in row]
    if not under:
        return []
    arms = _arms(under)
    fields = list(_varying(arms))
    parts = ["<h2>Shifts</h2>"]
    for metric in dict.fromkeys(row["metric"] for row in under if _arm(row) in arms):
        if metric.startswith("zero"):
            continue
        values = {(_arm(row), row["shift"]): row for row in under if row["metric"] == metric}
        shifts = list(dict.fromkeys(shift for _, shift in values))
        body = tuple(Row((shift, *(_value(values.get((arm, shift))) for arm in arms))) for shift in shifts)
        caption = f"{LONG.get(metric, metric)} under each shift, mean over seeds with its 90% interval"
        parts.append(Table(caption, ("shift", *(_words(arm, fields) for arm in arms)), body).html())
    return parts


def _value(row: Entry | None) -> Cell:
    return measured(_estimate(row)) if row and row["low"] is not None else Cell("")


def contents(run: Run) -> Contents:
    """What is on the page of a run."""
    summary = run.summary
    above = [box([*_cautions(summary), *_price(summary)]), "<h2>Results</h2>", table(summary).html()]
    return Contents("a sweep", above, [*_tradeoff(summary), *_heatmap(summary), *_curves(summary)], _shifts(summary))


PAGE = Page(lines, contents)
