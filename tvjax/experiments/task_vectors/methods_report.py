"""The methods of a run side by side: how near each is to demonstrations, whose answers it gives, and what it costs."""

from collections.abc import Mapping, Sequence
from typing import Any

from tvjax.evals.learned import above
from tvjax.report.tables import Cell, Head, Row, Table, both, of
from tvjax.report.words import number

GIGA = 1e9
PUBLISHED = {
    "15-shot": 90.8,
    "STAVE": 91.5,
    "SITE": 91.0,
    "LoRA": 77.7,
    "task vector": 75.8,
    "function vector": 48.2,
}
"""Accuracy in percent on the 18 tasks of Hendel et al. (2023), the mean of five models of 2.8B to 12B parameters, as
published in 2026 in a comparison with STAVE (Ding, Shi and Zhang). Not measured here, and known at second hand."""


def learned(summary: Mapping[str, Any]) -> list[str]:
    """The tasks on which k-shot accuracy is clearly above zero-shot."""
    return [name for name, e in summary["tasks"].items() if above(e["few_shot_first_ci"], e["zero_shot_first"])]


def margin(entry: Mapping[str, Any], kind: str) -> Cell:
    """The identity margin, or a dash where no question has a rival."""
    return Cell("-") if entry[f"{kind}_margin"] is None else of(entry, f"{kind}_margin", "+.2f")


def methods_table(
    summary: Mapping[str, Any], names: Mapping[str, str], times: Mapping[str, Any] | None = None
) -> Table:
    """A row a way to ask, means over tasks.

    names: the ways to ask, as readers know them.
    times: by way to ask, seconds of a query and to make it, as further columns.
    """
    mean, rows, known = summary["mean"], [], learned(summary)
    for kind, name in names.items():
        cost = summary["cost"][kind]
        gap = both(_less(mean, kind), "gap", "+.2f") if known else Cell("not learned")
        cells: list[Cell | str] = [
            of(mean, f"{kind}_d_ntp"),
            margin(mean, kind),
            Cell("") if kind == "few_shot" else gap,
            f"{cost['tokens_per_query']:.1f}",
            f"{cost['trainable_parameters']:,}" if cost["trainable_parameters"] else "none",
            *(number(cost[field] / GIGA) for field in ("query_flops", "make_flops")),
        ]
        if times is not None:
            took = times.get(kind, {})
            cells += [number(took[field]) if field in took else "" for field in ("query_ms", "make_seconds")]
        rows.append(Row((name, *cells), reference=kind == "few_shot"))
    shots = f"{summary['num_demonstrations']}-shot"
    heads: list[Head | str] = [
        "",
        Head("d_NTP, nats", "d_NTP"),
        Head("identity margin", "margin"),
        Head(f"accuracy less that of {shots}", f"less {shots}"),
        Head("tokens a query", "tokens"),
        Head("trained numbers", "trained"),
        Head("GFLOPs a query", "GFLOPs"),
        Head("GFLOPs to make", "to make"),
    ]
    heads += ["ms a query", "seconds to make"] if times is not None else []
    return Table(_caption(summary, shots), tuple(heads), tuple(rows))


def _less(mean: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """The fields of the difference from k-shot, as `both` reads them."""
    return {
        f"gap{suffix}{end}": mean[f"{kind}{suffix}_less_few_shot{end}"]
        for suffix in ("", "_first")
        for end in ("", "_ci")
    }


def _caption(summary: Mapping[str, Any], shots: str) -> str:
    """What the columns of `methods_table` are."""
    rivals = [e["rivals"] for e in summary["tasks"].values()]
    return (
        "Means over tasks, with 90% bootstrap intervals over questions. d_NTP: the Kullback-Leibler divergence from the"
        f" distribution of {shots} prompts at the answer's first token to that of the method (after Kwon, Choi and Sohn"
        " 2026). Identity margin: the chance of the task's answer at that token, less the greatest chance of an answer"
        " that another task of the run has to the same input and that begins with another token; of the"
        f" {sum(rivals)} questions in {sum(map(bool, rivals))} of {len(rivals)} tasks that have such a rival. Accuracy"
        f" less that of {shots}: on the same questions, paired, above of first tokens, below of whole answers. FLOPs:"
        " those of matrix products; of a query, one pass up to the answer's first token; to make, for all tasks,"
        " without the choice of layer and scale, and what methods share counts for each. Times: of this run, without"
        " compilation; of a query in a batch, with all places of its answer."
    )


def by_task_table(summary: Mapping[str, Any], names: Mapping[str, str]) -> Table:
    """A row a task, a column a way to ask: d_NTP above, identity margin below."""
    rows = []
    for task, e in summary["tasks"].items():
        cells = []
        for kind in names:
            near = of(e, f"{kind}_d_ntp")
            cells.append(Cell(near.text, near.interval, (margin(e, kind),)))
        rows.append(Row((task, *cells, str(e["rivals"]))))
    caption = (
        "By task: above d_NTP in nats, below the identity margin, with 90% bootstrap intervals over questions; a dash"
        " where no question has a rival."
    )
    return Table(caption, ("", *names.values(), "questions with a rival"), tuple(rows))


def published_table() -> Table:
    """The numbers of other models that others have published."""
    rows: Sequence[Row] = [Row((name, f"{value:.1f}")) for name, value in PUBLISHED.items()]
    caption = (
        "Not ours, and not of this model: accuracy in percent on the 18 tasks of Hendel et al. (2023), mean of five"
        " models of 2.8B to 12B parameters, as published in 2026 in a comparison with STAVE (Ding, Shi and Zhang), and"
        " known at second hand. Models, tasks, prompts and numbers of demonstrations are others than those of this run."
    )
    return Table(caption, ("method", "accuracy, %"), tuple(rows))
