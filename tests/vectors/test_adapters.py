"""What is trained to change a frozen decoder: each begins where it should, and does what its formula says."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tvjax
from tvjax.methods.atv import ATV
from tvjax.methods.i2cl import I2CL
from tvjax.methods.in_context_routing import Routing
from tvjax.methods.lora import LoRA
from tvjax.methods.prefix import Prefix
from tvjax.methods.soft_injection import SoftInjection
from tvjax.methods.static import StaticVectors
from tvjax.methods.stave import Stave
from tvjax.nn.answers import Questions, correct, risk
from tvjax.nn.decoder import Decoder, DecoderConfig
from tvjax.nn.lora import apply_lora, per_rank, sites
from tvjax.nn.model import Model, forward
from tvjax.nn.prefix import past_of_prefix, per_token, start_prefix
from tvjax.nn.tokens import pad
from tvjax.vectors.adapters import Queries
from tvjax.vectors.atv import Expansion, dropped, read_query

CONFIG = DecoderConfig(
    num_layers=3,
    width=16,
    num_heads=4,
    num_kv_heads=2,
    num_outputs=11,
    inputs="tokens",
    vocab_size=11,
    norm="rmsnorm",
    positions="rotary",
    mlp="gated_silu",
    bias=False,
    tied_readout=True,
    unroll=1,
)
SMALL = dataclasses.replace(CONFIG, num_layers=2, width=8, num_heads=2, num_kv_heads=0)
TASKS, LAYERS = 3, (1, 2, 3)
SCALE = jnp.array([0.5, 1.0, 2.0])


@pytest.fixture(scope="module")
def params():
    return Decoder(CONFIG).init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]


@pytest.fixture(scope="module")
def given(params):
    small = Decoder(SMALL).init(jax.random.key(1), jnp.zeros((1, 2), jnp.int32))["params"]
    summaries = {
        n: jax.random.normal(jax.random.key(i), (TASKS + 1, 3, 16)) for i, n in enumerate(("attn_out", "mlp_out"))
    }
    target, words = Model(params, CONFIG), jnp.array([1, 5, 2, 7])
    heads = jax.random.normal(jax.random.key(7), (TASKS + 1, CONFIG.num_layers, CONFIG.num_heads, CONFIG.channels))
    directions = {
        part: jax.random.normal(jax.random.key(8), (CONFIG.num_layers, 2, count, CONFIG.channels))
        for part, count in (("queries", CONFIG.num_heads), ("keys", CONFIG.kv_heads))
    }
    frozen = {"target": target, "generator": small, "summaries": summaries, "words": words, "heads": heads}
    return frozen | {"directions": directions}


@pytest.fixture(scope="module")
def q():
    """Three prompts of unequal lengths, with answers of one and of two tokens."""
    rows, ends = [[1, 2, 3, 4], [5, 6, 7, 8, 9], [3, 1, 2]], [2, 2, 1]
    answers = [[4], [8, 9], [2]]
    answered = pad(answers, side="right", length=2)
    return Questions(pad(rows, side="right"), jnp.array(ends), answered.ids_BT, answered.valid_BT)


@pytest.fixture(scope="module")
def queries():
    tokens = pad([[1, 2, 3], [5, 6, 7, 8], [4]], side="right")
    return Queries(tokens.ids_BT, tokens.positions_BT, tokens.last_B, jnp.array([0, 2, TASKS]))


ADAPTERS = {
    "atv": ATV(CONFIG, SMALL, LAYERS, start="zero"),
    "atv_all": ATV(CONFIG, SMALL, LAYERS, positions="all", start="zero", rank=3, learned_scale=True),
    "atv_of_target": ATV(CONFIG, None, LAYERS, start="zero", below=2),
    "static": StaticVectors(CONFIG, LAYERS, TASKS),
    "lora": LoRA(CONFIG, 2, tuple(sites(CONFIG))),
    "stave": Stave(CONFIG, TASKS, 2),
}


def logits(adapter, params, given, queries, q, key=None):
    made = adapter.read(params, given, queries, SCALE, key)
    change = adapter.change(params, given, made, q)
    return forward(
        change.model,
        q.tokens.ids_BT,
        edits=change.edits,
        past=change.past,
        positions_BT=q.tokens.positions_BT,
    )[0]


def bare(given, q):
    return forward(given["target"], q.tokens.ids_BT, positions_BT=q.tokens.positions_BT)[0]


@pytest.mark.parametrize("name", ADAPTERS)
def test_it_begins_by_changing_nothing_bit_for_bit(name, given, queries, q):
    adapter = ADAPTERS[name]
    params = adapter.init(jax.random.key(3), given)
    np.testing.assert_array_equal(logits(adapter, params, given, queries, q), bare(given, q))


@pytest.mark.parametrize("name", [*ADAPTERS, "i2cl", "prefix", "soft_injection", "in_context_routing"])
def test_every_trained_number_has_a_gradient(name, given, queries, q):
    adapter = {
        **ADAPTERS,
        "i2cl": I2CL(CONFIG, TASKS),
        "prefix": Prefix(CONFIG),
        "soft_injection": SoftInjection(CONFIG, TASKS),
        "in_context_routing": Routing(CONFIG, SMALL, rank=2, hidden=5),
    }[name]
    start = adapter.init(jax.random.key(3), given)
    noise = lambda p: p + 0.1 * jax.random.normal(jax.random.key(p.size), p.shape)
    params = jax.tree.map(noise, start)

    def loss(params):
        made = adapter.read(params, given, queries, SCALE, None)
        change = adapter.change(params, given, made, q)
        return risk(change.model, q, change.edits, change.past).mean()

    for keys, gradient in jax.tree_util.tree_leaves_with_path(jax.grad(loss)(params)):
        assert float(jnp.abs(gradient).max()) > 0, jax.tree_util.keystr(keys)


def moved(model, block):
    """The model with other parameters in one block, from 0."""
    blocks = jax.tree.map(lambda p: p.at[block].add(1.0), model.params["blocks"])
    return model.replace(params=model.params | {"blocks": blocks})


class TestATV:
    def test_the_generator_is_read_at_its_last_token_after_its_final_norm(self, given):
        """Against each query alone, without padding; the norm by its formula."""
        rows = [[1, 2, 3], [5, 6, 7, 8], [4]]
        tokens = pad(rows, side="right")
        u_BS = read_query(Model(given["generator"], SMALL), tokens.ids_BT, tokens.positions_BT, tokens.last_B)
        for u_S, row in zip(u_BS, rows, strict=True):
            found = forward(Model(given["generator"], SMALL), jnp.array([row]), addresses=["blocks/resid"])[1]
            h_S = found["blocks/resid"][-1, 0, -1]
            expected = h_S / jnp.sqrt((h_S**2).mean() + SMALL.norm_epsilon) * given["generator"]["norm"]["scale"]
            np.testing.assert_allclose(u_S, expected, rtol=1e-5, atol=1e-6)

    def test_the_expansion_begins_as_pytorchs_linear_layer(self):
        params = Expansion(5, 40).init(jax.random.key(0), jnp.zeros((1, 25)))["params"]["up"]
        for leaf in params.values():
            assert float(jnp.abs(leaf).max()) <= 1 / 5
            assert abs(float(leaf.std()) - 1 / 5 / 3**0.5) < 0.02  # of a uniform distribution
            assert abs(float(leaf.mean())) < 0.02
        assert params["kernel"].shape == (25, 200)

    @pytest.mark.parametrize("positions", ["last", "all"])
    def test_it_adds_lambda_v_at_its_layers_and_positions(self, positions, given, queries, q):
        """Against a loop over prompts, each alone, written with the notebook's own builders."""
        import tvjax

        adapter = ATV(CONFIG, SMALL, (1, 3), positions=positions)
        params = adapter.init(jax.random.key(5), given)
        scale = jnp.array([0.5, 2.0])
        made = adapter.read(params, given, queries, scale, None)
        change = adapter.change(params, given, made, q)
        ours = forward(given["target"], q.tokens.ids_BT, edits=change.edits, positions_BT=q.tokens.positions_BT)[0]
        u_BS = read_query(Model(params["generator"], SMALL), queries.inputs, queries.positions_BT, queries.last_B)
        up = params["expansion"]["up"]
        for b in range(3):
            v_ND = (u_BS[b] @ up["kernel"] + up["bias"]).reshape(2, 16) * scale[:, None]
            count, last = int(q.tokens.count_B[b]), int(q.last_B[b])
            where = "all" if positions == "all" else [last]
            row = q.tokens.ids_BT[b : b + 1, :count]
            alone = tvjax.run(given["target"], row, edits=tvjax.add(v_ND[:, None], layers=[1, 3], positions=where))
            np.testing.assert_allclose(ours[b, :count], alone[0], rtol=1e-4, atol=1e-5)

    def test_the_targets_own_blocks_stay_as_they_are(self, given, queries):
        """What reads is the state of block `below`, whatever stands above it."""
        adapter = ADAPTERS["atv_of_target"]
        params = jax.tree.map(lambda p: p + 0.1, adapter.init(jax.random.key(3), given))
        assert set(params) == {"expansion"}
        other = moved(given["target"], 2)
        first = adapter.read(params, given, queries, SCALE, None)
        np.testing.assert_array_equal(first, adapter.read(params, {**given, "target": other}, queries, SCALE, None))
        other = moved(given["target"], 1)
        assert (first != adapter.read(params, {**given, "target": other}, queries, SCALE, None)).any()

    def test_dropout_is_on_in_training_alone_and_leaves_the_mean(self, given, queries):
        adapter = dataclasses.replace(ADAPTERS["atv"], dropout=0.3, start="uniform")
        params = adapter.init(jax.random.key(3), given)
        read = lambda key: adapter.read(params, given, queries, SCALE, key)
        np.testing.assert_array_equal(read(None), read(None))
        assert (read(jax.random.key(0)) != read(jax.random.key(1))).any()
        keep = dropped(jax.random.key(0), SMALL, 0.3, 40, 50)["embed"].keep
        assert set(np.unique(keep).round(5)) == {0.0, np.float32(1 / 0.7).round(5)}
        assert abs(float(keep.mean()) - 1) < 0.02


class TestLoRA:
    @pytest.mark.parametrize("name", sites(CONFIG))
    def test_it_adds_a_product_of_its_rank_to_its_site_alone(self, name, params):
        key = jax.random.key(0)
        lora = LoRA(CONFIG, 2, (name,)).init(key, {})
        assert sum(leaf.size for leaf in jax.tree.leaves(lora)) == 2 * per_rank(CONFIG, (name,))
        lora = jax.tree.map(lambda p: p + jax.random.normal(key, p.shape), lora)
        adapted = apply_lora(params, lora)
        for keys, (old, new) in jax.tree_util.tree_leaves_with_path(
            jax.tree.map(lambda a, b: (a, b), params, adapted), is_leaf=lambda x: isinstance(x, tuple)
        ):
            if jax.tree_util.keystr(keys) != f"['blocks']['{name}']['kernel']":
                assert old is new
                continue
            fan_in = lora[name]["down"].shape[1]
            for layer in range(3):
                delta = np.asarray(new[layer] - old[layer], np.float64).reshape(fan_in, -1)
                assert np.linalg.matrix_rank(delta, tol=1e-4) == 2
                expected = lora[name]["down"][layer] @ lora[name]["up"][layer]
                np.testing.assert_allclose(delta, expected, atol=1e-5)


class TestPrefix:
    def test_without_positions_it_is_the_words_before_the_prompt(self, q):
        config = dataclasses.replace(CONFIG, positions="none")
        params = Decoder(config).init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
        words = jnp.array([1, 5, 2, 7])
        prefix = start_prefix(Model(params, config), words)
        assert sum(leaf.size for leaf in jax.tree.leaves(prefix)) == 4 * per_token(config)
        past = past_of_prefix(prefix, config, 3)
        ours = forward(Model(params, config), q.tokens.ids_BT, positions_BT=q.tokens.positions_BT, past=past)[0]
        for b in range(3):
            count = int(q.tokens.count_B[b])
            whole = jnp.concatenate([words, q.tokens.ids_BT[b, :count]])[None]
            np.testing.assert_allclose(
                ours[b, :count], Decoder(config).apply({"params": params}, whole)[0, 4:], atol=1e-5
            )

    def test_questions_are_asked_behind_it(self, given, q):
        past = past_of_prefix(start_prefix(given["target"], given["words"]), CONFIG, 3)
        with_, without = (risk(given["target"], q, past=p) for p in (past, None))
        assert (with_ != without).all()
        assert correct(given["target"], q, past=past).shape == (3,)


def test_soft_injection_puts_a_heads_mean_in_by_its_share(given, queries, q):
    """All of one head, half of another: written one prompt at a time through the public way to write."""
    adapter = SoftInjection(CONFIG, TASKS)
    alpha = jnp.full((TASKS, 3, 4), -50.0).at[:, 1, 2].set(50.0).at[:, 2, 0].set(0.0)
    found = logits(adapter, {"alpha": alpha}, given, queries, q)
    for row, (task, last) in enumerate(zip((0, 2, TASKS), (2, 2, 1), strict=True)):
        ids = q.tokens.ids_BT[row : row + 1, : last + 1]
        means = given["heads"][task]
        writes = [
            tvjax.mix(means[1], layers=2, heads=2, address="blocks/heads", keep=0.0),
            tvjax.mix(means[2], layers=3, heads=0, address="blocks/heads", keep=0.5, scale=0.5),
        ]
        alone = tvjax.run(given["target"], ids, edits=writes)
        np.testing.assert_allclose(found[row, last], alone[0, -1], atol=1e-4)


def test_stave_adds_its_vectors_over_the_roots_of_their_tokens(given, queries, q):
    """The cue's two tokens and those before, written one prompt at a time; with nothing behind the prompt."""
    adapter = Stave(CONFIG, TASKS, 2)
    random = np.random.default_rng(0)
    params = {name: jnp.asarray(random.normal(size=(TASKS, 16)), jnp.float32) for name in ("cue", "rest")}
    found = logits(adapter, params, given, queries, q)
    for row, (task, last) in enumerate(zip((0, 2, None), (2, 2, 1), strict=True)):
        cue, rest = (np.asarray(p.mean(0) if task is None else p[task]) for p in (params["cue"], params["rest"]))
        end = int(q.tokens.valid_BT[row].sum())
        ids = q.tokens.ids_BT[row : row + 1, :end]
        writes = [tvjax.add(cue, layers=0, scale=2**-0.5, positions=[last - 1, last])]
        if last > 1:
            writes.append(tvjax.add(rest, layers=0, positions=[0]))
        alone = tvjax.run(given["target"], ids, edits=writes)
        np.testing.assert_allclose(found[row, :end], alone[0], atol=1e-4)


class TestI2CL:
    def test_one_and_zero_change_nothing(self, given, queries, q):
        adapter = I2CL(CONFIG, TASKS)
        params = jax.tree.map(lambda p: p.at[..., 1].set(0.0), adapter.init(jax.random.key(0), given))
        np.testing.assert_array_equal(logits(adapter, params, given, queries, q), bare(given, q))

    def test_each_layer_weighs_its_own_output_and_its_tasks_summary(self, given, queries, q):
        adapter = I2CL(CONFIG, TASKS)
        params = {n: jax.random.normal(jax.random.key(i), (TASKS, 3, 2)) for i, n in enumerate(("attn_out", "mlp_out"))}
        change = adapter.change(params, given, adapter.read(params, given, queries, SCALE, None), q)
        names = ["blocks/attn_out", "blocks/mlp_out"]
        kwargs = {"positions_BT": q.tokens.positions_BT, "addresses": names}
        found = forward(given["target"], q.tokens.ids_BT, **kwargs)[1]
        edited = forward(given["target"], q.tokens.ids_BT, edits=change.edits, **kwargs)[1]
        weights = params["attn_out"]
        rows = jnp.stack([weights[0], weights[2], weights.mean(0)])  # the last task is beyond those that are trained
        summary = given["summaries"]["attn_out"][jnp.array([0, 2, TASKS])]
        expected = rows[:, 0, 0, None, None] * found[names[0]][0] + rows[:, 0, 1, None, None] * summary[:, :1]
        np.testing.assert_allclose(edited[names[0]][0], expected, atol=1e-5)  # the first layer: nothing before it moved


def test_a_task_beyond_those_that_are_trained_gets_the_mean(given, queries):
    adapter = StaticVectors(CONFIG, LAYERS, TASKS)
    params = {"vectors": jax.random.normal(jax.random.key(0), (TASKS, 3, 16))}
    made = adapter.read(params, given, queries, jnp.ones(3), None)
    table = params["vectors"]
    np.testing.assert_allclose(made, jnp.stack([table[0], table[2], table.mean(0)]), rtol=1e-6)
