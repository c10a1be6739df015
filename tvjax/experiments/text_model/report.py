"""The report of the small language model that is trained here."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from tvjax.evals.learned import above
from tvjax.report.html import Exhibit, box
from tvjax.report.page import Contents, Page
from tvjax.report.reader import Run
from tvjax.report.style import HUES, open_figure, quiet
from tvjax.report.tables import Row, Table, of


def lines(summary: Mapping[str, Any]) -> list[str | Table]:
    """The results for the terminal."""
    parts: list[str | Table] = [
        f"small language model: {summary['num_layers']} layers, {len(summary['tasks'])} tasks, n ="
        f" {summary['num_prompts']} prompts [90% bootstrap interval]",
        *cautions(summary),
        _table(summary),
    ]
    return parts


def _table(summary: Mapping[str, Any]) -> Table:
    counts = range(summary["num_demonstrations"] + 1)
    rows = tuple(Row((str(n), of(summary, "accuracy", index=n), of(summary, "risk", index=n))) for n in counts)
    caption = f"By number of demonstrations, on {summary['num_prompts']} prompts, with 90% bootstrap intervals"
    return Table(caption, ("demonstrations", "accuracy", "risk (nats a token)"), rows)


def cautions(summary: Mapping[str, Any]) -> list[str]:
    """What comes before any number: that the model has not learned the tasks."""
    k = summary["num_demonstrations"]
    interval, without = summary["accuracy_ci"][k], summary["accuracy"][0]
    if above(interval, without):
        return []
    return [
        f"The model has not learned the tasks: its accuracy after {k} demonstrations,"
        f" {of(summary, 'accuracy', index=k).plain()}, is not clearly above that without any, {without:.2f}."
    ]


def contents(run: Run) -> Contents:
    """What is on the page of a run."""
    summary = run.summary
    parts = [box(cautions(summary)), "<h2>Results</h2>", _table(summary).html()]
    return Contents("a small language model", parts, [_curve(summary)])


def _curve(summary: dict[str, Any]) -> Exhibit:
    def draw() -> Figure:
        """Accuracy against the number of demonstrations."""
        counts = np.arange(summary["num_demonstrations"] + 1)
        evidence = f"n = {summary['num_prompts']} prompts; bands: 90% bootstrap interval"
        drawn = open_figure(8, 3, "In-context learning of the small model", evidence)
        for index, (name, unit) in enumerate((("accuracy", "fraction of answers right"), ("risk", "nats a token"))):
            ax = drawn.add_subplot(1, 2, index + 1)
            band = np.array(summary[f"{name}_ci"])
            ax.fill_between(counts, band[:, 0], band[:, 1], color=HUES[0], alpha=0.2, linewidth=0)
            ax.plot(counts, summary[name], color=HUES[0], marker="o", markersize=4)
            ax.set_ylim(bottom=0)
            quiet(ax, "demonstrations before the query", f"{name}\n{unit}")
        return drawn

    return Exhibit(
        "curve",
        "By number of demonstrations",
        "Accuracy and risk of the small model by number of demonstrations",
        "With none the model can only guess which task is meant; each demonstration says more of it.",
        draw,
    )


PAGE = Page(lines, contents)
