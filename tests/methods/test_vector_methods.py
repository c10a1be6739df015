"""Vectors of tasks: each is what its definition says, computed here in the plainest way on a small random model."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

import tvjax
from tests.conftest import changed, quiet
from tests.experiments.test_atv import model_folder
from tvjax import methods
from tvjax.errors import UserError
from tvjax.experiments.pages import summary_table, write_report
from tvjax.experiments.task_vectors import run as task_vectors
from tvjax.methods import METHODS
from tvjax.methods.in_context_vector import directed
from tvjax.methods.learned_vector import best_epoch
from tvjax.methods.linear_task_vector import fitted, mapped
from tvjax.methods.vector import VectorMethod
from tvjax.nn.model import forward
from tvjax.tasks.suite import suite
from tvjax.tasks.text import Template, TextTask
from tvjax.text.bench import Bench, VectorConfig
from tvjax.vectors.edits import edit_at, merge

NAMES = ("next_letter", "opposite", "capital")
ARROW = Template("", " ->", "\n", "\n")
SETTINGS = {"function_vector": {"heads": 3, "shuffled_prompts": 3}, "linear_task_vector": {"anchors": 9, "shots": 3}}
SETTINGS |= {"distributed_function_vector": SETTINGS["function_vector"], "learned_vector": {"steps": 2, "batch": 2}}
ALL = tuple(name for name, method in METHODS.items() if isinstance(method, VectorMethod))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return model_folder(tmp_path_factory.mktemp("models") / "target", 32, 3, 0)


@pytest.fixture(scope="module")
def model(folder):
    return tvjax.load(folder)


@pytest.fixture(scope="module")
def bench(model):
    tasks = {name: suite()[name] for name in NAMES}
    return Bench(model, VectorConfig(demonstrations=2, prompts=5, questions=6), ARROW, tasks)


def made(bench, name):
    return METHODS[name].vectors(bench, methods.own_settings(SETTINGS)[METHODS[name].group]).vectors


def state(model, text):
    """h^0..h^L at the last token of a text, alone and without padding: ``[L+1, D]``."""
    found = tvjax.capture(model, [text], ["embed", "blocks/resid"], positions="last")
    return np.concatenate([found["embed"][None], found["blocks/resid"]])[:, 0, 0]


def test_distributed_over_layers_sums_to_the_function_vector(bench):
    for name in NAMES:
        parts, whole = made(bench, "distributed_function_vector")[name], made(bench, "function_vector")[name]
        np.testing.assert_allclose(parts.sum(0), whole[0], atol=1e-5)
        assert np.abs(parts).sum() > 0 and not parts[0].any()


@pytest.mark.parametrize("count", [4, 40])
def test_the_map_is_that_of_ridge_regression(count):
    """Its gradient is zero, with fewer states than channels and with more."""
    random = np.random.default_rng(0)
    h, added = random.normal(size=(count, 12)), random.normal(size=(count, 12))
    w = fitted(h, added, 5.0).astype(float)
    np.testing.assert_allclose(h.T @ (h @ w - added) + 5.0 * w, 0, atol=1e-4)


def test_a_map_that_is_there_is_found():
    random = np.random.default_rng(1)
    h, true = random.normal(size=(200, 6)), random.normal(size=(6, 6))
    np.testing.assert_allclose(fitted(h, h @ true, 1e-9), true, atol=1e-5)


def test_the_map_is_added_to_the_last_state(model, bench):
    """The likeliest tokens are those with h^L + scale h^L W written by hand, at the query and behind it."""
    pairs = bench.sample("opposite", "test")
    q, *_ = bench.ask_all(bench.zero_shot(pairs), bench.accepted("opposite", pairs))
    random, layers = np.random.default_rng(0), model.config.num_layers
    map_DD = random.normal(size=(model.config.width,) * 2).astype(np.float32)
    found = np.asarray(mapped(model.bare, jnp.asarray(map_DD), jnp.array([0.0, 0.5]), (q, None)).tokens_BA)
    ids_BT, last_B = np.asarray(q.tokens.ids_BT), np.asarray(q.last_B)
    for row, (ids, last) in enumerate(zip(ids_BT, last_B, strict=True)):
        for place in range(int(np.asarray(q.real_BA)[row].sum())):
            alone = jnp.asarray(ids[None, : last + 1 + place])
            h = tvjax.capture(model, alone, "blocks/resid", layers=layers, positions="last")["blocks/resid"][0, 0, 0]
            for column, scale in enumerate((0.0, 0.5)):
                write = tvjax.add(scale * (h @ map_DD), layers=layers)
                said = int(tvjax.run(model, alone, edits=write)[0, -1].argmax())
                assert found[row, column, place] == said
    assert (found[:, 0] != found[:, 1]).any(), "a map that changes nothing would not tell"


def test_the_direction_of_differences_of_rank_one_is_found_with_its_sign():
    random = np.random.default_rng(0)
    direction, sizes = random.normal(size=(3, 4)), np.array([1.0, 2.0, 0.5])
    found = directed(sizes[:, None, None] * direction)
    np.testing.assert_allclose(found, direction / np.linalg.norm(direction, axis=-1, keepdims=True), atol=1e-6)
    direction[1] = 0
    assert not directed(sizes[:, None, None] * direction)[1].any()


def test_in_context_vectors_lead_from_inputs_to_outputs(model, bench):
    pairs = bench.queries("capital", 5)
    inputs, outputs = (np.stack([state(model, "\n" + pair[side]) for pair in pairs]) for side in (0, 1))
    found, lengths = made(bench, "in_context_vector")["capital"], np.linalg.norm(inputs, axis=-1).mean(0)
    np.testing.assert_allclose(np.linalg.norm(found, axis=-1), lengths, rtol=1e-4)
    flat = (outputs - inputs).reshape(5, -1)
    unit = found / lengths[:, None]
    top = np.linalg.svd(flat)[2][0].reshape(unit.shape)
    cosines = (unit * top).sum(-1) / np.linalg.norm(top, axis=-1)
    np.testing.assert_allclose(np.abs(cosines), 1, atol=1e-3)
    assert len(set(np.sign(cosines))) == 1


def test_a_rescaled_write_turns_a_state_and_keeps_its_length(model):
    texts, layers = ["a ->", "hot ->"], model.config.num_layers
    vector = 3 * np.random.default_rng(0).normal(size=model.config.width)
    plain, turned = (
        np.asarray(tvjax.capture(model, texts, "blocks/resid", layers=2, positions="last", edits=write)["blocks/resid"])
        for write in (None, tvjax.add(vector, layers=2, rescaled=True))
    )
    np.testing.assert_allclose(np.linalg.norm(turned, axis=-1), np.linalg.norm(plain, axis=-1), rtol=1e-5)
    sums = plain + vector
    np.testing.assert_allclose(
        turned,
        sums * np.linalg.norm(plain, axis=-1, keepdims=True) / np.linalg.norm(sums, axis=-1, keepdims=True),
        rtol=1e-4,
    )
    assert layers == 3


def test_two_writes_of_which_one_is_rescaled_are_refused(model):
    writes = [tvjax.add(np.ones(32), layers=1), tvjax.add(np.ones(32), layers=2, rescaled=True)]
    with pytest.raises(UserError, match="rescaled"):
        tvjax.run(model, ["a ->"], edits=writes)
    tree = edit_at("embed", jnp.ones((1, 1, 32)), keep=1.0, rescaled=True)
    with pytest.raises(UserError, match="rescaled"):
        merge(tree, tree)
    ids = jnp.array([[1, 2, 3]])
    assert not np.allclose(forward(model, ids, edits=tree)[0], forward(model, ids)[0])


def test_contrastive_vectors_are_right_less_wrong(model, bench):
    pairs, total = bench.queries("opposite", 5), 0.0
    accepted = bench.accepted("opposite", pairs)
    for i, (x, y) in enumerate(pairs):
        wrong = next(other for _, other in pairs[i + 1 :] + pairs[:i] if other not in accepted[i])
        total = total + state(model, f"\n{x} -> {y}") - state(model, f"\n{x} -> {wrong}")
    np.testing.assert_allclose(made(bench, "contrastive")["opposite"], total / 5, atol=1e-4)


def test_a_contrast_needs_a_wrong_answer(model, bench):
    """Of a single query it is one of the train split; a task of one answer has none, and that is said in one line."""
    one = Bench(model, VectorConfig(demonstrations=2, prompts=1, questions=6), ARROW, bench.tasks)
    ((x, y),) = one.queries("opposite", 1)
    wrong = next(other for _, other in bench.tasks["opposite"].split("train") if other != y)
    expected = state(model, f"\n{x} -> {y}") - state(model, f"\n{x} -> {wrong}")
    np.testing.assert_allclose(made(one, "contrastive")["opposite"], expected, atol=1e-4)
    assert np.abs(expected).max() > 1e-2
    constant = TextTask("constant", tuple((x, "cold") for x, _ in bench.tasks["opposite"].pairs))
    alike = Bench(model, VectorConfig(demonstrations=2, prompts=5, questions=6), ARROW, {"constant": constant})
    with pytest.raises(UserError, match=r"config.data.tasks: given 'constant, where no answer is wrong") as said:
        made(alike, "contrastive")
    assert "\n" not in str(said.value)


def test_principal_directions_are_of_what_demonstrations_change(model, bench):
    pairs = bench.queries("capital", 5)
    prompts = bench.few_shot("capital", pairs), bench.zero_shot(pairs)
    led, bare = (np.stack([state(model, text) for text in texts]) for texts in prompts)
    found, differences = made(bench, "principal")["capital"], led - bare
    for layer in (1, 3):
        top = np.linalg.svd(differences[:, layer])[2][0]
        expected = (
            top * np.sign(differences[:, layer].mean(0) @ top) * np.linalg.norm(differences[:, layer], axis=-1).mean()
        )
        np.testing.assert_allclose(found[layer], expected, atol=1e-3)


def test_several_vectors_stand_at_each_arrow_of_the_k_shot_prompt(model, bench):
    """Held against the same writes by hand, prompt by prompt; a write at the last arrow alone says something else."""
    method, vectors = METHODS["several_vectors"], made(bench, "several_vectors")["opposite"]
    np.testing.assert_array_equal(vectors, made(bench, "vector")["opposite"])
    layers, scales, encode = [1, 3], (1.0, 2.0), model.source.tokenizer.encode
    found = method.measured(bench, "opposite", vectors, layers, scales)
    swept = method.swept(bench, "opposite", "test", vectors, layers, scales)
    np.testing.assert_array_equal(found.first, swept.first)
    pairs = bench.sample("opposite", "test")
    for number, ((_, y), prompt) in enumerate(zip(pairs[:2], bench.few_shot("opposite", pairs)[:2], strict=True)):
        (ids,) = encode([prompt])
        before = [encode([prompt[: at + len(" ->")]])[0] for at in range(len(prompt)) if prompt[at:].startswith(" ->")]
        marks = [len(some) - 1 for some in before]
        assert len(marks) == 3 and all(ids[: len(some)] == some for some in before)
        plain = log_softmax(tvjax.run(model, [prompt], last=True)[0, 0])
        first = encode([f"{prompt} {y}"])[0][len(ids)]
        for row, layer in enumerate(layers):
            for column, scale in enumerate(scales):
                writes = [tvjax.replace(scale * vectors[layer], layers=layer, positions=at) for at in (marks, "last")]
                here, last = (log_softmax(tvjax.run(model, [prompt], edits=one, last=True)[0, 0]) for one in writes)
                distance = (np.exp(plain) * (plain - here)).sum()
                np.testing.assert_allclose(found.d_ntp[number, row, column], distance, rtol=1e-3, atol=1e-5)
                assert found.first[number, row, column] == (here.argmax() == first)
                assert layer == 3 or np.abs(here - last).max() > 1e-3


def log_softmax(logits):
    logits = np.asarray(logits, np.float64)
    return logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())


def test_controls_know_less(model, bench):
    states = {name: bench.shown(name)["states"] for name in NAMES}
    others = made(bench, "mean_of_tasks")
    np.testing.assert_allclose(others["opposite"], (states["next_letter"] + states["capital"]) / 2, rtol=1e-6)
    pairs = bench.queries("capital", 5)
    alone = np.mean([state(model, f"\n{x} -> {y}") for x, y in pairs], 0)
    np.testing.assert_allclose(made(bench, "mean_of_demonstrations")["capital"], alone, atol=1e-4)


@pytest.mark.parametrize(
    ("accuracies", "patience", "epoch"),
    [([0.1, 0.5, 0.5, 0.4], 0, 1), ([0.1, 0.5, 0.4, 0.4, 0.9], 2, 1), ([0.1, 0.5, 0.4, 0.4, 0.9], 3, 4), ([0.0], 2, 0)],
)
def test_the_epoch_is_the_first_of_the_best_within_patience(accuracies, patience, epoch):
    assert best_epoch(np.array(accuracies), patience) == epoch


def test_all_methods_are_measured_on_one_bench(folder, tmp_path):
    """By the config that names them all, on the small model of this file."""
    pytest.importorskip("ml_collections")
    from tests.experiments.test_configs import read

    few = {"demonstrations": 2, "prompts": 2, "questions": 4}
    by_gradient = {**SETTINGS["function_vector"], "chosen_by": "gradient"}
    own = SETTINGS | {"function_vector": by_gradient, "distributed_function_vector": by_gradient}
    config = read("task_vectors_hf.py:all", f"--config.model.path={folder}")
    config = {**config, "data": {"tasks": ("double", "digits")}, "vectors": few, **own}
    assert config["methods"] == ALL and len(ALL) >= 10
    summary = task_vectors.run(config, tmp_path / "run", "train", quiet)
    assert [method["name"] for method in summary["methods"]] == list(ALL)
    for entry in summary["tasks"].values():
        assert all(0 <= entry[name] <= 1 for name in ALL)
        assert entry["linear_task_vector_layer"] == 3 and entry["in_context_vector_layer"] is None
    vectors, about = tvjax.load_vectors(tmp_path / "run" / "vectors" / "digits.safetensors")
    assert set(vectors) == set(ALL) - {"linear_task_vector"} and about["in_context_vector.rescaled"] is True
    page, table = write_report(tmp_path / "run").read_text(), summary_table(summary)
    assert all(METHODS[name].label in page for name in ALL) and "linear task vector" in table
    side_by_side(summary, tmp_path / "run", page, table)
    with pytest.raises(UserError, match="a divisor of steps = 2"):
        task_vectors.run(changed(config, learned_vector__epochs=4), tmp_path / "bad", "train", quiet)


def side_by_side(summary, folder, page, table):
    """What is said of all methods side by side: means of what is said by task, costs, times, and others' numbers."""
    mean, tasks, kinds = summary["mean"], summary["tasks"].values(), set(summary["cost"])
    assert kinds == {*ALL, "zero_shot", "few_shot", "shuffled_shot", "shuffled_vector"}
    assert mean["few_shot_d_ntp"] == pytest.approx(0, abs=1e-5) and mean["zero_shot_d_ntp"] > 1e-3
    assert any(e["rivals"] for e in tasks)
    for kind in kinds:
        assert mean[f"{kind}_d_ntp"] == pytest.approx(np.mean([e[f"{kind}_d_ntp"] for e in tasks]))
        margins = [e[f"{kind}_margin"] for e in tasks if e["rivals"]]
        assert mean[f"{kind}_margin"] == pytest.approx(np.mean(margins)) and abs(mean[f"{kind}_margin"]) <= 1
        for suffix in ("", "_first"):
            gap = mean[f"{kind}{suffix}"] - mean[f"few_shot{suffix}"]
            assert mean[f"{kind}{suffix}_less_few_shot"] == pytest.approx(gap)
        assert f"<td>{mean[f'{kind}_d_ntp']:.2f} <small>" in page and f"  {mean[f'{kind}_d_ntp']:.2f} [" in table
    cost = summary["cost"]
    assert cost["vector"]["make_flops"] == cost["mean_of_tasks"]["make_flops"] < cost["function_vector"]["make_flops"]
    assert cost["linear_task_vector"]["query_flops"] == cost["zero_shot"]["query_flops"] + 2 * 32**2
    assert cost["learned_vector"]["trainable_parameters"] == 2 * 32 and cost["zero_shot"]["make_flops"] == 0
    times = json.loads((folder / "eval" / "timing.json").read_text())
    assert set(times) == kinds and all(one["query_ms"] > 0 for one in times.values())
    assert "seconds to make" in page and "Published elsewhere" in page and "Not ours" in page
    assert all(f"<td>{value}</td>" in page for value in ("90.8", "91.5", "91.0", "77.7", "75.8", "48.2"))
