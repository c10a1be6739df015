"""The figures over training: risks against the step, and when and at which layer a vector forms."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tvjax.experiments.tvp.report.looks import axis_label, looks, member_lines, prior_line
from tvjax.experiments.tvp.report.reader import TVPRun
from tvjax.report.style import INK, PRIOR, QUIET, bottom_legend, log_axis, log_limits, open_figure, quiet
from tvjax.report.words import number
from tvjax.train.log import mean_name


def training_figure(run: TVPRun) -> Figure:
    """ICL and TVP risk of the training batches against the step, each member a line, log y; accuracies below."""
    summary = run.summary
    words = [("risk", summary.base.risk)]
    if summary.base.accuracy:
        words.append(("accuracy", summary.base.accuracy))
    longest = max(metrics.get(mean_name("icl", "risk"))[0].size for metrics in run.metrics)
    window = max(1, longest // 40)
    drawn = f"lines: running mean over {window} logged steps, faint: each one" if window > 1 else "each logged step"
    figure = open_figure(
        9.6,
        3.2 * len(words) + 0.25 * len(run.metrics) / 2,
        "ICL and TVP risk during training",
        f"{summary.task}; training batches; {drawn}",
    )
    grid = figure.subplots(len(words), 2, squeeze=False, sharex=True)
    for row, (word, measure) in zip(grid, words, strict=True):
        for ax, kind in zip(row, ("icl", "tvp"), strict=True):
            _training_panel(ax, run, mean_name(kind, word), window)
            ax.axhline(float(measure.prior.value), **PRIOR)
            where = "mean over the prompt" if kind == "icl" else "at the prescribed layer, mean over the prompt"
            quiet(
                ax,
                "training step" if word == words[-1][0] else "",
                axis_label(summary, kind.upper(), word),
                f"{kind.upper()} {word}, {where}",
            )
    bottom_legend(figure, [*member_lines(looks(summary)), prior_line()])
    return figure


def _training_panel(ax: Axes, run: TVPRun, name: str, window: int) -> None:
    for look, metrics in zip(looks(run.summary), run.metrics, strict=True):
        steps, values = metrics.get(name)
        kept = np.isfinite(values)
        steps, values = steps[kept], values[kept]
        if window > 1 and values.size > window:
            ax.plot(steps, values, color=look.color, linewidth=0.6, alpha=0.25)
            middle = slice((window - 1) // 2, (window - 1) // 2 + values.size - window + 1)
            steps, values = steps[middle], np.convolve(values, np.ones(window) / window, mode="valid")
        ax.plot(steps, values, color=look.color, linewidth=1.7, label=look.label)
    if name.endswith("accuracy"):
        ax.set_ylim(-0.03, 1.03)
        return
    shown = np.concatenate(
        [line.get_ydata() for line in ax.lines if line.get_label() in {look.label for look in looks(run.summary)}]
    )
    prior = float(run.summary.base.risk.prior.value)
    log_axis(ax, "y", *log_limits([shown, np.array([prior])]))


def heatmap_figure(run: TVPRun) -> Figure:
    """TVP risk relative to the prior, layer by training step, one panel a member, one colour scale for all.

    The scale is logarithmic and symmetric about 1.0 (the prior): blue is better than the prior, red is worse.
    """
    summary = run.summary
    prior = float(summary.base.risk.prior.value)
    tables = [metrics.get("eval_tvp_risk_by_layer") for metrics in run.metrics]
    ratios = [(steps, values / prior) for steps, values in tables]
    columns = min(len(ratios), 2 if len(ratios) <= 4 else 3)
    rows = -(-len(ratios) // columns)
    reach = _reach([values for _, values in ratios])
    figure = open_figure(
        9.6,
        rows * (1.45 + 0.16 * min(summary.num_layers + 1, 14)),
        "Where and when a task vector forms: TVP risk relative to the prior",
        f"{summary.task}; held-out prompts at each evaluation; blue: below the prior's risk ({number(prior)}), red:"
        " above; framed: the layer TVP-loss prescribes",
    )
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for ax in grid.flat[len(ratios) :]:
        ax.set_visible(False)
    norm = LogNorm(1 / reach, reach)
    for index, (member, look, (steps, values)) in enumerate(zip(summary.members, looks(summary), ratios, strict=True)):
        ax = grid.flat[index]
        quiet(ax, "training step", "layer l" if index % columns == 0 else "", look.label)
        ax.grid(False)
        if steps.size:
            layers = np.arange(values.shape[1] + 1) - 0.5
            mesh = ax.pcolormesh(_edges(steps), layers, np.clip(values.T, 1 / reach, reach), norm=norm, cmap="RdBu_r")
            mesh.set_rasterized(True)
        ax.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=9))
        if member.prescribes:
            ax.axhspan(member.prescribed_layer - 0.5, member.prescribed_layer + 0.5, fill=False, edgecolor=INK, lw=1.4)
    _colour_bar(figure, grid, norm, reach)
    return figure


def _reach(tables: list[np.ndarray]) -> float:
    """How far the colours reach from 1.0, both ways: to the most extreme ratio, from 2 to 30 (beyond it is clipped)."""
    values = np.concatenate([table.ravel() for table in tables])
    values = values[np.isfinite(values) & (values > 0)]
    return float(np.clip(np.exp(np.abs(np.log(values)).max()), 2, 30)) if values.size else 2.0


def _edges(steps: np.ndarray) -> np.ndarray:
    """The borders of cells centred (as far as they can be) on `steps`, none below 0."""
    if steps.size == 1:
        return np.array([steps[0] - 0.5, steps[0] + 0.5])
    middles = (steps[1:] + steps[:-1]) / 2
    return np.concatenate([[steps[0]], middles, [steps[-1] + (steps[-1] - steps[-2]) / 2]])


def _colour_bar(figure: Figure, grid: np.ndarray, norm: LogNorm, reach: float) -> None:
    bar = figure.colorbar(ScalarMappable(norm, "RdBu_r"), ax=grid, extend="both", aspect=28, pad=0.02)
    bar.set_label("TVP risk / prior risk (1 = prior)", fontsize=9, color=INK)
    ticks = [tick for tick in (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20) if 1 / reach <= tick <= reach]
    bar.set_ticks(ticks, labels=[f"{tick:g}" for tick in ticks])
    bar.ax.minorticks_off()
    bar.ax.tick_params(labelsize=8.5, colors=QUIET)
    bar.ax.axhline(1.0, color=INK, linewidth=1)
    bar.outline.set_visible(False)
