"""What is measured of answers, against the plain logits of a small random model; and what making and asking costs."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

import tvjax
from tests.experiments.test_atv import model_folder
from tests.methods.test_vector_methods import ARROW, SETTINGS
from tvjax import methods
from tvjax.methods import METHODS
from tvjax.methods.base import pass_flops
from tvjax.tasks.suite import suite
from tvjax.tasks.text import TextTask
from tvjax.text.bench import Bench, VectorConfig
from tvjax.text.measures import k_shot, measured, reference

QUESTIONS = 6
PLAIN = suite()
TASKS = {name: PLAIN[name] for name in ("next_letter", "digits", "double", "opposite")}
"""digits and double have the same inputs. Of every other input of digits a second answer is right too."""
TASKS["digits"] = TextTask("digits", (*TASKS["digits"].pairs, *((x, "many") for x, _ in TASKS["digits"].pairs[::2])))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tvjax.load(model_folder(tmp_path_factory.mktemp("models") / "target", 32, 3, 0))


def bench_of(model):
    return Bench(model, VectorConfig(demonstrations=2, prompts=3, questions=QUESTIONS), ARROW, TASKS)


@pytest.fixture(scope="module")
def bench(model):
    return bench_of(model)


def log_chances(model, prompt, edits=None):
    """log p of the token behind a prompt, alone and without padding, in float64."""
    logits = np.asarray(tvjax.run(model, [prompt], edits=edits, last=True)[0, 0], np.float64)
    return logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())


def begun(model, prompt, answers):
    """The token behind a prompt with which each of some answers begins."""
    ids = model.source.tokenizer.encode([prompt, *(f"{prompt} {y}" for y in answers)])
    return {one[len(ids[0])] for one in ids[1:]}


def expected(bench, name, prompts, edits=None):
    """d_NTP and identity margin of each question, in the plainest way."""
    model, pairs = bench.model, bench.sample(name, "test")
    rows = []
    for (x, _), shown, prompt in zip(pairs, bench.few_shot(name, pairs), prompts, strict=True):
        p, q = log_chances(model, shown), log_chances(model, prompt, edits)
        own = begun(model, f"\n{x} ->", TASKS[name].answers[x])
        theirs = [begun(model, f"\n{x} ->", task.answers[x]) for task in TASKS.values() if x in task.answers]
        rivals = set().union(*theirs) - own
        greatest = lambda tokens, q=q: max(np.exp(q[token]) for token in tokens)
        rows.append(((np.exp(p) * (p - q)).sum(), greatest(own) - greatest(rivals) if rivals else np.nan))
    return np.array(rows).T


def same(found, oracle):
    np.testing.assert_allclose(found.d_ntp, oracle[0], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(found.margin, oracle[1], atol=1e-5)


@pytest.mark.parametrize("name", TASKS)
class TestPrompts:
    def test_of_k_shot_itself_the_distance_is_0(self, name, bench):
        found = k_shot(bench, name)
        np.testing.assert_allclose(found.d_ntp, 0, atol=1e-5)
        same(found, expected(bench, name, bench.few_shot(name, bench.sample(name, "test"))))

    def test_others_are_held_against_the_k_shot_prompt_of_their_question(self, name, bench):
        pairs = bench.sample(name, "test")
        for prompts in (bench.zero_shot(pairs), bench.few_shot(name, pairs, shuffled=True)):
            found = measured(bench, name, prompts)
            same(found, expected(bench, name, prompts))
            right = bench.plain(prompts, bench.accepted(name, pairs))
            np.testing.assert_array_equal(found.first, right.first)
            np.testing.assert_array_equal(found.whole, right.whole)
        assert found.d_ntp.max() > 0.01, "shuffled labels are another prompt"


def test_margins_are_where_another_task_says_otherwise(bench):
    """next_letter has an input alone; digits and double share theirs, but not all first tokens differ."""
    alone, shared = k_shot(bench, "opposite").margin, k_shot(bench, "double").margin
    assert np.isnan(alone).all() and not np.isnan(shared).all()


def test_k_shot_prompts_are_read_once(bench, monkeypatch):
    pairs = bench.sample("double", "test")
    known = k_shot(bench, "double")
    monkeypatch.setattr(bench, "batches", None)
    assert measured(bench, "double", bench.few_shot("double", pairs)) is known


def test_of_k_shot_a_state_is_kept(bench):
    known = reference(bench, "double")
    assert known.state_BD.shape == (QUESTIONS, 32) and np.isfinite(known.state_BD).all()


WRITES = {"vector": tvjax.replace, "contrastive": tvjax.add}


@pytest.mark.parametrize("kind", ["vector", "contrastive", "distributed_function_vector", "linear_task_vector"])
def test_vectors_are_held_against_k_shot_at_every_layer_and_scale(kind, model, bench):
    method, layers = METHODS[kind], model.config.num_layers
    made = method.vectors(bench, methods.own_settings(SETTINGS)[method.group])
    name, scales = "digits", (1.0, 3.0)
    vectors = made.vectors[name] + (0 if method.stored else 0.05)  # a map that does something
    tried = method.layers(bench, made, name)
    found = method.measured(bench, name, vectors, tried, scales)
    pairs = bench.sample(name, "test")
    assert found.d_ntp.shape == (QUESTIONS, len(tried), 2)
    for (row, layer), (column, scale) in itertools.product(enumerate(tried), enumerate(scales)):
        one = type(found)(*(a[:, row, column] for a in found))
        if layer is None:
            write = tvjax.add(jnp.asarray(scale * vectors[1:])[:, None], layers=[1, 2, 3])
            same(one, expected(bench, name, bench.zero_shot(pairs), write))
        elif kind == "linear_task_vector":
            bare = bench.states(bench.zero_shot(pairs))[:, -1]
            for i, h_D in enumerate(bare):
                write = tvjax.add(scale * h_D @ vectors, layers=layers)
                oracle = expected(bench, name, bench.zero_shot(pairs), write)
                np.testing.assert_allclose(one.d_ntp[i], oracle[0, i], rtol=1e-3, atol=1e-5)
        else:
            same(one, expected(bench, name, bench.zero_shot(pairs), WRITES[kind](scale * vectors[layer], layers=layer)))
    right = method.swept(bench, name, "test", vectors, tried, scales)
    np.testing.assert_array_equal(found.first, right.first)
    np.testing.assert_array_equal(found.whole, right.whole)


class TestCost:
    def test_what_is_shared_counts_in_full_whoever_is_first(self, model):
        spent = {}
        for names in (("vector", "function_vector"), ("function_vector", "vector")):
            bench, own = bench_of(model), methods.own_settings(SETTINGS)
            for name in names:
                _, cost = bench.cost(lambda b=bench, n=name: METHODS[n].vectors(b, own[METHODS[n].group]))
                spent[names, name] = cost.flops
        for name in ("vector", "function_vector"):
            first, second = (flops for (_, of), flops in spent.items() if of == name)
            assert first == second > 0
        assert spent[names, "function_vector"] > spent[names, "vector"]

    def test_a_pass_is_its_products(self, model):
        """Two operations for each number of a kernel and token, attention's, and the readout of one token."""
        c, tokens = model.config, 7
        kernels = 4 * c.width**2 + 3 * c.width * c.hidden
        by_hand = c.num_layers * (2 * tokens * kernels + 4 * tokens**2 * c.width) + 2 * c.width * c.num_outputs
        assert pass_flops(model, 7.2) == by_hand
