"""What must hold of task-vector prompting exactly, whatever the weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tvjax.nn.decoder import PADDING, Decoder, DecoderConfig
from tvjax.nn.model import Model, forward
from tvjax.tasks import LAYOUTS, Linear, TokenOffset
from tvjax.vectors import edits, tvp

L, K, B = 3, 4, 5
TASKS = {"real": Linear(input_width=2), "tokens": TokenOffset()}


@pytest.fixture(scope="module", params=TASKS)
def setting(request):
    """A random model (weights far from their tame initial scale), a task, and a prompt of each layout by name."""
    task = TASKS[request.param]
    config = DecoderConfig(num_layers=L, width=16, num_heads=2, max_positions=32, unroll=1, **task.decoder_inputs())
    decoder = Decoder(config)
    prompts = {name: task.sample(jax.random.key(1), B, K, layout) for name, layout in LAYOUTS.items()}
    params = jax.jit(decoder.init)(jax.random.key(0), prompts["xzy"].inputs)["params"]
    params = jax.tree.map(lambda p: p + 0.3 * jax.random.normal(jax.random.key(p.size), p.shape), params)
    return Model(params, config), task, prompts


def zero_shot_states(model, task, layout, x):
    inputs = task.zero_shot(layout, x)
    out, found = forward(model, inputs, addresses=tvp.STREAM)
    return out[:, layout.offset], tvp.stream_at(found, slice(layout.offset, None))[:, :, 0]


@pytest.mark.parametrize("jitted", [False, True])
def test_its_own_state_written_back_reproduces_the_output_bit_for_bit(setting, jitted):
    model, task, prompts = setting
    layout, x = LAYOUTS["xzy"], prompts["xzy"].x[:, -1]
    run = lambda theta, layer: tvp.prompt_with(model, task, layout, theta, layer, x)
    run = jax.jit(run) if jitted else run
    _, states = zero_shot_states(model, task, layout, x)
    # Both sides are edited programs, so that they differ in values alone: layer 0 with its own state is the reference.
    bare = run(states[0], 0)
    np.testing.assert_allclose(bare, zero_shot_states(model, task, layout, x)[0], rtol=1e-5, atol=1e-5)
    for layer in range(L + 1):
        np.testing.assert_array_equal(run(states[layer], layer), bare, err_msg=f"layer {layer}")


def test_layer_0_carries_no_task(setting):
    model, task, prompts = setting
    other = task.sample(jax.random.key(9), B, K, LAYOUTS["xzy"])
    _, here = tvp.run_prompt(model, prompts["xzy"])
    _, there = tvp.run_prompt(model, other)
    np.testing.assert_array_equal(here[0], there[0])
    assert np.abs(here[1] - there[1]).max() > 1e-2


def test_at_layer_L_the_answer_does_not_see_the_query(setting):
    model, task, prompts = setting
    prompt = prompts["xzy"]
    _, theta = tvp.run_prompt(model, prompt)
    answer = lambda layer, x: tvp.prompt_with(model, task, prompt.layout, theta[layer, :, -1], layer, x)
    first, second = prompt.x[:, 0], prompt.x[::-1, 1]
    np.testing.assert_array_equal(answer(L, first), answer(L, second))
    for layer in range(L):
        assert np.abs(answer(layer, first) - answer(layer, second)).max() > 1e-4, f"layer {layer} hides the query"


def test_in_layout_xy_replacing_deletes_the_query_and_adding_does_not(setting):
    model, task, prompts = setting
    prompt = prompts["xy"]
    _, theta = tvp.run_prompt(model, prompt)
    first, second = prompt.x[:, 0], prompt.x[::-1, 1]
    for layer in range(L + 1):
        answer = lambda x, edit, layer=layer: tvp.prompt_with(
            model, task, prompt.layout, theta[layer, :, -1], layer, x, edit
        )
        np.testing.assert_array_equal(answer(first, "replace"), answer(second, "replace"))
        assert np.abs(answer(first, "add") - answer(second, "add")).max() > 1e-4


def test_the_vector_decides_not_the_company_of_the_query(setting):
    """Swap: the zero-shot prompt holds x' alone, so theta of task A answers the same wherever x' came from."""
    model, task, prompts = setting
    prompt = prompts["xzy"]
    _, theta = tvp.run_prompt(model, prompt)
    x = prompt.x[:, 0]
    straight = tvp.prompt_with(model, task, prompt.layout, theta[2, :, -1], 2, x)
    swapped = tvp.prompt_with(model, task, prompt.layout, jnp.roll(theta[2, :, -1], 1, axis=0), 2, x)
    again = tvp.prompt_with(model, task, prompt.layout, theta[2, :1, -1].repeat(B, 0), 2, x)
    np.testing.assert_allclose(swapped[1:2], again[1:2], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(again[:1], straight[:1], rtol=1e-5, atol=1e-6)
    assert np.abs(straight - swapped).max() > 1e-4


@pytest.mark.parametrize("lowest", [1, 2])
def test_leaving_out_what_is_replaced_changes_nothing(setting, lowest):
    """Blocks below the lowest layer read x' alone: same answers and same gradients, at that layer and above it."""
    model, task, prompts = setting
    prompt = prompts["xzy"]
    _, theta = tvp.run_prompt(model, prompt)

    def answer(params, theta, layer, lowest):
        asked = model.replace(params=params)
        return tvp.prompt_with(
            asked, task, prompt.layout, theta[layer, :, -1], layer, prompt.x[:, 0], "replace", lowest
        )

    params = model.params
    slopes = jax.jit(jax.grad(lambda *a: jnp.sin(answer(*a)).sum(), argnums=(0, 1)), static_argnums=3)
    for layer in range(lowest, L + 1):
        short, whole = answer(params, theta, layer, lowest), answer(params, theta, layer, 0)
        np.testing.assert_allclose(short, whole, rtol=1e-4, atol=1e-5)
        pairs = zip(
            *map(jax.tree.leaves, (slopes(params, theta, layer, lowest), slopes(params, theta, layer, 0))), strict=True
        )
        for short, whole in pairs:
            np.testing.assert_allclose(short, whole, rtol=1e-3, atol=1e-4)


class TestLoss:
    def scores(self, setting, config=None, key=3, layer=2):
        model, task, prompts = setting
        config = config or tvp.TVPConfig()
        _, theta = tvp.run_prompt(model, prompts["xzy"])
        asked = tvp.draw_queries(task, prompts["xzy"], jax.random.key(key), config)
        return tvp.tvp_scores(model, task, prompts["xzy"], theta, layer, asked, config)["risk"]

    def test_it_is_the_mean_of_single_promptings(self, setting):
        model, task, prompts = setting
        prompt, key = prompts["xzy"], jax.random.key(3)
        _, theta = tvp.run_prompt(model, prompt)
        x, y = task.draw_pairs(key, prompt.parameters, K)
        for i in range(K):
            out = tvp.prompt_with(model, task, prompt.layout, theta[2, :, i + 1], 2, x[:, i])
            expected = task.scores(out[:, None], y[:, i : i + 1])["risk"][:, 0]
            np.testing.assert_allclose(self.scores(setting)[:, i], expected, rtol=1e-4, atol=1e-5)

    def test_a_subset_of_positions_is_that_subset(self, setting):
        chosen = self.scores(setting, tvp.TVPConfig(demonstrations=(2, 4), query="shared"))
        every = self.scores(setting, tvp.TVPConfig(query="shared"))
        np.testing.assert_allclose(chosen, every[:, jnp.array([1, 3])], rtol=1e-5)

    def test_a_traced_layer_is_the_same_program(self, setting):
        traced = jax.jit(lambda layer: self.scores(setting, layer=layer))
        for layer in (1, 2):
            np.testing.assert_allclose(traced(layer), self.scores(setting, layer=layer), rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("gradient", [True, False])
    def test_the_gradient_reaches_the_prompt_only_if_asked(self, setting, gradient):
        model, task, prompts = setting

        def loss(shift):
            _, theta = tvp.run_prompt(model, prompts["xzy"])
            config = tvp.TVPConfig(gradient=gradient)
            asked = tvp.draw_queries(task, prompts["xzy"], jax.random.key(3), config)
            theta = theta + shift[None, None, None]
            return tvp.tvp_scores(model, task, prompts["xzy"], theta, 2, asked, config)["risk"].mean()

        # Channel by channel: LayerNorm takes out a shift of all alike.
        slope = jnp.abs(jax.grad(loss)(jnp.zeros(model.config.width))).max()
        assert slope > 1e-3 if gradient else slope == 0


class TestEdits:
    def test_a_sweep_is_a_vmap_of_one_program(self, setting):
        model, task, prompts = setting
        prompt = prompts["xzy"]
        _, theta = tvp.run_prompt(model, prompt)
        traces = []

        def one(vectors, layer):
            traces.append(layer)
            return tvp.prompt_with(model, task, prompt.layout, vectors, layer, prompt.x[:, 0])

        sweep = jax.jit(jax.vmap(one))(theta[:, :, -1], jnp.arange(L + 1))
        assert len(traces) == 1
        for layer in range(L + 1):
            alone = one(theta[layer, :, -1], layer)
            np.testing.assert_allclose(sweep[layer], alone, rtol=1e-4, atol=1e-5)

    def test_writes_compose_in_order(self, setting):
        model, _task, prompts = setting
        inputs = prompts["xzy"].inputs
        length = inputs.shape[1]
        v, w = jax.random.normal(jax.random.key(0), (2, 16))
        place = lambda *writes: edits.place(list(writes), model.config, jnp.arange(length)[None])
        both = place(edits.add(v, layers=2), edits.add(w, layers=2, scale=0.5))
        one = place(edits.add(v + 0.5 * w, layers=2))
        late = place(edits.add(v, layers=2), edits.replace(w, layers=2))
        only = place(edits.replace(w, layers=2))
        run = lambda tree: forward(model, inputs, edits=tree)[0]
        np.testing.assert_allclose(run(both), run(one), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(run(late), run(only), rtol=1e-4, atol=1e-5)
        assert np.abs(run(only) - run(one))[:, -1].max() > 1e-4

    def test_the_last_position_is_that_of_each_prompt(self):
        config = DecoderConfig(num_layers=L, width=16, num_heads=2, num_outputs=1)
        last = np.array([4, 2])
        positions_BT = jnp.where(jnp.arange(5)[None] <= last[:, None], jnp.arange(5)[None], PADDING)
        for named, index in (("last", last), ((-1,), last), ((-2,), last - 1), ((1,), [1, 1])):
            tree = edits.place(edits.add(jnp.ones(16), layers=1, positions=named), config, positions_BT)
            written = np.asarray(tree["blocks"]["resid"].here)[0, ..., 0]
            np.testing.assert_array_equal(written, np.eye(5, dtype=bool)[np.asarray(index)])

    @pytest.mark.parametrize("positions", ["last", "all", (0, 3), (-2,), "mask"])
    def test_only_the_named_states_change(self, setting, positions):
        model, _task, prompts = setting
        inputs = prompts["xzy"].inputs
        length = inputs.shape[1]
        mask = np.zeros((B, length), bool)
        if positions == "mask":
            mask[np.arange(B), np.arange(B)] = True
            positions = mask
        else:
            named = (
                {"last": [-1], "all": range(length)}.get(positions, positions)
                if isinstance(positions, str)
                else positions
            )
            mask[:, list(named)] = True
        vectors = jax.random.normal(jax.random.key(0), (2, B, 16))
        tree = edits.place(
            edits.mix(vectors, layers=(0, 2), positions=positions, keep=0.5), model.config, jnp.arange(length)[None]
        )
        _, found = forward(model, inputs, edits=tree, addresses=tvp.STREAM)
        _, plain = forward(model, inputs, addresses=tvp.STREAM)
        expected = np.where(mask[..., None], 0.5 * plain["embed"] + vectors[0][:, None], plain["embed"])
        np.testing.assert_allclose(found["embed"], expected, rtol=1e-5, atol=1e-5)
        unedited = edits.place(
            edits.mix(vectors[:1], layers=(0,), positions=positions, keep=0.5), model.config, jnp.arange(length)[None]
        )
        _, before = forward(model, inputs, edits=unedited, addresses=tvp.STREAM)
        expected = np.where(
            mask[..., None], 0.5 * before["blocks/resid"][1] + vectors[1][:, None], before["blocks/resid"][1]
        )
        np.testing.assert_allclose(found["blocks/resid"][1], expected, rtol=1e-4, atol=1e-4)


class TestControl:
    """The extra queries of the TVP-loss, answered from the demonstrations in place of the vector."""

    @pytest.mark.parametrize("layout", ["xzy", "xy"])
    @pytest.mark.parametrize("chosen", [(), (0, 2)])
    def test_each_query_is_asked_as_if_alone(self, setting, layout, chosen):
        model, task, prompts = setting
        prompt, key, config = prompts[layout], jax.random.key(3), tvp.TVPConfig(demonstrations=chosen)
        asked = tvp.draw_queries(task, prompt, key, config)
        out, scores = tvp.run_with_queries(model, task, prompt, asked, config)
        counts = chosen or range(1, K + 1)
        x, y = task.draw_pairs(key, prompt.parameters, len(counts))
        for place, count in enumerate(counts):
            pairs = (
                jnp.concatenate([a[:, :count], b[:, place : place + 1]], 1)
                for a, b in ((prompt.x, x), (prompt.targets, y))
            )
            alone, _ = tvp.run_prompt(model, task.prompt(prompt.layout, prompt.parameters, *pairs))
            risk = task.scores(alone[:, -1:], y[:, place : place + 1])["risk"][:, 0]
            np.testing.assert_allclose(scores["risk"][:, place], risk, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(out, tvp.run_prompt(model, prompt)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("schedule", "start", "shares"),
    [
        ("constant", 0, [1, 1, 1, 1, 1]),
        ("constant", 3, [0, 0, 0, 1, 1]),
        ("up", 0, [0, 0.25, 0.5, 0.75, 1]),
        ("up", 2, [0, 0, 0, 0.5, 1]),
        ("down", 0, [1, 0.75, 0.5, 0.25, 0]),
        ("down", 2, [0, 0, 1, 0.5, 0]),
        ("up", 4, [0, 0, 0, 0, 0]),
    ],
)
def test_the_share_of_the_weight_goes_by_its_schedule(schedule, start, shares):
    config = tvp.TVPConfig(schedule=schedule, start_step=start)
    np.testing.assert_allclose([float(config.share(jnp.array(step), 5)) for step in range(5)], shares, atol=1e-7)
