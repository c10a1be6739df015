"""What has not been learned is said first, is compared with nothing, and no layer of it is called best."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.report.conftest import EIGHT, LAYERS, PAIR, SHIFTS, edit_summary, interval, summary_tree, twins, write_run
from tests.report.test_report_of_probes import add_probes
from tvjax.experiments.atv import report as adaptive
from tvjax.experiments.atv_tvp import report as atv_tvp
from tvjax.experiments.pages import summary_table, write_report
from tvjax.experiments.task_vectors import report as task_vectors
from tvjax.experiments.text_model import report as text_model_page
from tvjax.experiments.tvp.report.findings import headline, robustness
from tvjax.experiments.tvp.report.gallery import gallery
from tvjax.experiments.tvp.report.looks import looks
from tvjax.experiments.tvp.report.probes import SWAP
from tvjax.experiments.tvp.report.reader import TVPRun
from tvjax.experiments.tvp.report.summary import parse_summary
from tvjax.experiments.tvp_language import report as language
from tvjax.report.reader import read_run

PLAIN, TRAINED = "ICL loss only", "ICL + 1 × TVP-loss at layer 2"  # noqa: RUF001
Tree = dict[str, Any]


def unlearned(tree: Tree, *members: int, share: float = 1.0) -> None:
    """Let members answer as the prior does, with demonstrations and with vectors, under every shift."""
    for part in (tree, *tree["shifts"].values()):
        for place in members:
            entry = part["members"][place]
            entry |= twins("icl_risk", [share * part["prior_risk"]] * len(entry["icl_risk"]))
            entry |= twins("tvp_risk_by_layer", [1.3 * part["prior_risk"]] * (LAYERS + 1))


def told(members: list[tuple[str, int, float, int]], *failed: int, **changes: Any) -> list[str]:
    tree = summary_tree(members, tokens=False)
    unlearned(tree, *failed)
    return headline(parse_summary(tree | changes))


class TestHeadline:
    def test_where_nothing_was_learned_it_says_that_and_no_more(self) -> None:
        first, second, last = told(PAIR, 0, 1)
        assert first.startswith(f"{PLAIN} has not learned the task: ICL risk at K = 16 is 1.00")
        assert second.startswith(f"{TRAINED} has not learned the task")
        assert last == "There is nothing to read of task vectors here, and nothing to compare."

    @pytest.mark.parametrize(("failed", "name"), [(0, PLAIN), (1, TRAINED)])
    def test_one_member_that_failed_comes_first_and_is_not_compared(self, failed: int, name: str) -> None:
        sentences = told(PAIR, failed)
        assert sentences[0].startswith(f"{name} has not learned the task")
        assert "cannot be said: task not learned" in sentences[1]
        text = " ".join(sentences)
        assert "ICL is not compared: with" in text
        assert not any(word in text for word in ("It cost", "It helped", "rose", "fell", "made no"))

    def test_the_member_that_learned_is_still_read(self) -> None:
        assert f"{TRAINED} made a usable vector there: TVP risk is 0.128" in " ".join(told(PAIR, 0))

    def test_of_seeds_those_that_learned_are_counted(self) -> None:
        text = " ".join(told(EIGHT, 1, 6))
        assert text.startswith(f"{PLAIN} learned the task in 3 of 4 seeds")
        assert "emerged in 0 of 3 seeds that learned the task" in text
        assert "made a usable vector there in 3 of 3 seeds that learned the task" in text
        assert "ICL is not compared: the task was learned in 3 of 4 seeds with it and in 3 of 4 seeds without" in text

    @pytest.mark.parametrize("weight", [0.0, 1.0])
    def test_a_single_member_that_failed(self, weight: float) -> None:
        sentences = told([("only", 0, weight, 2)], 0)
        assert "has not learned the task" in sentences[0] and "nothing to read" in sentences[1] and len(sentences) == 2

    def test_a_little_is_said_to_be_little(self) -> None:
        tree = summary_tree(PAIR, tokens=False)
        unlearned(tree, 0, share=0.8)
        assert headline(parse_summary(tree))[0].startswith(f"{PLAIN} has learned little of the task")

    def test_where_all_learned_nothing_comes_before_the_result(self) -> None:
        assert told(PAIR)[0].startswith("With the ICL loss alone")

    def test_what_tvp_loss_did_not_reach_comes_before_what_emerged(self) -> None:
        tree = summary_tree(PAIR, tokens=False)
        for member, risk in zip(tree["members"], (0.1, 1.5), strict=True):
            member["tvp_risk_by_layer"][2], member["tvp_risk_by_layer_ci"][2] = risk, interval(risk)
        sentences = headline(parse_summary(tree))
        assert f"{TRAINED} made no vector there" in sentences[0] and "a usable task vector emerged" in sentences[-1]

    def test_settings_that_failed_are_named_before_the_best(self) -> None:
        four = [("icl", 0, 0.0, 2), *((f"l{layer}", 0, 1.0, layer) for layer in (1, 2, 3))]
        text = " ".join(told(four, 2))
        assert (
            f"Of 3 settings with TVP-loss, 1 did not make a usable vector at their layer in every seed: {TRAINED}"
            in text
        )

    def test_members_that_are_one_model_are_named_first(self) -> None:
        sentences = told(PAIR, identical_members=[["icl", "tvp"]])
        assert sentences[0] == "icl and tvp ended as one model, bit for bit: do not compare them."
        assert "They are one model, and so there is no cost to tell." in sentences

    def test_an_added_vector_in_layout_xy_is_no_failure_by_construction(self) -> None:
        assert not any("cannot work" in text for text in told(PAIR, layout="xy", edit="add"))
        (first, *_) = told(PAIR, layout="xy", edit="replace")
        assert "TVP cannot work" in first


class TestPageAndTable:
    @pytest.fixture
    def run_dir(self, tmp_path: Path) -> Path:
        """Of two members the one with TVP-loss has not learned; the probes of both are there."""
        path = write_run(tmp_path / "run", PAIR)
        edit_summary(path, lambda tree: (unlearned(tree, 1), add_probes(tree)))
        return path

    def test_no_layer_is_called_best_where_none_works(self, run_dir: Path, undrawn: None) -> None:
        page = write_report(run_dir).read_text()
        assert page.count("none works: ") == 2 and "<td>layer 2: 1.33" in page
        assert page.index("has not learned the task") < page.index('<h2 id="results">')
        assert f"{TRAINED} (task not learned)" in page

    def test_the_table_says_it_first(self, run_dir: Path) -> None:
        tree = json.loads((run_dir / "eval" / "summary.json").read_text())
        table = summary_table(tree)
        rows = [" ".join(row.split()) for row in table.splitlines()]
        assert max(map(len, table.splitlines())) <= 80
        assert rows[2] == f"2 {TRAINED} (task not learned)"
        assert rows[3].startswith(f"{TRAINED} has not learned the task") and table.index("risk: ") > table.index(
            "not lea"
        )
        assert "2 tvp 1.02 [0.969,1.07] 2: 1.33 [1.26,1.39] none 1.05" in rows

    def test_captions_and_legends_say_it_too(self, run_dir: Path) -> None:
        run = TVPRun.of(read_run(run_dir))
        assert [look.label for look in looks(run.summary)] == [PLAIN, f"{TRAINED} (task not learned)"]
        assert f"{TRAINED}: nothing to read, task not learned." in robustness(run.summary)
        assert f"{PLAIN}: ICL in 8, no vector" in robustness(run.summary)
        assert f"{TRAINED}: nothing to read, task not learned" in SWAP.text(run.summary)
        captions = {exhibit.stem: exhibit.caption for exhibit in gallery(run)}
        assert f"{TRAINED} (task not learned): 1.02" in captions["icl_by_demonstrations"]
        assert f"{PLAIN}: 1.08; {TRAINED} (task not learned): 1.33" in captions["tvp_by_layer"]
        assert not any("{" in caption for caption in captions.values())

    def test_a_shift_is_not_emphasized_for_who_has_not_learned(self, run_dir: Path, undrawn: None) -> None:
        def lucky(tree: Tree) -> None:
            for member in tree["shifts"]["label_noise"]["members"]:
                member["icl_risk"][-1], member["icl_risk_ci"][-1] = 0.5, [0.4, 0.6]

        edit_summary(run_dir, lucky)
        page = write_report(run_dir).read_text()
        row = next(row for row in page.split("<tr>") if ">label_noise<" in row and "Gaussian" in row)
        assert row.count('class="good"') == 1


class TestRounding:
    def test_an_exact_oracle_is_0_wherever_it_is_printed(self, tmp_path: Path) -> None:
        """Squared rounding of float32, as least squares leaves it; a trained member of 1e-9 is not rounding."""
        tree = summary_tree(PAIR, tokens=False)
        for part in (tree, *tree["shifts"].values()):
            part |= twins("oracle_risk", np.full(len(part["oracle_risk"]), 3.9e-14))
        tree["baselines"]["averaging"] |= twins("risk", np.full(17, 4.2e-14))
        tree["members"][0] |= twins("icl_risk", np.full(17, 1e-9))
        table = summary_table(tree)
        rows = [" ".join(row.split()) for row in table.splitlines()]
        assert "oracle 0 [0,0]" in rows and "e-14" not in table and "1.0e-9" in table
        assert all(any(row.startswith(f"{name} 0 ") for row in rows) for name in SHIFTS)
        base = parse_summary(tree).base.risk
        assert (
            base.oracle is not None and not base.oracle.value.any() and not base.baselines["averaging"].icl.high.any()
        )

    def test_a_ratio_to_a_risk_of_0_is_not_said(self) -> None:
        tree = summary_tree(PAIR, tokens=False)
        tree["members"][0] |= twins("icl_risk", np.zeros(17))
        (cost,) = [text for text in headline(parse_summary(tree)) if "It cost ICL" in text]
        assert cost.endswith("rose from 0 to 0.0802.")


def text_model(after: float) -> Tree:
    accuracy = [0.1, after]
    return {
        "experiment": "text_model",
        "num_layers": 2,
        "num_demonstrations": 1,
        "num_prompts": 64,
        "tasks": {"a": 5},
        **twins("accuracy", accuracy),
        **twins("risk", [3.0, 2.0]),
    }


def method(name: str, label: str, kind: str, knows: str) -> Tree:
    return {"name": name, "label": label, "kind": kind, "knows": knows, "source": f"{label}: they."}


VECTORS = [method(name, name.replace("_", " "), "vectors", "task") for name in ("vector", "function_vector")]
KNOWN = {
    "zero_shot": method("zero_shot", "zero-shot", "prompts", "query"),
    "few_shot": method("few_shot", "{k}-shot", "prompts", "demonstrations"),
    "atv_last": method("atv_last", "ATV, last token", "atv", "query"),
}
MEASURED = [*task_vectors.SHOTS, *(m["name"] for m in VECTORS), *task_vectors.CONTROL]


def text_vectors(**few_shot: float) -> Tree:
    def entry(shots: float) -> Tree:
        values = dict.fromkeys(MEASURED, 0.1) | {"few_shot": shots, "vector": shots}
        found = {
            k: v for name, value in values.items() for n in (name, f"{name}_first") for k, v in twins(n, value).items()
        }
        for kind in (m["name"] for m in VECTORS):
            found |= {f"{kind}_layer": 2, f"{kind}_scale": 1.0, f"{kind}_works": kind == "vector" and shots > 0.1}
        return found

    tasks = {name: entry(shots) for name, shots in few_shot.items()}
    mean = dict.fromkeys([n for name in MEASURED for n in (name, f"{name}_first")], 0.3)
    return {"experiment": "task_vectors", "num_layers": 3, "num_demonstrations": 4, "num_prompts": 6} | {
        "tasks": tasks,
        "mean": mean,
        "methods": VECTORS,
        "query_first": False,
    }


def adapted(seen: dict[str, float]) -> Tree:
    """Methods by accuracy on the seen tasks."""
    methods = [
        KNOWN[name]
        | {"trainable_parameters": 0, "tokens_per_query": 3.0, "generator_tokens_per_query": 0.0}
        | twins("seen_mean", value)
        | twins("seen_mean_first", value)
        for name, value in seen.items()
    ]
    differences = {
        "atv_last": {n: twins("seen", v) | twins("seen_first", v) for n, v in seen.items() if n != "atv_last"}
    }
    return {
        "num_demonstrations": 4,
        "num_seeds": 3,
        "query_first": [],
        "chance": {},
        "tasks": {"seen": ["a"], "ambiguous": [], "unseen": []},
        "methods": methods,
        "differences": differences,
    }


def tuned(vector: float, few_shot: float) -> Tree:
    """Two members whose vectors and k-shot answers are so accurate, beside zero-shot answers of 0.1."""
    kinds = {"zero_shot": 0.1, "single_vector": vector, "vector": vector, "best_vector": vector, "few_shot": few_shot}
    means = {k: v for name, value in kinds.items() for k, v in twins(name, value).items()}
    members = [
        {"name": name, "tvp_weight": weight, "prescribed_layer": 1, "means": {"train": means, "heldout": means}}
        for name, weight in (("base", None), ("icl", 0.0), ("tvp", 1.0))
    ]
    gap = {k: v for name in kinds for k, v in {name: 0.2, f"{name}_ci": [0.1, 0.3]}.items()}
    return {
        "num_demonstrations": 4,
        "num_prompts": 6,
        "num_layers": 3,
        "steps": 10,
        "model": {"path": "m", "model_type": "llama"},
        "tasks": {"train": ["a"], "heldout": ["b"]},
        "members": members,
        "differences": [{"of": "tvp", "minus": "icl", "train": gap, "heldout": gap}],
    }


def written(theta: float, risk: float) -> Tree:
    """One writer of this risk, on a target whose theta has that one; the prior has 1."""
    shares = {k: v for name in atv_tvp.SHARES for k, v in twins(name, 0.2).items()}
    member = {"name": "w", "seed": 0, **twins("written_risk", [1.0, risk]), **twins("shuffled_risk", [1.0, 1.0])}
    member |= {**twins("risk_minus_theta", [0.0, risk - theta]), "task_r2": {"w": 0.1}, "task_r2_ci": {"w": [0.0, 0.2]}}
    return {
        "task": "linear",
        "layout": "xzy",
        "prescribed_layer": 1,
        "num_layers": 2,
        "num_demonstrations": 1,
        "num_prompts": 8,
        "objective": "risk",
        "risk_unit": "squared error",
        "members": [member | shares],
        "theta_task_r2": {"w": 0.1},
        "theta_task_r2_ci": {"w": [0.0, 0.2]},
        **twins("theta_risk", [1.0, theta]),
        **twins("prior_risk", 1.0),
        **twins("zero_shot_risk", 1.0),
        **twins("oracle_risk", [1.0, 3e-14]),
        **twins("theta_explained_by_task", 0.1),
    }


class TestText:
    def test_a_small_model_that_learned_nothing(self) -> None:
        table = text_model_page.PAGE.text(text_model(0.1))
        assert "has not learned the tasks" in table.splitlines()[1]
        assert "not learned" not in text_model_page.PAGE.text(text_model(0.6))

    def test_tasks_that_demonstrations_do_not_help_with(self) -> None:
        lines = task_vectors.PAGE.text(text_vectors(works=0.8, fails=0.1)).splitlines()
        assert lines[1].startswith("Not learned in context: on fails 4-shot accuracy is not clearly above zero-shot")
        rows = {line.split()[0]: line for line in lines[2:] if line.split()}
        assert "0.80 0.80 at 2" in rows["works"] and " at " not in rows["fails"] and "none works" in rows["fails"]
        assert "on any task" in task_vectors.PAGE.text(text_vectors(a=0.1, b=0.1))
        assert "Not learned" not in task_vectors.PAGE.text(text_vectors(a=0.8))

    def test_the_scale_of_a_vector_that_does_not_work(self) -> None:
        tree = text_vectors(fails=0.1)
        tree["tasks"]["fails"] |= {"function_vector_scale": 4.0}
        (row,) = [line for line in task_vectors.PAGE.text(tree).splitlines() if line.startswith("fails ")]
        assert row.count("none works, x4") == 1 and row.count("none works") == len(VECTORS)

    def test_where_a_vector_is_written_that_is_not_written_as_the_others(self) -> None:
        tree, ends = (
            text_vectors(works=0.8),
            {"last": "every layer.", "all": "every layer and all tokens, the answer's too."},
        )
        assert task_vectors._methods(tree).caption.endswith("the others follow on it.")
        for positions, end in ends.items():
            own = VECTORS[-1] | {"everywhere": True, "positions": positions}
            caption = task_vectors._methods(tree | {"methods": [*VECTORS[:-1], own]}).caption
            assert caption.endswith(f"follow on it. Otherwise: {own['label']}, added at {end}")

    def test_queries_in_the_first_token_are_warned_of(self) -> None:
        told = task_vectors.cautions(text_vectors(a=0.8) | {"query_first": True})
        assert len(told) == 1 and "attention sinks" in told[0] and "config.template.start" in told[0]
        assert task_vectors.cautions(text_vectors(a=0.8)) == []

    def test_the_table_of_task_vectors_on_the_page(self) -> None:
        tree = text_vectors(works=0.8, fails=0.1) | {"model": {"path": "m", "model_type": "gpt2"}, "conflicts": []}
        for entry in tree["tasks"].values():
            entry |= {"pairs": {"test": 9}, "words": ["a"]}
        parts = "".join(task_vectors._tables(tree))
        assert parts.index("Not learned in context") < parts.index("<h2>Results") and parts.count("<br>at 2<") == 1

    def test_atv_where_nothing_works(self) -> None:
        tree = adapted({"zero_shot": 0.2, "few_shot": 0.2, "atv_last": 0.15})
        assert "no method is clearly above 0.20" in adaptive.PAGE.text(tree).splitlines()[1]
        assert "neither works" in adaptive._differences(tree)
        tree = adapted({"zero_shot": 0.2, "few_shot": 0.6, "atv_last": 0.2})
        assert "ATV, last token is not clearly above 0.20" in adaptive.PAGE.text(tree).splitlines()[1]
        assert "neither works" not in adaptive._differences(tree)
        assert adaptive.cautions(adapted({"zero_shot": 0.2, "few_shot": 0.6, "atv_last": 0.5})) == []

    def test_queries_in_the_first_token_are_warned_of_in_atv(self) -> None:
        tree = adapted({"zero_shot": 0.2, "few_shot": 0.6, "atv_last": 0.5}) | {"query_first": ["target", "generator"]}
        (told,) = adaptive.cautions(tree)
        assert "the target and the generator read" in told and "attention sinks" in told and "config.templates" in told
        assert adaptive.PAGE.text(tree).splitlines()[1] == told

    def test_guessing_is_the_mark_where_tasks_share_their_inputs(self) -> None:
        tree = adapted({"zero_shot": 0.1, "atv_last": 0.5})
        for method in tree["methods"]:
            method |= {"ambiguous_mean": method["seen_mean"], "ambiguous_mean_ci": method["seen_mean_ci"]}
        tree |= {"tasks": {"seen": [], "ambiguous": ["a", "b"], "unseen": []}, "chance": {"a": 0.5, "b": 0.5}}
        assert "no method is clearly above 0.50" in adaptive.cautions(tree)[0]

    def test_the_tvp_loss_on_text_where_nothing_was_learned(self) -> None:
        sentences = language.headline(tuned(vector=0.1, few_shot=0.1))
        assert sentences[0].startswith("On train tasks no model learns in context")
        assert not any("better" in text and "neither" not in text for text in sentences[:-1])
        assert "On train tasks the vector of neither tvp nor icl is clearly above zero-shot." in sentences
        table = language.PAGE.text(tuned(vector=0.1, few_shot=0.1))
        assert table.index("no model learns") < table.index("accuracy on the test split")

    def test_the_tvp_loss_on_text_where_it_was(self) -> None:
        text = " ".join(language.headline(tuned(vector=0.6, few_shot=0.8)))
        assert "learns in context" not in text and "the vector of tvp is better than that of icl" in text

    @pytest.mark.parametrize(
        ("theta", "risk", "first", "less"),
        [
            (1.0, 1.0, "The target holds no vector that works", "neither works"),
            (0.1, 1.0, "Of 1 writers 1 wrote no vector that works (seed 0)", "0.900"),
            (0.1, 0.2, "", "0.100"),
        ],
    )
    def test_written_vectors(self, theta: float, risk: float, first: str, less: str) -> None:
        tree = written(theta, risk)
        assert (atv_tvp.cautions(tree) or [""])[0].startswith(first) and bool(first) == bool(atv_tvp.cautions(tree))
        table = atv_tvp.PAGE.text(tree)
        row = next(line for line in table.splitlines() if line.startswith("written"))
        assert less in row and "oracle" in table and "e-14" not in table


def test_a_run_of_before_means_had_names_of_their_own_is_drawn(pair_dir: Path) -> None:
    before = TVPRun.of(read_run(pair_dir)).metrics
    path = pair_dir / "metrics.jsonl"
    old = {"icl_loss": "icl_risk", "tvp_loss": "tvp_risk"}
    content = path.read_text()
    for new, name in old.items():
        content = content.replace(f'"{new}"', f'"{name}"')
    path.write_text(content)
    for one, other in zip(before, TVPRun.of(read_run(pair_dir)).metrics, strict=True):
        for name in old:
            np.testing.assert_array_equal(one.get(name), other.get(name))
            assert one.get(name)[0].size > 0


def test_numbers_that_are_null_leave_the_others(pair_dir: Path, undrawn: None) -> None:
    path = pair_dir / "metrics.jsonl"
    with path.open("a") as log:
        log.write('{"step": 4500, "member": "icl", "icl_loss": null, "eval_tvp_risk_by_layer": [1, null, 1, 1, 1]}\n')
    metrics = TVPRun.of(read_run(pair_dir)).metrics[0]
    assert 4500 not in metrics.get("icl_loss")[0]
    assert np.isnan(metrics.get("eval_tvp_risk_by_layer")[1][-1, 1])
    assert write_report(pair_dir).is_file()
