"""What a user names becomes what the programs take, or is refused: every form, and each thing that is none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tvjax
from tests.nn.golden import GOLDEN
from tvjax.errors import UserError
from tvjax.nn import decoding, selection
from tvjax.nn.decoder import PADDING
from tvjax.nn.inputs import inputs_of
from tvjax.nn.selection import Own
from tvjax.nn.taps import Edit
from tvjax.nn.tokens import Tokens, pad
from tvjax.vectors import edits

PROMPTS = pad([[5, 9, 13, 2, 40], [8, 3], [1, 2, 3]])
LAYERS, B, D = 3, 3, 16


@pytest.fixture(scope="module")
def model():
    return tvjax.load(GOLDEN / "llama3", unroll=1)


def layers(value, lowest=1):
    return selection.layers_of(selection.choice("layers", value), lowest, LAYERS)


class TestLayersAndHeads:
    @pytest.mark.parametrize(
        ("value", "lowest", "expected"),
        [
            (2, 1, (2,)),
            (np.int64(2), 1, (2,)),
            (np.array(2), 1, (2,)),
            (jnp.array(2), 1, (2,)),
            ([3, 1], 1, (3, 1)),
            ([np.int32(3), jnp.array(1)], 1, (3, 1)),
            (np.array([2]), 1, (2,)),
            ([2, 2, 1], 1, (2, 2, 1)),
            (range(1, 4), 1, (1, 2, 3)),
            (slice(1, 3), 1, (1, 2)),
            (slice(1, 3), 0, (1, 2)),
            (slice(None), 1, (1, 2, 3)),
            (slice(None), 0, (0, 1, 2, 3)),
            (slice(-2, None), 0, (2, 3)),
            (slice(None, None, 2), 1, (1, 3)),
            (slice(None, None, -1), 1, (3, 2, 1)),
            (slice(1, 99), 1, (1, 2, 3)),
            ([False, True, False], 1, (2,)),
            (np.array([False, False, True, True]), 1, (2, 3)),
            (jnp.array([True, False, False, True]), 0, (0, 3)),
        ],
    )
    def test_every_form_names_numbers(self, value, lowest, expected):
        assert layers(value, lowest) == expected

    @pytest.mark.parametrize(
        "value",
        [0, 4, -1, [1, 4], 1.0, [1.0], True, [1, True], "1", None, [], slice(0, 2), slice(2, 2), slice(0.5, 2)]
        + [slice(None, None, 0), [True] * 2, [True] * 5, [False] * 3, [True, False, False, False], [[1]], {1}, np.nan],
    )
    def test_what_is_no_layer_is_refused(self, value):
        with pytest.raises(UserError, match="layers"):
            layers(value)

    def test_heads(self):
        heads = lambda value: selection.heads_of(selection.choice("heads", value), 4)
        assert heads([False, True, False, True]) == heads([1, 3]) == heads(slice(1, None, 2)) == (1, 3)
        for value in (4, -1, [True] * 3, [True] * 5):
            with pytest.raises(UserError, match="heads"):
                heads(value)


class TestPositions:
    """Of prompts of 5, 2 and 3 tokens, padded on the left or on the right."""

    FORMS = (
        ("last", [[4], [1], [2]]),
        (-1, [[4], [1], [2]]),
        (np.int64(1), [[1], [1], [1]]),
        ([0, -1], [[0, 4], [0, 1], [0, 2]]),
        ([[3], [1], [-1]], [[3], [1], [2]]),
        (np.array([[4, 0], [1, 0], [-1, 1]]), [[4, 0], [1, 0], [2, 1]]),
        (slice(0, 2), [[0, 1]] * 3),
        (slice(-1, None), [[4], [1], [2]]),
    )

    def own(self, side):
        return Own.of(pad([[1] * 5, [1] * 2, [1] * 3], side=side).positions_BT, B)

    @pytest.mark.parametrize("side", ["left", "right"])
    @pytest.mark.parametrize(("value", "expected"), FORMS)
    def test_every_form_names_each_prompts_own_tokens(self, value, expected, side):
        own = self.own(side)
        start = np.array([[0], [3], [2]]) * (side == "left")
        index_BN = np.array(expected) + start
        named = selection.positions(value)
        np.testing.assert_array_equal(np.broadcast_to(own.index(*named), index_BN.shape), index_BN)
        mask_BT = np.zeros((B, 5), bool)
        np.put_along_axis(mask_BT, index_BN, True, axis=1)
        np.testing.assert_array_equal(own.where(*named), mask_BT)
        np.testing.assert_array_equal(own.where(*selection.positions(mask_BT)), mask_BT)

    def test_order_and_repetitions_are_read_as_they_are_named(self):
        np.testing.assert_array_equal(self.own("right").index(*selection.positions([1, 0, 1])), [[1, 0, 1]] * 3)
        np.testing.assert_array_equal(self.own("left").index(*selection.positions(slice(1, None, -1)))[1], [4, 3])

    def test_a_slice_may_name_more_of_a_longer_prompt_to_be_written_but_not_to_be_read(self):
        named = selection.positions(slice(1, None))
        assert self.own("left").where(*named).sum(1).tolist() == [4, 1, 2]
        with pytest.raises(UserError, match="prompt 0 has 4, another 1"):
            self.own("left").index(*named)

    def test_a_mask_names_no_padding(self):
        whole = np.ones((B, 5), bool)
        np.testing.assert_array_equal(self.own("left").where(*selection.positions(whole)), self.own("left").real_BT)
        only = np.array([[True] * 5, [True, True, False, False, False], [True] * 5])
        with pytest.raises(UserError, match="padding alone in prompt 1"):
            self.own("left").where(*selection.positions(only))

    @pytest.mark.parametrize(
        ("value", "line"),
        [
            (2, "given 2; accepted: -2..1 for prompt 1, which has 2 tokens"),
            ([0, -3], "given -3; accepted: -2..1 for prompt 1"),
            ([[0], [0], [3]], "given 3; accepted: -3..2 for prompt 2"),
            ([[0], [1]], "for 2 prompts"),
            (np.ones((2, 5), bool), "for 2 prompts"),
            (np.ones(4, bool), "a mask over 4"),
            ([0, 0, 0, 0, 1], "bools"),
            (np.eye(5, dtype=int)[:3], "bools"),
            (np.eye(5)[0], "bools"),
            ([0, -2], "each position of prompt 1 once"),
            (slice(2, 3), "of the 2 tokens of prompt 1"),
            (np.zeros((3, 5), bool), "true somewhere"),
            ("first", "'last'"),
            *(
                (x, "positions")
                for x in ([], None, 1.0, True, [1, True], {0}, [[[0]]], "0", slice("a", None), [[0], [1, 2]])
            ),
        ],
    )
    def test_what_a_prompt_has_not_is_refused_by_name(self, value, line):
        with pytest.raises(UserError, match=line.replace("..", "[.][.]")):
            self.own("left").where(*selection.positions(value))

    def test_traced_prompts_and_masks_are_written_too(self):
        own = self.own("left")
        for value in ("last", [0, -1], [[3], [1], [-1]], np.array(own.real_BT)):
            named = selection.positions(value)
            traced = jax.jit(lambda p, named=named: Own.of(p, B).where(*named))
            np.testing.assert_array_equal(traced(PROMPTS.positions_BT), own.where(*named))


class TestFactors:
    def of(self, value, layers, batch, by_layer=True):
        return selection.factors_of("scale", selection.factor("scale", value), layers, batch, by_layer).shape

    def test_a_number_one_a_layer_or_one_a_prompt(self):
        assert self.of(0.5, 2, 3) == self.of([0.5], 2, 3) == (1, 1)
        assert self.of([1.0, 2.0], 2, 3) == self.of([1.0, 2.0], 2, 1) == self.of([[1.0], [2.0]], 2, 2) == (2, 1)
        assert self.of([1.0, 2.0, 3.0], 2, 3) == self.of([1.0, 2.0, 3.0], 1, 3, False) == (1, 3)
        assert self.of(np.ones((2, 3)), 2, 3) == (2, 3)

    def test_what_could_be_either_is_refused(self):
        with pytest.raises(UserError, match=r"shape \[2, 1\], or \[1, 2\]"):
            self.of([1.0, 2.0], 2, 2)

    @pytest.mark.parametrize(
        "value", [np.nan, [1.0, np.inf], True, "1", 1j, [1.0, 2.0, 3.0, 4.0], np.ones((1, 1, 1)), 1e39]
    )
    def test_what_is_no_factor_is_refused(self, value):
        with pytest.raises(UserError, match="scale"):
            self.of(value, 2, 3)


class TestWrites:
    """What is placed, by the leaves of its tree."""

    def place(self, model, *writes, prompts=PROMPTS):
        inputs = inputs_of(model, prompts)
        return edits.place(list(writes), model.config, inputs.all_positions_BT, inputs.batch)["blocks"]["resid"]

    def test_factors_go_with_their_layers_and_prompts(self, model):
        v = np.ones((2, D), np.float32)
        write = tvjax.mix(v, layers=[3, 1], scale=[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], keep=[0.25, 0.5])
        edit = self.place(model, write)
        np.testing.assert_array_equal(edit.add[:, :, 0, 0], [[4, 5, 6], [0, 0, 0], [1, 2, 3]])
        np.testing.assert_array_equal(edit.keep[:, 0, 0, 0], [0.5, 0, 0.25])
        assert edit.here.any((1, 2, 3)).tolist() == [True, False, True]

    def test_integer_and_half_vectors_do_not_round_what_is_kept(self, model):
        for v in (np.ones(D, int), np.ones(D, np.float16), jnp.ones(D, jnp.bfloat16)):
            edit = self.place(model, tvjax.mix(v, layers=1, keep=0.3, scale=1))
            np.testing.assert_allclose(edit.keep[0, 0, 0, 0], 0.3, rtol=1e-6)

    @pytest.mark.parametrize(
        ("vectors", "options", "line"),
        [
            (np.ones((2, D)), {}, "those of 2 prompts"),
            (np.ones((1, 4, D)), {"layers": [1]}, "those of 4 prompts"),
            (np.ones((2, D)), {"layers": slice(1, None)}, "a leading axis of 3"),
            (np.ones((2, D)), {"layers": [True, True, True]}, "a leading axis of 3"),
            (np.ones(D), {"layers": [1, 1]}, "each of the layers once"),
            (np.ones((4, 4)), {"address": edits.HEADS, "heads": [1, 1]}, "each of the heads once"),
            (np.ones((4, 4)), {"address": edits.HEADS, "heads": 4}, "0[.][.]3"),
            (np.ones(D), {"layers": 0, "address": "blocks/mlp_out"}, "1[.][.]3 at blocks/mlp_out"),
            (np.ones(D), {"address": "blocks/resids"}, "did you mean 'blocks/resid'"),
            (np.ones(D) * np.nan, {}, "nan at .0."),
            (np.ones(D, bool), {}, "real numbers"),
            (np.ones(D, complex), {}, "real numbers"),
            (np.ones(D), {"any_model": "no"}, "any_model: given 'no'; accepted: True or False"),
        ],
    )
    def test_what_does_not_fit_is_refused_by_name(self, model, vectors, options, line):
        with pytest.raises(UserError, match=line):
            self.place(model, tvjax.replace(vectors, **{"layers": 1, **options}))

    @pytest.mark.parametrize(
        "tree",
        [
            {},
            [],
            [3],
            jnp.ones(D),
            {"block": {}},
            {"blocks": {}},
            {"blocks": {"resids": Edit(jnp.ones((3, 1, 1, 1)), jnp.ones((3, 1, 1, D)))}},
            {"blocks": {"resid": Edit(jnp.ones((2, 1, 1, 1)), jnp.ones((3, 1, 1, D)))}},
            {"blocks": {"resid": Edit(jnp.ones((3, 1, 1, 1)), jnp.ones((3, 2, 1, D)))}},
            {"blocks": {"resid": Edit(*[jnp.ones((3, 1, 1, 1))] * 2, jnp.zeros((3, 1, 1, 1), bool))}},
            {"embed": jnp.ones(D)},
        ],
    )
    def test_a_tree_that_nothing_reads_is_refused(self, model, tree):
        with pytest.raises(UserError, match="edits"):
            tvjax.run(model, PROMPTS, edits=tree)


class TestPrompts:
    @pytest.mark.parametrize(
        ("prompts", "line"),
        [
            ([[1, 64, 3]], r"prompts\[0\]\[1\]: given 64; accepted: token ids 0[.][.]63"),
            (np.array([[1, 2], [3, -100]]), r"prompts\[1\]\[1\]: given -100"),
            ([[1, 2], [3, 2**32 + 5]], r"prompts\[1\]\[1\]"),
            ([[1, 2], [2**32 + 5]], r"prompts\[1\]"),
            (Tokens(jnp.array([[70, 70], [70, 5]]), jnp.array([[False, True], [False, True]])), r"prompts\[0\]\[1\]"),
            (Tokens(jnp.ones((2, 2), int), jnp.array([[False, False], [True, True]])), r"prompts\[0\].*one token"),
            ([[1, 2], []], r"prompts\[1\]"),
            (jnp.array([1, 2]), r"ids\[None\]"),
            ([[1, True]], "bools among ids"),
            ([[1, 2], [1, True, 3]], r"prompts\[1\]"),
            *((PROMPTS.replace(start_B=s), "start_B") for s in (7, np.ones(2, int), np.full(3, -1), np.ones(3))),
            *(
                (x, "prompts")
                for x in ([], [[1.0]], [[True]], [5, 9], None, "text", ["text"], ["text", [1]], 5, [[[1]]], {})
            ),
        ],
    )
    def test_what_the_model_does_not_have_is_refused_by_name(self, model, prompts, line):
        for call in (
            lambda: tvjax.run(model, prompts),
            lambda: tvjax.capture(model, prompts, "embed"),
            lambda: tvjax.sweep(model, prompts, np.ones((4, 1, D))),
            lambda: tvjax.generate(model, prompts, max_new_tokens=1),
        ):
            with pytest.raises(UserError, match=line):
                call()

    def test_lists_are_padded_and_anything_stands_at_padding(self, model):
        plain = tvjax.run(model, PROMPTS, last=True)
        junk = PROMPTS.replace(ids_BT=jnp.where(PROMPTS.valid_BT, PROMPTS.ids_BT, -100))
        for prompts in (junk, [[5, 9, 13, 2, 40], (8, 3), np.array([1, 2, 3])]):
            np.testing.assert_array_equal(tvjax.run(model, prompts, last=True), plain)

    def test_where_others_would_stand_before_them_last_is_still_the_last(self, model):
        later = Tokens(PROMPTS.ids_BT, PROMPTS.valid_BT, jnp.array([7, 7, 7]))
        np.testing.assert_allclose(
            tvjax.run(model, later, last=True), tvjax.run(model, PROMPTS, last=True), atol=1e-4
        )  # rotary positions are relative
        with pytest.raises(UserError, match="start_B"):
            tvjax.generate(model, later, max_new_tokens=2)

    def test_more_tokens_than_learned_positions(self):
        model = tvjax.load(GOLDEN / "gpt2", unroll=1)
        long = np.ones((1, model.config.max_positions + 1), int)
        short = np.ones((1, model.config.max_positions), int)
        for call in (
            lambda: tvjax.run(model, long),
            lambda: tvjax.capture(model, long, "embed"),
            lambda: tvjax.sweep(model, long, np.ones((4, 1, D))),
            lambda: tvjax.generate(model, short, max_new_tokens=2),
        ):
            with pytest.raises(UserError, match=f"{model.config.max_positions} positions"):
                call()

    def test_a_token_of_the_tokenizer_alone_is_named(self, model):
        class Wide:
            encode = staticmethod(lambda texts: [[5, 70] for _ in texts])
            token = staticmethod(lambda number: f"<{number}>")

        class Source:
            tokenizer = Wide

        with pytest.raises(UserError, match=r"prompts\[0\]: given '<70>'.* 64 tokens"):
            tvjax.run(model.replace(source=Source), "a text")


class TestCalls:
    def test_layers_and_positions_are_captured_in_their_order_as_often_as_named(self, model):
        whole = tvjax.capture(model, PROMPTS, ["embed", "blocks/resid"])
        some = tvjax.capture(
            model, PROMPTS, ["embed", "blocks/resid"], layers=[2, 3, 2], positions=[[4, 4], [1, 0], [0, 2]]
        )
        index_BN = np.array([[4, 4], [4, 3], [2, 4]])
        for name, of_layers in (("embed", ()), ("blocks/resid", ([1, 2, 1],))):
            states = np.asarray(whole[name])[of_layers] if of_layers else np.asarray(whole[name])
            index = index_BN.reshape(*[1] * len(of_layers), B, 2, 1)
            np.testing.assert_allclose(some[name], np.take_along_axis(states, index, axis=-2), atol=1e-5)

    @pytest.mark.parametrize(
        ("options", "line"),
        [
            *(({"stop": x}, "stop") for x in (64, -1, 2.0, "a", [True])),
            *(({"max_new_tokens": x}, "max_new_tokens") for x in (0, True, 2.0, "2")),
            *(({"key": 0, "top_k": x}, "top_k") for x in (-1, 65, 1.0)),
            *(({"key": 0, "temperature": x}, "temperature") for x in (0, -1.0, np.nan, np.inf, "1", [1.0])),
            *(({"key": x}, "key") for x in ("a", -1, 2.0, jnp.ones(2), True)),
            ({"temperature": 0.5}, "key"),
            ({"top_k": 5}, "key"),
            ({"addresses": "resid"}, "addresses"),
            ({"during": "always"}, "during"),
            *(
                ({"during": x, "edits": tvjax.add(np.ones(D), layers=1, positions=0)}, r"edits\[0\]")
                for x in ("steps", "both")
            ),
            ({"during": "steps", "max_new_tokens": 1, "edits": tvjax.add(np.ones(D), layers=1)}, "2 or more"),
            ({"edits": []}, "edits"),
        ],
    )
    def test_generation_ignores_nothing_that_it_is_asked_for(self, model, options, line):
        with pytest.raises(UserError, match=line):
            tvjax.generate(model, PROMPTS, **{"max_new_tokens": 3, **options})

    def test_keys_and_ends_in_every_form(self):
        key = jax.random.key(5)
        for form in (5, np.int64(5), key, jax.random.PRNGKey(5)):
            assert decoding.sampling(form, 0.5, 0, 64)[0] == key
        for form in (2, np.int32(2), [2], (2,), np.array([2]), jnp.array(2)):
            assert decoding.stop_tokens(form, 64) == (2,)
        assert decoding.stop_tokens((), 64) == decoding.stop_tokens([], 64) == ()

    @pytest.mark.parametrize(
        "options",
        [{"position": x} for x in (2, -3, [0, 1], "all", 1.0, slice(0, 2), None, [0, 2, 0])]
        + [{"vectors": np.ones(s)} for s in ((3, 3, D), (4, 2, D), (4, 3, D + 1), (4, D))]
        + [{"vectors": np.full((4, 3, D), np.nan)}, {"edit": "mix"}],
    )
    def test_a_sweep_of_what_is_not_there_is_refused(self, model, options):
        with pytest.raises(UserError, match=next(iter(options))):
            tvjax.sweep(model, PROMPTS, **{"vectors": np.ones((4, 3, D)), **options})

    def test_under_jit_and_grad_nothing_is_looked_at(self, model):
        def loss(v, scale, ids):
            write = tvjax.add(v, layers=[1, 2], scale=scale, positions=[0, -1])
            return tvjax.run(model, ids, edits=write, last=True).sum()

        v, scale = jnp.ones((2, D)), jnp.array([0.5, 2.0])
        ids = jnp.array([[5, 9, 13]])
        gradient = jax.jit(jax.grad(loss, (0, 1)))(v, scale, ids)
        assert all(float(jnp.abs(g).sum()) > 0 for g in gradient)
        np.testing.assert_allclose(jax.jit(loss)(v, scale, ids), loss(v, scale, ids), rtol=1e-4)

    def test_under_jit_what_no_prompt_could_have_is_refused(self, model):
        def loss(prompts, position):
            return tvjax.run(model, prompts, edits=tvjax.add(np.ones(D), layers=1, positions=position))

        jax.eval_shape(lambda p: loss(p, 4), PROMPTS)
        for position in (5, -6, [0, 5]):
            with pytest.raises(UserError, match=r"-5[.][.]4: no prompt is longer"):
                jax.eval_shape(lambda p, position=position: loss(p, position), PROMPTS)

    def test_generation_under_jit_is_that_outside(self, model):
        jitted = jax.jit(lambda p: tvjax.generate(model, p, max_new_tokens=3).ids_BT)
        np.testing.assert_array_equal(jitted(PROMPTS), tvjax.generate(model, PROMPTS, max_new_tokens=3).ids_BT)
        with pytest.raises(UserError, match="temperature: given 'a traced array'"):
            jax.eval_shape(lambda t: tvjax.generate(model, PROMPTS, max_new_tokens=1, key=0, temperature=t), 1.0)


def test_positions_that_start_later_are_counted_from_the_first():
    own = Own.of(np.array([[PADDING, 7, 8], [7, 8, 9]]), 2)
    np.testing.assert_array_equal(own.order_BT, [[PADDING, 0, 1], [0, 1, 2]])


class TestNeighbours:
    def test_a_position_that_a_prompt_has_not_is_refused_in_jit_too(self, model):
        write = edits.replace(np.ones(D, np.float32), layers=1, positions=3)
        with pytest.raises(UserError, match="prompt 1"):
            jax.jit(lambda scale: scale * tvjax.run(model, PROMPTS, edits=write))(1.0)

    @pytest.mark.parametrize("scale", [2**40, np.int64(2**40)])
    def test_a_large_int_is_that_number(self, scale):
        assert edits.add(np.ones(D), layers=1, scale=scale).scale == 2.0**40

    def test_what_no_number_of_64_bits_can_be_is_refused(self, model):
        with pytest.raises(UserError, match="positions"):
            tvjax.capture(model, PROMPTS, "embed", positions=2**63)

    def test_a_write_has_one_address(self):
        with pytest.raises(UserError, match="address"):
            edits.add(np.ones(D), layers=1, address=["blocks/resid"])

    def test_saved_layers_are_understood_as_others_are(self, model, tmp_path):
        path = tmp_path / "v.safetensors"
        tvjax.save_vectors(path, {"v": np.ones((2, D))}, model=model, layers=[True, False, True, False])
        assert tvjax.load_vectors(path).layers == (0, 2)
        with pytest.raises(UserError, match="layers"):
            tvjax.save_vectors(path, {"v": np.ones(D)}, model=model, layers=True)
        with pytest.raises(UserError, match="vectors: given 3"):
            tvjax.load_vectors(path)[3]
