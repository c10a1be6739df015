"""The report of an emergence study: its questions, each with a figure and numbers, and which claims they support."""

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from tvjax.evals.learned import USABLE
from tvjax.evals.study import answers as answers_of
from tvjax.evals.study import surely_above, surely_below
from tvjax.experiments.emergence import figures
from tvjax.report.html import Exhibit, box
from tvjax.report.page import Contents, Page
from tvjax.report.reader import Run
from tvjax.report.tables import Cell, Head, Row, Table
from tvjax.report.words import number

TIMES = "\N{MULTIPLICATION SIGN}"
Tree = Mapping[str, Any]
COSTS = ("Condition", "Loss", "Members at once", "ms a step and member", "over ICL alone")
METHOD = (
    "A risk is relative to that of the prior, which answers without any demonstration. ICL risk is that after all "
    "K demonstrations; TVP risk that of a fresh query, answered zero-shot with the vector in place of the layer's "
    f"own state. A vector is usable where its TVP risk is at most {USABLE:g} of the prior's, and ICL is learned "
    "where ICL risk is. Means over seeds are geometric; brackets are 90% intervals of Student's t on their "
    "logarithms: where the mean over more seeds would lie. A ratio of two arms is taken seed by seed, on the same "
    "prompts. A claim is supported only where such an interval lies, whole, on its side; a claim of some condition "
    "among several asks it of intervals so much wider that all of them hold together (Bonferroni), and whether ICL was "
    "learned and which layer is best is asked of every seed. A vector is deep from the middle layer on. The best layer "
    "is chosen on the prompts that it is measured on, which flatters it a little; it is named only where it is usable. "
    "A claim is not tested where nothing was run for it, where no model under test has learned, or where there is one "
    "seed. Two that failed are not compared; under a shift those are arms of which none is better than the prior. The "
    "members of a population share "
    "the device, so that times of populations of different sizes are not of the loss alone."
)
BY_CONSTRUCTION = (
    "In layout xy the vector takes the place of the query itself: TVP fails at every layer by construction, which says "
    "nothing of task vectors and decides no claim here; the fair control is the additive edit "
    "(--config.base.tvp.edit=add)."
)
PROVENANCE = (
    "That task vectors form under some conditions, are often weak, that the TVP-loss makes a strong one at a prescribed"
    " layer without a search, and that strong vectors in deeper layers improve ICL on prompts out of distribution, are"
    " claims of Yang, Lin, Lee, Papailiopoulos and Nowak (arXiv 2501.09240, COLM 2025). Their settings are not public:"
    " the grid, the sizes, the control, the thresholds and the statistics are ours, and a claim that is not supported"
    " here is not refuted at their sizes."
)


def with_ci(entry: Tree) -> str:
    """``0.038 [0.030, 0.047]``, or without an interval if there is one seed."""
    low_high = f" [{', '.join(map(number, entry['ci']))}]" if entry["ci"] else ""
    return number(entry["mean"]) + low_high


def claims(answers: Tree) -> list[tuple[str, str, str]]:
    """A row for each claim: the claim, its `verdict`, and the numbers that decide or why there are none."""
    return [(claim, verdict(result), result["why"] or numbers) for claim, result, numbers in _claims(answers)]


def verdict(result: Tree) -> str:
    """Of a claim: ``supported``, ``not supported`` or ``not tested``."""
    return ("supported" if result["supported"] else "not supported") if result["tested"] else "not tested"


def _claims(answers: Tree) -> list[tuple[str, Tree, str]]:
    results, rows = answers["claims"], answers["emergence"]
    alone, unsure, prescribed = results["emerges_alone"], results["not_everywhere"], results["made_where_prescribed"]
    best = min((row for row in rows if not row["query_replaced"]), key=_tvp_best, default=None)
    where = "; ".join(figures.label(c) for c in alone["where"]) or "no condition"
    without = "; ".join(figures.label(c) for c in unsure["where"]) or "no condition"
    deeper, search, more = results["deeper_helps_shifts"], results["no_search"], results["more_than_its_compute"]
    layers = ", ".join(map(str, prescribed["layers"])) or "none"
    return [
        (
            "With the ICL loss alone, a usable vector emerges under some conditions.",
            alone,
            f"surely usable under: {where}"
            + (f"; best: {figures.label(best['differs_in'])}, {_best(best)}" if best else ""),
        ),
        (
            "ICL can be learned without a usable vector.",
            unsure,
            f"ICL learned, surely no usable vector, under: {without}",
        ),
        (
            "TVP-loss makes a usable vector at the layer that is prescribed.",
            prescribed,
            f"surely usable at layers {layers} of {', '.join(map(str, prescribed['of'])) or 'none'}",
        ),
        (
            "No search is needed: the best layer is the prescribed one.",
            search,
            f"{search['members']} of {search['of']} members with a usable vector",
        ),
        (
            "A strong vector in a deep layer improves ICL on shifted prompts.",
            deeper,
            _ratio_of_shifts(deeper),
        ),
        (
            "It does so beyond what the same extra queries do without a vector.",
            more,
            f"ICL risk under shifts over the control's: {with_ci(more['ratio'])}" if more["ratio"] else "",
        ),
    ]


def _tvp_best(row: Tree) -> float:
    return float(row["tvp_best"]["mean"])


def _best(row: Tree) -> str:
    return f"TVP risk {with_ci(row['tvp_best'])} {TIMES} the prior's"


def _ratio_of_shifts(deeper: Tree) -> str:
    if deeper["ratio"] is None:
        return ""
    return (
        f"at layer {deeper['layer']}, the deepest that is usable, ICL risk under shifts is {with_ci(deeper['ratio'])}"
        f" {TIMES} that of the ICL loss alone (geometric mean over shifts); of {deeper['of']} shifts, surely better"
        f" under {deeper['better']}, surely worse under {deeper['worse']}, and both no better than the prior under"
        f" {deeper['failed']}, which are not counted"
    )


def _setting(summary: Tree) -> str:
    sizes = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in summary["base"].items())
    count = sum(len(population["members"]) for population in summary["populations"])
    return (
        f"{summary['task']}; base: {sizes}; {count} models, {len(summary['seeds'])} seeds, n = {summary['num_prompts']}"
        " prompts each"
    )


def lines(summary: Tree) -> list[str | Table]:
    """The results for the terminal."""
    answers = answers_of(summary)
    parts: list[str | Table] = [
        _setting(summary),
        *headline(answers),
        "",
        "risk / prior's risk [90% interval over seeds]",
        "",
    ]
    parts += ["ICL loss alone", _alone(answers), "", "with a second loss", _second(answers), "", "claims"]
    for claim, holds, numbers in claims(answers):
        parts.append(f"{holds if holds == 'supported' else holds.upper():<14} {claim} {numbers}")
    return parts


def _conditions(answers: Tree) -> list[tuple[str, ...]]:
    """Condition, ICL, TVP at the best layer, which layers, in how many seeds it is usable."""
    return [
        (
            figures.label(row["differs_in"]),
            with_ci(row["icl"]),
            with_ci(row["tvp_best"]),
            _usable_layers(row) or "none",
            _usable(row),
        )
        for row in answers["emergence"]
    ]


def _usable_layers(row: Tree) -> str:
    """The best layers of the seeds, named only for seeds in which a vector is usable there."""
    seeds = zip(row["best_layers"], row["tvp_best"]["values"], strict=True)
    return ", ".join(map(str, sorted({layer for layer, value in seeds if value <= USABLE})))


def _learned(row: Tree) -> int:
    """In how many seeds ICL was learned."""
    return sum(value <= USABLE for value in row["icl"]["values"])


def _usable(row: Tree) -> str:
    """In how many seeds a vector is usable; if in none, whether it could have been."""
    count = f"{row['usable']} of {len(row['best_layers'])}"
    if row["query_replaced"]:
        return f"{count}, by construction"
    if row["usable"] or _learned(row) == len(row["best_layers"]):
        return count
    return f"ICL learned in {_learned(row)} of {len(row['best_layers'])}" if _learned(row) else "ICL not learned"


def headline(answers: Tree) -> list[str]:
    """The failures, which come first: conditions without ICL, claims without a model, members that are one model."""
    rows = answers["emergence"]
    failed = [row for row in rows if _learned(row) < len(row["icl"]["values"])]
    sentences = []
    for name, groups in answers["twins"].items():
        sentences += [f"In population {name}, {', '.join(names)} ended as one model, bit for bit." for names in groups]
    if failed:
        which = "; ".join(
            figures.label(row["differs_in"])
            + (f" (learned in {_learned(row)} of {len(row['icl']['values'])} seeds)" if _learned(row) else "")
            for row in failed
        )
        sentences.append(
            f"Under {len(failed)} of {len(rows)} conditions ICL was not learned in every seed, which says nothing of"
            f" vectors there: {which}."
        )
    unlearned = [figures.second_loss(row) for row in answers["trained"] if max(row["icl"]["values"]) > USABLE]
    if unlearned:
        sentences.append(f"With a second loss, ICL was not learned in every seed by: {'; '.join(unlearned)}.")
    untested = sum(not claim["tested"] for claim in answers["claims"].values())
    if untested:
        sentences.append(f"Of {len(answers['claims'])} claims, {untested} could not be tested.")
    return sentences


def _trained(answers: Tree) -> list[tuple[str, ...]]:
    """Second loss, TVP at its layer, ICL and ICL under shifts over the ICL loss alone."""
    return [
        (
            figures.second_loss(row),
            with_ci(row["tvp"]) if row["arm"] == "tvp" else "",
            "neither learned" if row["neither_learned"] else with_ci(row["icl_over_plain"]),
            _under_shifts(row),
        )
        for row in answers["trained"]
    ]


def _under_shifts(row: Tree) -> str:
    """ICL risk under shifts over that of the ICL loss alone, unless both fail under all of them."""
    if "all_shifts_over_plain" not in row:
        return ""
    return (
        with_ci(row["all_shifts_over_plain"]) if row["working_shifts_over_plain"] else "both no better than the prior"
    )


def contents(run: Run) -> Contents:
    """What is on the page of a run."""
    summary = run.summary
    answers = answers_of(summary)
    summary = {**summary, "answers": answers}
    method = METHOD + (f" {BY_CONSTRUCTION}" if any(row["query_replaced"] for row in answers["emergence"]) else "")
    parts = [
        f'<p class="quiet">{escape(_setting(summary))}</p>',
        box(headline(answers)),
        "<h2>Claims</h2>",
        _table("Each claim, and what decides it.", ("Claim", "Here", "Numbers"), claims(answers)).html(),
        "<h2>Numbers</h2>",
        _alone(answers).html(),
        _second(answers).html() if answers["trained"] else "",
        _table("What a step costs.", COSTS, _cost(answers)).html(),
        f'<p class="quiet">{escape(method)}</p>',
        f"<h2>What is the paper's, what is ours</h2><p>{escape(PROVENANCE)}</p>",
    ]
    return Contents("where task vectors emerge", parts, _exhibits(summary))


def _cost(answers: Tree) -> list[tuple[str, ...]]:
    return [
        (
            figures.label(row["differs_in"]),
            figures.ARMS[row["arm"]],
            str(row["members"]),
            f"{1000 * row['seconds_per_step']:.1f}",
            f"{row['over_icl']:.2f}" if row["over_icl"] else "",
        )
        for row in answers["cost"]
    ]


def _table(caption: str, heads: Sequence[Head | str], rows: Sequence[Sequence[str]]) -> Table:
    """Texts as cells, broken into lines if they are long."""
    return Table(caption, tuple(heads), tuple(Row((row[0], *(Cell(t, wrap=True) for t in row[1:]))) for row in rows))


def _alone(answers: Tree) -> Table:
    heads = (
        Head("Condition", "condition"),
        "ICL / prior",
        "TVP / prior, best layer",
        Head("Best layers", "layers"),
        Head("Usable in seeds", "usable"),
    )
    return _table("The ICL loss alone, by condition.", heads, _conditions(answers))


def _second(answers: Tree) -> Table:
    heads = (
        "Second loss",
        Head("TVP / prior at its layer", "TVP / prior at l*"),
        Head("ICL risk / ICL loss alone", "ICL / ICL alone"),
        Head("Under shifts / ICL loss alone", "under shifts"),
    )
    return _table("A second loss beside it.", heads, _trained(answers))


def _exhibits(summary: Tree) -> list[Exhibit]:
    answers = summary["answers"]
    trained = [row for row in answers["trained"] if not row["differs_in"]]
    exhibits = [
        _exhibit(
            "conditions",
            "Which conditions let a vector emerge?",
            "ICL risk and the best layer's TVP risk by condition, over the prior's, a mark a seed",
            _usable_sentence(answers["emergence"]),
            lambda: figures.conditions(summary),
        ),
        _exhibit(
            "layers",
            "At which layer?",
            "TVP risk by layer, over the prior's, for every condition and every layer that TVP-loss prescribes",
            "Blue is a usable vector. Layer 0 holds no task, and the last layer sees no query. "
            + _layers_sentence(answers["emergence"]),
            lambda: figures.layers(summary),
        ),
        _exhibit(
            "training",
            "How early in training?",
            "ICL and TVP risk against the training step at the base condition",
            _early_sentence(answers),
            lambda: figures.training(summary),
        ),
    ]
    if trained:
        exhibits.append(
            _exhibit(
                "prescribed",
                "What does TVP-loss change at each prescribed layer?",
                "TVP risk at the prescribed layer, and ICL risk over that of the ICL loss alone",
                _price_sentence(trained),
                lambda: figures.prescribed(summary),
            )
        )
    if any(row["shifts_over_plain"] for row in trained):
        exhibits.append(
            _exhibit(
                "shifts",
                "And out of distribution?",
                "ICL risk under each shift over that of the ICL loss alone, by prescribed layer",
                "Below 1 (blue) TVP-loss helped, above 1 (red) it hurt; a star marks an interval over seeds that leaves"
                " 1 out. No number: both are no better than the prior.",
                lambda: figures.shifts(summary),
            )
        )
    return exhibits


def _exhibit(stem: str, heading: str, alt: str, caption: str, draw: Callable[[], Any]) -> Exhibit:
    return Exhibit(stem, heading, alt, caption, draw)


def _usable_sentence(rows: Sequence[Tree]) -> str:
    usable = [figures.label(row["differs_in"]) for row in rows if row["usable"] == len(row["best_layers"])]
    learned = sum(max(row["icl"]["values"]) <= USABLE for row in rows)
    replaced = " In layout xy none can, by construction." if any(row["query_replaced"] for row in rows) else ""
    return (
        f"Of {len(rows)} conditions, ICL was learned in every seed under {learned}, and a usable vector emerged in"
        f" every seed under {len(usable)}{': ' + '; '.join(usable) if usable else ''}.{replaced}"
    )


def _layers_sentence(rows: Sequence[Tree]) -> str:
    usable = [row for row in rows if row["usable"]]
    if not any(map(_learned, rows)) and not usable:
        return "ICL was learned under no condition: there was no vector to be found."
    if not usable:
        return "With the ICL loss alone no layer held a usable vector in any seed."
    parts = [f"{figures.label(row['differs_in'])}: {_usable_layers(row)}" for row in usable]
    return f"Best layers where one emerged with the ICL loss alone: {'; '.join(parts)}."


def _early_sentence(answers: Tree) -> str:
    base = next(row for row in answers["emergence"] if not row["differs_in"])
    parts = [
        f"ICL loss alone: ICL learned by step {_steps(base['learned_from'])}, vector {_steps(base['usable_from'])}"
    ]
    parts += [
        f"{figures.second_loss(row)}: vector {_steps(row['usable_from'])}"
        for row in answers["trained"]
        if row["arm"] == "tvp" and not row["differs_in"]
    ]
    return "First evaluation at which the risk is below the threshold, seed by seed. " + "; ".join(parts) + "."


def _steps(steps: Sequence[int | None]) -> str:
    return ", ".join("never" if step is None else f"{step:,}" for step in steps)


def _price_sentence(rows: Sequence[Tree]) -> str:
    parts = []
    for row in rows:
        entry = row["icl_over_plain"]
        if row["neither_learned"]:
            parts.append(f"{figures.second_loss(row)}: neither learned ICL, and so they are not compared")
            continue
        side = "worse" if surely_above(entry, 1) else "better" if surely_below(entry, 1) else "no clear difference"
        parts.append(f"{figures.second_loss(row)}: {with_ci(entry)} ({side})")
    return "ICL risk after all demonstrations, over that of the ICL loss alone. " + "; ".join(parts) + "."


PAGE = Page(lines, contents)
