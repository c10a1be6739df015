"""Control vectors: what llama.cpp makes of our files, we of its, and what the format cannot hold."""

import gguf
import jax.numpy as jnp
import numpy as np
import pytest

import tvjax
from tests.nn import control_files
from tests.nn.gguf_files import write_gguf
from tests.nn.golden import GOLDEN
from tests.nn.llama_cpp import LlamaCpp, needs_llama
from tvjax.errors import UserError
from tvjax.nn.tokens import pad

LAYERS, WIDTH, ATOL = 3, 16, 1e-4  # logits are up to 4
PROMPTS = [[5, 9, 13, 2, 40, 33, 7], [8, 3], [31]]


@pytest.fixture(scope="module")
def model():
    return tvjax.load(GOLDEN / "llama2")


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    with LlamaCpp(write_gguf(tmp_path_factory.mktemp("llama") / "model.gguf", GOLDEN / "llama2")) as opened:
        yield opened


def rows(count, seed=0, width=WIDTH):
    return np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)


def written(path, directions, kind=np.float32, architecture="controlvector", **more):
    """A file by the gguf package, as repeng writes it."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_string("controlvector.model_hint", "llama")
    writer.add_uint32("controlvector.layer_count", len(directions))
    for name, row in directions.items():
        writer.add_tensor(name if isinstance(name, str) else f"direction.{name}", np.asarray(row, kind), **more)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def edit_of(loaded, **how):
    return tvjax.add(loaded, layers=loaded.layers, positions=loaded.positions, **how)


@needs_llama
@pytest.mark.parametrize("layers", [2, 3, [2, 3]])
def test_ours_in_llama_cpp(layers, model, llama, tmp_path):
    """The layer rule: what llama.cpp adds behind block N, counted from 0, is h^(N+1), at every token."""
    vectors = rows(2)[:1][0] if isinstance(layers, int) else rows(2)
    tvjax.export_control_vector(tmp_path / "v.gguf", vectors, layers, scale=1.5)
    llama.control(control_files.read(tmp_path / "v.gguf"))
    edit = tvjax.add(vectors, layers=layers, positions="all", scale=1.5)
    for prompt in PROMPTS:
        ours = tvjax.run(model, pad([prompt]), edits=edit)[0]
        np.testing.assert_allclose(llama.logits(prompt), ours, atol=ATOL, rtol=0)
        assert np.abs(ours - tvjax.run(model, pad([prompt]))[0]).max() > 0.1
        made = tvjax.generate(model, pad([prompt]), edits=edit, max_new_tokens=8, stop=())
        assert llama.generate(np.array([prompt]), 8)[0].tolist() == made.ids_BT[0].tolist()


@needs_llama
def test_llama_cpps_in_ours(model, llama, tmp_path):
    """Directions that llama.cpp has and a range of them; one behind its last block does nothing there."""
    vectors = rows(3)
    path = control_files.write(tmp_path / "v.gguf", {1 + i: row for i, row in enumerate(vectors)})
    loaded = tvjax.load_control_vector(path)
    assert loaded.layers == (2, 3, 4) and loaded.positions == "all" and loaded.about["model_hint"] == "llama"
    np.testing.assert_array_equal(loaded["directions"], vectors)
    np.testing.assert_array_equal(control_files.read(path), vectors)
    for (first, last), layers in (((1, 2), [2, 3]), ((2, 2), [3]), ((1, 1), [2]), ((1, 3), [2, 3])):
        llama.control(control_files.read(path), first, last)
        chosen = np.isin(loaded.layers, layers)
        edit = tvjax.add(loaded["directions"][chosen], layers=layers, positions="all")
        for prompt in PROMPTS:
            ours = tvjax.run(model, pad([prompt]), edits=edit)[0]
            np.testing.assert_allclose(llama.logits(prompt), ours, atol=ATOL, rtol=0)


@needs_llama
def test_llama_cpp_reads_the_same_numbers(tmp_path):
    vectors = rows(2)
    tvjax.export_control_vector(tmp_path / "v.gguf", vectors, [5, 2], scale=[2.0, 1.0])
    there = control_files.read(tmp_path / "v.gguf")
    np.testing.assert_array_equal(there, [vectors[1], np.zeros(WIDTH), np.zeros(WIDTH), 2 * vectors[0]])


@needs_llama
def test_what_llama_cpp_refuses_is_read_with_a_warning(tmp_path):
    """Float16 directions, and direction 0, which is h^1: both say what they are."""
    half = rows(1)[0].astype(np.float16)
    for path, layer in (
        (control_files.write(tmp_path / "half.gguf", {1: half}), 2),
        (control_files.write(tmp_path / "first.gguf", {0: half.astype(np.float32)}), 1),
    ):
        assert control_files.read(path) is None
        with pytest.warns(UserWarning, match=rf"direction\.{layer - 1}: read, but llama.cpp refuses the file"):
            loaded = tvjax.load_control_vector(path)
        assert loaded.layers == (layer,)
        np.testing.assert_array_equal(loaded["directions"], half.astype(np.float32)[None])


@pytest.mark.parametrize(
    ("vectors", "layers", "named"),
    [
        (rows(1)[0], 2, (2,)),
        (rows(1)[0], [2, 3], (2, 3)),
        (rows(2), [3, 2], (2, 3)),
        (rows(1), 3, (3,)),
        (rows(2).astype(np.float64), slice(2, None), (2, 3)),
        (jnp.asarray(rows(2)), [False, False, True, True], (2, 3)),
        (rows(2).tolist(), np.array([2, 3]), (2, 3)),
    ],
)
def test_what_was_written_comes_back(vectors, layers, named, model, tmp_path):
    tvjax.export_control_vector(tmp_path / "v.gguf", vectors, layers, model=model)
    loaded = tvjax.load_control_vector(tmp_path / "v.gguf", model)
    assert loaded.layers == named
    again = tvjax.run(model, [PROMPTS[0]], edits=edit_of(loaded))
    ours = tvjax.run(model, [PROMPTS[0]], edits=tvjax.add(vectors, layers=layers, positions="all"))
    np.testing.assert_array_equal(ours, again)
    tvjax.export_control_vector(tmp_path / "again.gguf", loaded, loaded.layers, model=model)
    assert (tmp_path / "again.gguf").read_bytes() == (tmp_path / "v.gguf").read_bytes()


def test_a_file_of_repeng(model, tmp_path):
    """Its layers are those of llama.cpp, in any order."""
    vectors = rows(2)
    loaded = tvjax.load_control_vector(written(tmp_path / "v.gguf", {2: vectors[0], 1: vectors[1]}), model)
    assert loaded.layers == (2, 3)
    np.testing.assert_array_equal(loaded["directions"], vectors[::-1])
    tvjax.run(model, [PROMPTS[0]], edits=edit_of(loaded, scale=-1.5))


def test_vectors_know_their_model(model, tmp_path):
    other = tvjax.load(GOLDEN / "llama3")
    tvjax.export_control_vector(tmp_path / "v.gguf", rows(1)[0], 2, model=model)
    loaded = tvjax.load_control_vector(tmp_path / "v.gguf")
    tvjax.run(model, [PROMPTS[0]], edits=edit_of(loaded))
    with pytest.raises(UserError, match="vectors: given those of model"):
        tvjax.run(other, [PROMPTS[0]], edits=edit_of(loaded))
    with pytest.raises(UserError, match="vectors: given those of model"):
        tvjax.export_control_vector(tmp_path / "other.gguf", loaded, 2, model=other)
    tvjax.export_control_vector(tmp_path / "other.gguf", loaded, loaded.layers)
    assert tvjax.load_control_vector(tmp_path / "other.gguf").model == loaded.model
    tvjax.save_vectors(tmp_path / "v.safetensors", loaded)
    assert tvjax.load_vectors(tmp_path / "v.safetensors").layers == (2,)


REFUSED = {
    "h^1": ({"layers": 1}, r"layers: given 1; accepted: 2\.\.L"),
    "h^0": ({"layers": [0, 2]}, r"layers: given 0; accepted: 2\.\.L"),
    "before the first": ({"layers": -1}, r"layers: given -1; accepted: 2\.\.L"),
    "beyond the last": ({"layers": 4, "model": True}, r"layers: given 4; accepted: 0\.\.3"),
    "an open slice": ({"layers": slice(2, None)}, r"layers: given slice.*; accepted: .*with model="),
    "twice": ({"layers": [2, 2]}, "layers: given 2; accepted: each of the layers once"),
    "one position": ({"positions": -1}, "positions: given -1; accepted: 'all'"),
    "the last position": ({"positions": "last"}, "positions: given 'last'; accepted: 'all'"),
    "a vector a prompt": ({"vectors": rows(2)}, r"vectors: given 'those of 2 prompts'; accepted: \[D\]"),
    "a scale a prompt": ({"scale": [1.0, 2.0]}, r"scale: given 'shape \[2\]'; accepted: a number, or one a layer"),
    "a scale too many": ({"layers": [2, 3], "scale": [1.0, 2.0, 3.0]}, r"scale: given 'shape \[3\]'"),
    "another width": ({"vectors": rows(1, width=8)[0], "model": True}, r"vectors: given 'shape \[8\]'; .* D = 16"),
    "rows of no layer": ({"vectors": rows(3), "layers": [2, 3]}, "vectors: given .*; accepted: a leading axis of 2"),
    "float16": ({"vectors": rows(1)[0].astype(np.float16)}, "vectors: given 'an array of float16'; accepted: float32"),
    "bfloat16": ({"vectors": jnp.ones(WIDTH, jnp.bfloat16)}, "vectors: given 'an array of bfloat16'"),
    "not finite": ({"vectors": np.full(WIDTH, np.nan)}, "vectors: given nan"),
    "too large": ({"vectors": np.full(WIDTH, 1e38, np.float32), "scale": 1e3}, r"scale \* vectors: given inf"),
    "no numbers": ({"vectors": "theta"}, "vectors: given"),
    "no model": ({"model": "llama2"}, "model: given 'llama2'; accepted: what tvjax.load gives"),
}


@pytest.mark.parametrize("how", REFUSED)
def test_what_the_format_cannot_hold_is_refused(how, model, tmp_path):
    options, line = REFUSED[how]
    options = {"vectors": rows(1)[0], "layers": 2, **options}
    if options.get("model") is True:
        options["model"] = model
    with pytest.raises(UserError, match=line) as caught:
        tvjax.export_control_vector(tmp_path / "v.gguf", options.pop("vectors"), options.pop("layers"), **options)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_a_path_that_is_no_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="cannot be written"):
        tvjax.export_control_vector(tmp_path, rows(1)[0], 2)
    for name, said in (
        ("nothing.gguf", "does not read"),
        ("", "does not read"),
        ("text.gguf", "not a whole GGUF file"),
    ):
        (tmp_path / "text.gguf").write_text("direction")
        with pytest.raises(UserError, match=said):
            tvjax.load_control_vector(tmp_path / name)


FILES = {
    "of another width": ({1: np.ones(8)}, {}, r"direction\.1: given 8 numbers; accepted: 16"),
    "of two widths": ({1: np.ones(8), 2: np.ones(16)}, {}, r"8 numbers \(direction\.1\) and 16 numbers"),
    "beyond the layers": (
        {1: np.ones(16), 3: np.ones(16)},
        {},
        r"direction\.3: given h\^4; accepted: direction\.0\.\.2",
    ),
    "of another name": ({"vector.1": np.ones(16)}, {}, "tensor 'vector.1': given another name"),
    "of no number": ({"direction.x": np.ones(16)}, {}, "tensor 'direction.x'"),
    "of a number twice": ({"direction.01": np.ones(16)}, {}, r"tensor 'direction\.01'"),
    "a matrix": (
        {1: np.ones((2, 16))},
        {},
        r"direction\.1: given 'F32 of shape \[2, 16\]'|given F32 of shape \[2, 16\]",
    ),
    "of doubles": ({1: np.ones(16)}, {"kind": np.float64}, "given F64 of shape"),
    "not finite": ({1: np.full(16, np.inf)}, {}, "direction.1: given inf"),
    "empty": ({}, {}, "holds no direction"),
    "a model": ({1: np.ones(16)}, {"architecture": "llama"}, "general.architecture: given 'llama'; accepted: control"),
}


@pytest.mark.parametrize("what", FILES)
def test_a_file_that_does_not_fit_is_refused(what, model, tmp_path):
    directions, how, line = FILES[what]
    path = written(tmp_path / "v.gguf", directions, **how)
    with pytest.raises(UserError, match=line) as caught:
        tvjax.load_control_vector(path, model)
    assert "\n" not in str(caught.value)


def test_a_file_that_ends_early_is_refused(tmp_path):
    tvjax.export_control_vector(tmp_path / "v.gguf", rows(2), [2, 3])
    content = (tmp_path / "v.gguf").read_bytes()
    for size in range(0, len(content) - 33, 7):  # the last bytes are what fills a block
        (tmp_path / "cut.gguf").write_bytes(content[:size])
        with pytest.raises(UserError) as caught:
            tvjax.load_control_vector(tmp_path / "cut.gguf")
        assert "\n" not in str(caught.value)
