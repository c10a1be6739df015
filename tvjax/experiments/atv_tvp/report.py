"""The report of ATV on a TVP-trained model: does the written vector work, and is it theta?"""

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from safetensors import SafetensorError
from safetensors.numpy import load_file

from tvjax.errors import UserError
from tvjax.evals.learned import ROUNDING, standing
from tvjax.report.html import Exhibit, box
from tvjax.report.page import Contents, Page
from tvjax.report.pca import colour_scale, coordinates, principal
from tvjax.report.reader import Run, Vectors
from tvjax.report.style import (
    HUES,
    INK,
    MARKERS,
    ORACLE,
    PRIOR,
    QUIET,
    bottom_legend,
    log_axis,
    log_limits,
    open_figure,
    quiet,
)
from tvjax.report.tables import Cell, Row, Table, estimate, of
from tvjax.report.words import number

EVIDENCE = "90% bootstrap interval over prompts"
OBJECTIVES = {
    "risk": "trained on the risk of the answers alone, without theta",
    "theta": "trained on the distance from theta: the upper control",
}
SHARES = {
    "explained_variance": "share of theta",
    "centred_explained_variance": "without means",
    "linear_explained_variance": "through a map",
}
OURS = (
    "ATV is after Kang et al. (2025), task-vector prompting after Yang et al. (2025); to train the one on a model made"
    " by the other is in neither paper. A vector that works need not be theta. The share of theta is that of its"
    " variance which the written vector is, coordinate by coordinate (less than 0: further from theta than theta's mean"
    " is); without means, the same with the mean of each set taken away; through a map, what the best linear map makes"
    " of the written vector, fitted on every second prompt and scored on the"
    " others. The task's R\N{SUPERSCRIPT TWO} is how much of its true parameter such a map reads off the vector."
    " Shuffled: the vector that was written for another prompt."
)


def _risk(entry: Mapping[str, Any], name: str, prior: float = 0.0) -> Cell:
    """A risk after all demonstrations; 0 if it is the rounding of float32."""
    value, interval = np.atleast_1d(entry[name])[-1], np.reshape(entry[f"{name}_ci"], (-1, 2))[-1]
    return estimate(value, interval, lambda one: number(0.0 if abs(one) < ROUNDING * prior else one))


def _works(summary: Mapping[str, Any], entry: Mapping[str, Any], name: str) -> bool:
    """Whether the risk with these vectors, after all demonstrations, is clearly below the prior's."""
    return standing(entry[f"{name}_ci"][-1][1] / summary["prior_risk"]) != "nothing"


def cautions(summary: Mapping[str, Any]) -> list[str]:
    """What comes before any number: vectors that do not work, of the target or of the writers. [ours]"""
    if not _works(summary, summary, "theta_risk"):
        return [
            "The target holds no vector that works: with theta TVP risk at K is not clearly below the prior's. There is"
            " nothing for a writer to reach, and no share of theta says anything."
        ]
    failed = [f"seed {m['seed']}" for m in summary["members"] if not _works(summary, m, "written_risk")]
    if not failed:
        return []
    return [
        f"Of {len(summary['members'])} writers {len(failed)} wrote no vector that works ({', '.join(failed)}): TVP risk"
        " at K is not clearly below the prior's."
    ]


def _table(summary: Mapping[str, Any]) -> Table:
    """Risk at K, that less theta's, shuffled, the shares of theta, and the task's R^2: a row a kind of vectors."""
    parts = list(summary["theta_task_r2"])
    read = [_read_of(summary, "theta_task_r2", part) for part in parts]
    rows = [Row(("theta", _risk(summary, "theta_risk"), "", "", *("" for _ in SHARES), *read))]
    for m in summary["members"]:
        compared = _works(summary, summary, "theta_risk") or _works(summary, m, "written_risk")
        less = _risk(m, "risk_minus_theta") if compared else "neither works"
        shares = [of(m, name) for name in SHARES]
        risks = _risk(m, "written_risk"), less, _risk(m, "shuffled_risk")
        rows.append(
            Row((f"written, seed {m['seed']}", *risks, *shares, *(_read_of(m, "task_r2", part) for part in parts)))
        )
    rows.append(Row(("no vector", _risk(summary, "zero_shot_risk")), reference=True))
    rows.append(Row(("prior", _risk(summary, "prior_risk")), reference=True))
    if "oracle_risk" in summary:
        rows.append(Row(("oracle", _risk(summary, "oracle_risk", summary["prior_risk"])), reference=True))
    names = [f"R\N{SUPERSCRIPT TWO} of {part}" for part in parts]
    caption = f"Risk: {summary['risk_unit']}. In brackets: {EVIDENCE}."
    return Table(caption, ("", "TVP risk at K", "less theta's", "shuffled", *SHARES.values(), *names), tuple(rows))


def _read_of(entry: Mapping[str, Any], name: str, part: str) -> Cell:
    return estimate(entry[name][part], entry[f"{name}_ci"][part])


def _setting(summary: Mapping[str, Any]) -> str:
    return (
        f"{summary['task']}, layout {summary['layout']}: vectors at layer {summary['prescribed_layer']} of"
        f" {summary['num_layers']}, K = {summary['num_demonstrations']} demonstrations, n = {summary['num_prompts']}"
        " prompts"
    )


def lines(summary: Mapping[str, Any]) -> list[str | Table]:
    """The results for the terminal."""
    parts: list[str | Table] = [
        _setting(summary),
        f"writers {OBJECTIVES[summary['objective']]}",
        *cautions(summary),
        "",
        f"risk: {summary['risk_unit']} [{EVIDENCE}]",
    ]
    parts.append(_table(summary))
    known = of(summary, "theta_explained_by_task").plain()
    parts.append(f"of theta's own variance, a linear map of the true task makes {known}")
    return parts


def contents(run: Run) -> Contents:
    """What is on the page of a run."""
    summary, path = run.summary, run.path
    theta, parameters = _read(path / "vectors" / "theta.safetensors", "theta")
    first = summary["members"][0]["name"]
    written, _ = _read(path / "vectors" / f"{first}.safetensors", "written")
    sets = {"theta": Vectors(theta, parameters), f"written, {first.replace('_', ' ')}": Vectors(written, parameters)}
    target = summary["target"]
    about = f"{_setting(summary)}; target: member {target['member']} of {target['run']}, frozen"
    known = of(summary, "theta_explained_by_task").plain()
    parts = [
        f'<p class="quiet">{escape(about)}</p>',
        box(cautions(summary)),
        f"<p>The writers were {escape(OBJECTIVES[summary['objective']])}.</p>",
        "<h2>Results</h2>",
        _table(summary).html(),
        f"<p>Of theta's own variance, a linear map of the true task makes {known}: the rest is what theta holds of its"
        " prompt beside the task, or holds of the task in a way that is not linear.</p>",
        f"<h2>What is whose</h2><p>{escape(OURS)}</p>",
    ]
    return Contents("ATV on a TVP-trained model", parts, [_curve(summary), _pca(sets)])


def _read(path: Path, name: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The array `name` ``[P, D]`` of a file of vectors, and the tasks' parameters."""
    try:
        arrays = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: {error}; run --mode=eval again") from None
    if name not in arrays or arrays[name].ndim != 2 or not np.isfinite(arrays[name]).all():
        raise UserError(f"{path}: no finite array {name!r} [P, D] in it; run --mode=eval again")
    tasks = {key.removeprefix("task."): value for key, value in arrays.items() if key.startswith("task.")}
    return arrays[name], tasks


def _curve(summary: dict[str, Any]) -> Exhibit:
    members, counts = summary["members"], np.arange(summary["num_demonstrations"] + 1)
    shown = {"theta": (summary, "theta_risk", HUES[1], MARKERS[1], "-")}
    for m in members:
        shown[f"written, seed {m['seed']}"] = (m, "written_risk", HUES[0], MARKERS[0], "-")
        shown[f"shuffled, seed {m['seed']}"] = (m, "shuffled_risk", HUES[2], MARKERS[2], ":")

    def draw() -> Figure:
        """A line each for theta and every seed, with bands."""
        evidence = f"{_setting(summary)}\nbands: {EVIDENCE}"
        drawn = open_figure(7.6, 3.9, "Does the written vector work as well as theta?", evidence)
        ax = drawn.add_subplot()
        values = [summary["prior_risk"]]
        for entry, name, hue, marker, style in shown.values():
            band = np.array(entry[f"{name}_ci"])
            values += [*band[:, 0], *band[:, 1]]
            ax.fill_between(counts, band[:, 0], band[:, 1], color=hue, alpha=0.12, linewidth=0)
            ax.plot(counts, entry[name], color=hue, marker=marker, markersize=4, linestyle=style)
        ax.axhline(summary["prior_risk"], **PRIOR)
        log_axis(ax, "y", *log_limits([np.array(values)]))
        if "oracle_risk" in summary:
            ax.plot(counts, np.maximum(summary["oracle_risk"], ax.get_ylim()[0] / 3), **ORACLE)
        quiet(ax, "demonstrations before the query", f"TVP risk\n{summary['risk_unit']}")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        looks: dict[str, tuple[str, str, Any]] = {
            "theta": (HUES[1], MARKERS[1], "-"),
            f"written, {len(members)} seeds": (HUES[0], MARKERS[0], "-"),
        }
        looks["shuffled: written for another prompt"] = (HUES[2], MARKERS[2], ":")
        handles = [
            Line2D([], [], color=hue, marker=marker, linestyle=style, label=label)
            for label, (hue, marker, style) in looks.items()
        ]
        handles.append(Line2D([], [], label="prior (knows the family, not the task)", **PRIOR))
        if "oracle_risk" in summary:
            handles.append(Line2D([], [], label="oracle (may leave the axis below)", **ORACLE))
        bottom_legend(drawn, handles)
        return drawn

    return Exhibit(
        "atv_by_demonstrations",
        "By number of demonstrations",
        "TVP risk with the written vector, with theta and with another prompt's vector, by number of demonstrations",
        "Both read the same prompts and answer the same fresh queries. The writers were trained to write after"
        f" {', '.join(map(str, summary['trained_after']))} demonstrations: what they write after other numbers of them"
        " is left to chance.",
        draw,
    )


def _pca(sets: dict[str, Vectors]) -> Exhibit:
    def draw() -> Figure:
        """A row a set of vectors, a panel a parameter of the task."""
        panels = max(1, *(len(coordinates(vectors)) for vectors in sets.values()))
        evidence = (
            f"n = {len(next(iter(sets.values())).theta)} prompts, a point each; coloured by the task's true parameter"
        )
        drawn = open_figure(4.1 * panels, 2.9 * len(sets), "The first two principal components", evidence)
        grid = drawn.subplots(len(sets), panels, squeeze=False)
        for axes, (label, vectors) in zip(grid, sets.items(), strict=True):
            points, share = principal(vectors.theta)
            for ax in axes[len(coordinates(vectors)) :]:
                ax.set_visible(False)
            for index, (ax, (name, value)) in enumerate(zip(axes, coordinates(vectors).items(), strict=False)):
                colours, norm, ticks = colour_scale(name, value)
                dots = ax.scatter(*points.T, c=value, cmap=colours, norm=norm, s=9, linewidths=0, alpha=0.85)
                bar = drawn.colorbar(dots, ax=ax, pad=0.02, aspect=22, ticks=ticks)
                bar.ax.tick_params(labelsize=7.5, colors=QUIET, length=2)
                bar.set_label(name, fontsize=8.5, color=INK)
                quiet(ax, f"PC 1 ({share[0]:.0%} of variance)", f"PC 2 ({share[1]:.0%})", label if not index else " ")
                ax.set_xticks([])
                ax.set_yticks([])
        return drawn

    return Exhibit(
        "atv_pca",
        "The vectors",
        "The first two principal components of theta and of the written vectors, coloured by the task's parameter",
        "Where colours are sorted along a direction, the vectors' largest variation encodes that parameter. The"
        " directions of the two rows are their own and do not compare.",
        draw,
    )


PAGE = Page(lines, contents)
