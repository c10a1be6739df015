"""What was published of task vectors, our test of each claim, and the rule by which the numbers of a result decide it.

docs/claims.md is made of this (python docs/artifacts.py write), and says which rules are younger than their runs.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tvjax.evals.learned import USABLE
from tvjax.experiments.emergence import report as emergence
from tvjax.experiments.tvp_language import report as language
from tvjax.report.words import number

Summary = Mapping[str, Any]
SUPPORTED, NOT_SUPPORTED, NOT_TESTED = "supported", "not supported", "not tested"
COMPARABLE = 1.25
"""ICL risk at most this many times that of the ICL loss alone is comparable. [ours]"""
ADDITIVE = 0.925
"""The least cosine that Wang et al. (2026) report."""
GROUPS = {"train": "tasks that were trained on", "heldout": "held-out tasks"}


@dataclass(frozen=True)
class Claim:
    """A published claim.

    source: who published it.
    meaning: the claim in our words.
    test: what we run, and the rule.
    result: the name of the kept result; "": nothing was run.
    decide: from its summary to the verdict, and to the numbers; without a result, to the reason.
    """

    source: str
    meaning: str
    test: str
    result: str
    decide: Callable[[Summary], tuple[str, str]]


def untested(why: str) -> Callable[[Summary], tuple[str, str]]:
    """Nothing was run."""
    return lambda summary: (NOT_TESTED, why)


def of_study(place: int) -> Callable[[Summary], tuple[str, str]]:
    """The verdict of the emergence study on its claim at `place`."""
    return lambda summary: emergence.claims(summary["answers"])[place][1:]


def comparable_icl(summary: Summary) -> tuple[str, str]:
    """What the setting that was chosen on other seeds costs on these, by the rules of docs/tvp_price.md."""
    numbers = [entry for entry in summary["numbers"] if "shift" not in entry]
    (cost,) = (entry for entry in numbers if entry["metric"] == "relative_icl_risk")
    (prior,) = (entry["value"] for entry in numbers if entry["metric"] == "prior_risk")
    (vector,) = (
        entry
        for entry in numbers
        if entry["metric"] == "tvp_risk_by_layer" and entry["tvp_weight"] and entry["layer"] == cost["prescribed_layer"]
    )
    ends = ", ".join(map(number, cost["value_ci"]))
    said = f"weight {cost['tvp_weight']:g} at layer {cost['prescribed_layer']}: ICL risk {number(cost['value'])}"
    said += f" [{ends}] times, TVP risk {number(vector['value'] / prior)} of the prior's"
    usable = vector["value_ci"][1] <= USABLE * prior
    return (SUPPORTED if usable and cost["value_ci"][1] <= COMPARABLE else NOT_SUPPORTED), said


def in_language(question: str, group: str) -> Callable[[Summary], tuple[str, str]]:
    """What the rules of docs/tvp_language.md say at each prescribed layer with a weight of 1."""

    def decide(summary: Summary) -> tuple[str, str]:
        arms = {arm["name"]: arm for arm in language.arms_of(summary)}
        rows = [
            row for row in language.verdicts(summary) if row["group"] == group and arms[row["arm"]]["tvp_weight"] == 1
        ]
        said = {arms[row["arm"]]["prescribed_layer"]: row[question] for row in rows}
        numbers = ", ".join(f"layer {layer}: {said[layer]}" for layer in sorted(said))
        return (SUPPORTED if set(said.values()) == {"yes"} else NOT_SUPPORTED), numbers

    return decide


def moved(method: str) -> Callable[[Summary], tuple[str, str]]:
    """In how many tasks the vectors of a method do clearly more than no vector."""

    def decide(summary: Summary) -> tuple[str, str]:
        tasks = summary["tasks"].values()
        works = sum(entry[f"{method}_first_ci"][0] > entry["zero_shot_first"] for entry in tasks)
        mean = summary["mean"]
        numbers = f"in {works} of {len(tasks)} tasks; mean over tasks {mean[f'{method}_first']:.2f},"
        numbers += f" zero-shot {mean['zero_shot_first']:.2f}, with demonstrations {mean['few_shot_first']:.2f}"
        return (SUPPORTED if 2 * works > len(tasks) else NOT_SUPPORTED), numbers

    return decide


def adds_up(summary: Summary) -> tuple[str, str]:
    """Rule 4 of docs/additivity.md: at all inner layers with the ICL loss alone, and where the TVP-loss writes."""
    metric = "probes.additivity.weighted.centred_cosine_by_layer"
    rows = [entry for entry in summary["numbers"] if entry["metric"] == metric]
    top = max(entry["layer"] for entry in rows)
    alone = [entry for entry in rows if not entry["tvp_weight"] and 0 < entry["layer"] < top]
    trained = [entry for entry in rows if entry["tvp_weight"] and entry["layer"] == entry["prescribed_layer"]]
    parts = []
    for name, entries in (("ICL loss alone", alone), ("TVP-loss", trained)):
        cosines = ", ".join(
            f"layer {entry['layer']}: {entry['value']:.2f} [{', '.join(f'{end:.2f}' for end in entry['value_ci'])}]"
            for entry in entries
        )
        parts.append(f"{name}, {cosines}")
    holds = all(entry["value_ci"][0] > ADDITIVE for entry in alone + trained)
    return (SUPPORTED if holds else NOT_SUPPORTED), "; ".join(parts)


TVP = "Yang, Lin et al. 2025 (TVP)"
ATV = "Kang et al. 2025 (ATV)"
TOKEN_OFFSET = "emergence_token_offset"
PRICE = "tvp_price_token_offset_chosen"
STUDY = "tvp_language_smollm2"
VECTORS = "task_vectors_smollm2"
SUITE = "SmolLM2, the accuracy of first tokens zero-shot with the vector; in more than half of the tasks its whole 90% "
SUITE += "interval is above zero-shot"
HALF = f"TVP risk at most {USABLE:g} of the prior's, with its whole 90% interval over seeds"

CLAIMS = (
    Claim(TVP, "Task vectors form under some conditions in models trained from scratch.",
          f"token offset, 9 conditions, ICL loss alone; under some the best layer is usable ({HALF}, Bonferroni)",
          TOKEN_OFFSET, of_study(0)),
    Claim(TVP, "They are often weak, or at no one layer.",
          "the same; under some ICL is learned in every seed, and surely no layer is usable",
          TOKEN_OFFSET, of_study(1)),
    Claim(TVP, "Whether they form depends on format, depth and length of the prompt.",
          "the same; usable under one condition and surely not under another", "",
          untested("under none of our conditions does a usable vector form")),
    Claim(TVP, "The TVP-loss makes a strong vector at the prescribed layer.",
          f"token offset, every inner layer; each is usable ({HALF})", TOKEN_OFFSET, of_study(2)),
    Claim(TVP, "The same, in natural language.",
          "SmolLM2, rules 1 and 2 of [tvp_language.md](tvp_language.md): half of 6-shot at every prescribed layer,"
          f" {GROUPS['train']}", STUDY, in_language("half", "train")),
    Claim(TVP, "No search for the layer is needed.",
          "token offset; the best layer is the prescribed one in every model with a usable vector", TOKEN_OFFSET,
          of_study(3)),
    Claim(TVP, "Strong vectors in deeper layers improve ICL out of distribution.",
          "token offset; ICL risk under shifts, over that of the ICL loss alone, is below 1 with its whole interval",
          TOKEN_OFFSET, of_study(4)),
    Claim(TVP, "The TVP-loss itself improves robustness and generalization.",
          "the same over a control with as many extra queries", TOKEN_OFFSET, of_study(5)),
    Claim(TVP, "The TVP-loss enhances the vector while ICL performance stays comparable (its Figure 1).",
          f"token offset, the weight, layer and schedule that cost least on other seeds ([tvp_price.md](tvp_price.md));"
          f" a usable vector, and at most {COMPARABLE:g} times the ICL risk of the ICL loss alone, whole intervals",
          PRICE, comparable_icl),
    Claim(TVP, "The same, in natural language.",
          f"SmolLM2, rule 3 of [tvp_language.md](tvp_language.md) at every prescribed layer, {GROUPS['train']}", STUDY,
          in_language("icl", "train")),
    Claim(ATV, "ATV does better than ICL and than other vector methods, on seen and on unseen tasks.",
          "SmolLM2 and the tasks of [atv.md](atv.md); the paired differences from every rival are above 0", "",
          untested("no result over seeds is kept")),
    Claim(ATV, "ATV is at least as expressive as LoRA of equal rank, and more than prefix tuning.",
          "tests in float64, [atv_theory.md](atv_theory.md)", "",
          untested("as statements on single inputs they are proved there, as ones on classes of functions they fail")),
    Claim("Hendel et al. 2023", "The state at the last token of a prompt holds the task, and moves.", SUITE, VECTORS,
          moved("vector")),
    Claim("Todd et al. 2024", "The summed outputs of a few heads hold the task, and move.", SUITE, VECTORS,
          moved("function_vector")),
    Claim("Yang, Cho et al. 2026", "A learned vector does more than an extracted one.",
          "SmolLM2; the paired difference from the state vector is above 0", "",
          untested("learned at two layers, for one seed, by settings that are not theirs")),
    Claim("Dong et al. 2025", "One vector carries only one direction of y = W x.",
          "`configs/tvp_synthetic.py:linear_map`; the directions of the map that it carries", "",
          untested("no model of this task has learned it")),
    *(
        Claim("Wang et al. 2026", "The vector of a prompt is nearly a sum of those of its demonstrations.",
              f"{family}, rule 4 of [additivity.md](additivity.md): weighted by one set of weights, a cosine above"
              f" {ADDITIVE:g} less the means, whole intervals", result, adds_up)
        for family, result in (("token offset", "additivity_token_offset"), ("linear regression", "additivity_linear"))
    ),
    Claim("Wang et al. 2025 (ELICIT); Li et al. 2025 (I2CL)",
          "Retrieved vectors, and weighted summaries of demonstrations, come close to ICL or exceed it.",
          "SmolLM2 and the tasks of [atv.md](atv.md)", "", untested("no result over seeds is kept")),
)  # fmt: skip
"""In the order of the page."""


def table(kept: Callable[[str], Mapping[str, Any] | None]) -> str:
    """The table of the page, as Markdown.

    kept: from the name of a result to it; None: there is none.
    """
    lines = ["| source | claim | test and rule | here | numbers |", "| --- | --- | --- | --- | --- |"]
    for claim in CLAIMS:
        result = kept(claim.result) if claim.result else {"summary": {}}
        verdict, numbers = claim.decide(result["summary"]) if result else (NOT_TESTED, "the run is not complete")
        link = f" ([result](results/{claim.result}.json))" if claim.result and result else ""
        cells = (claim.source, claim.meaning, claim.test, f"**{verdict}**", numbers + link)
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines) + "\n"
