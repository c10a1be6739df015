"""Vectors on disk: they come back as they were and know their model; broken files are named."""

import copy
import dataclasses
import json
import operator
import os
import pickle
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy

import tvjax
from tests.nn.golden import GOLDEN
from tests.runs import REPOSITORY
from tvjax.errors import UserError
from tvjax.nn.pretrained import load_model
from tvjax.parallel.mesh import make_mesh
from tvjax.vectors import origin
from tvjax.vectors.origin import fingerprint

PARAMS = {"a": np.ones(3), "b": np.zeros(2)}
PROMPTS = jnp.array([[5, 9, 13, 2], [7, 3, 3, 40]])
LAYERS, WIDTH = 3, 16
MADE = {  # what a notebook makes of vectors [L+1, D]
    "stack": lambda v: np.stack([v[1], v[2]]).mean(0),
    "concatenate": lambda v: np.concatenate([v[1], v[2]]).reshape(2, -1)[0],
    "where": lambda v: np.where(v[1] > 0, v[1], 0.0),
    "broadcast": lambda v: np.broadcast_to(v[1], (1, *v[1].shape)),
    "copy": lambda v: np.copy(v[1], subok=False),
    "einsum": lambda v: np.einsum("ld,l->d", v, np.ones(len(v))),
    "product": lambda v: np.eye(v.shape[1]) @ v[1],
    "sum of both sides": lambda v: np.ones(v.shape[1]) + v[1],
    "in place": lambda v: operator.iadd(v[1].copy(), 1.0),
    "pickle": lambda v: pickle.loads(pickle.dumps(v[1])),
    "deepcopy": lambda v: copy.deepcopy(v)[1],
}


def save(path, vectors, **how):
    tvjax.save_vectors(path, vectors, **{"model": PARAMS, "layers": 2, **how})
    return tvjax.load_vectors(path)


class TestRoundTrip:
    DTYPES = ("bool", "int8", "uint16", "int32", "uint64", "int64", "float16", "float32", "float64", "bfloat16")
    NAMES = ("theta", "task.c", "", "a b/c", "\N{GREEK SMALL LETTER THETA}", '"\n', "0")

    def draw_array(self, rng):
        """Of any dtype and shape, in any order in memory."""
        name = self.DTYPES[rng.integers(len(self.DTYPES))]
        shape = rng.integers(0, 4, rng.integers(0, 4))
        array = rng.normal(size=2 * shape).astype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
        array = array[tuple(slice(None, None, (2, -2)[rng.integers(2)]) for _ in shape)]
        if array.ndim > 1 and rng.integers(2):
            array = np.asfortranarray(array)
        if name in ("int32", "float64") and rng.integers(2):
            array = array.astype(array.dtype.newbyteorder(">"))
        return np.broadcast_to(array, (2, *array.shape)) if rng.integers(4) == 0 else array

    def draw_value(self, rng, depth=0):
        values = ["2", 2, 2.5, 1e-300, 2**70, True, None, "", "null", '{"a": 1}', "\N{SNOWMAN}\n", float("inf")]
        kind = rng.integers(8 if depth < 2 else 6)
        if kind < 6:
            return values[rng.integers(len(values))]
        inner = [self.draw_value(rng, depth + 1) for _ in range(rng.integers(3))]
        return inner if kind == 6 else {f"k{i}": v for i, v in enumerate(inner)}

    @pytest.mark.filterwarnings("ignore:invalid value")
    def test_what_is_saved_comes_back(self, tmp_path):
        """120 files of arrays and metadata drawn at random."""
        rng = np.random.default_rng(0)
        for case in range(120):
            names = rng.permutation(len(self.NAMES))[: rng.integers(1, 4)]
            vectors = {self.NAMES[i]: self.draw_array(rng) for i in names}
            about = {f"key{i}": self.draw_value(rng) for i in range(rng.integers(4))}
            back = save(tmp_path / "v.safetensors", vectors, about=about)
            assert set(back.arrays) == set(vectors), case
            for name, array in vectors.items():
                assert back[name].shape == array.shape and back[name].dtype == array.dtype.newbyteorder("="), case
                assert back[name].tobytes() == array.astype(back[name].dtype).tobytes(), (case, name)
            assert back.about == about and json.dumps(back.about, sort_keys=True) == json.dumps(about, sort_keys=True)

    def test_metadata_name_all_of_the_contract(self, tmp_path):
        back = save(
            tmp_path / "v.safetensors",
            {"theta": np.ones((2, 3), np.float32), "nan": np.array(np.nan)},
            address="embed, blocks/resid",
            layers=range(2),
            positions=np.array([0, -1]),
            template={"before": "Q: "},
            about={"made_by": "a test", "layer": "2", "shares": (np.float32(0.5), jnp.arange(2))},
        )
        assert (back.model, back.address, back.layers) == (fingerprint(PARAMS), "embed, blocks/resid", (0, 1))
        assert (back.positions, back.template) == ([0, -1], {"before": "Q: "})
        assert back.about == {"made_by": "a test", "layer": "2", "shares": [0.5, [0, 1]]}
        assert "0 = embedding" in back.layer_numbering
        assert back["nan"].shape == () and np.isnan(back["nan"])
        arrays, about = back
        assert arrays["theta"].tolist() == back[0]["theta"].tolist() == [[1] * 3] * 2
        assert about["model"] == back.model and about["made_by"] == "a test" and about["layers"] == (0, 1)

    def test_any_reader_sees_each_field(self, tmp_path):
        """Text as it is, and a fingerprint of digits, or text that reads as JSON, is text again."""
        path, about = tmp_path / "v.safetensors", {"made_by": "a test", "layer": "2"}
        tvjax.save_vectors(path, {"theta": np.ones(3)}, model="1234567890123456", layers=[1, 2], about=about)
        with safetensors.safe_open(str(path), framework="numpy") as file:
            metadata = file.metadata()
        assert metadata["made_by"] == "a test" and metadata["address"] == "blocks/resid"
        assert metadata["layers"] == "[1, 2]" and metadata["positions"] == "last"
        back = tvjax.load_vectors(path)
        assert back.model == "1234567890123456" and back.about == about

    @pytest.mark.parametrize("name", ["model", "layers", "position"])
    def test_about_leaves_the_fields_alone(self, tmp_path, name):
        with pytest.raises(UserError, match=rf"about\.{name}: given 1; accepted: other names"):
            save(tmp_path / "v.safetensors", {"theta": np.ones(3)}, about={name: 1})

    def test_what_was_loaded_is_saved_as_what_it_was(self, tmp_path):
        first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
        loaded = save(first, {"theta": np.ones(3)}, layers=[1, 2], positions="all", template="{x} ->", about={"n": 1})
        tvjax.save_vectors(second, loaded)
        assert first.read_bytes() == second.read_bytes()
        tvjax.save_vectors(second, {"half": loaded["theta"] / 2}, layers=1)
        assert tvjax.load_vectors(second).model == loaded.model
        with pytest.raises(UserError, match=f"model: given '0123'; accepted: {loaded.model}, whose vectors these are"):
            tvjax.save_vectors(second, loaded, model="0123")

    def test_the_same_run_writes_the_same_bytes(self, tmp_path):
        """In another process, with another order of names."""
        program = """
import sys, numpy as np
from tvjax.vectors.store import save_vectors
arrays = {f"v{i}": np.full(3, i, ("float32", "int8", "float64")[i % 3]) for i in range(9)}
about = {f"k{i}": i for i in range(9)}
save_vectors(sys.argv[1], arrays, model="0123", layers=[1], about=about)
"""
        here, there = tmp_path / "here.safetensors", tmp_path / "there.safetensors"
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "PYTHONHASHSEED": "7"}
        subprocess.run([sys.executable, "-c", program, str(there)], env=environment, check=True, timeout=120)
        arrays = {f"v{i}": np.full(3, i, ("float32", "int8", "float64")[i % 3]) for i in reversed(range(9))}
        save(here, arrays, model="0123", layers=1, about={f"k{i}": i for i in reversed(range(9))})
        assert here.read_bytes() == there.read_bytes()
        assert safetensors.numpy.load_file(here).keys() == arrays.keys()


class TestRefused:
    @pytest.mark.parametrize(
        ("how", "line"),
        [
            ({"model": None}, r"model: given None; accepted: the model that .*save_vectors\(\.\.\., model=model"),
            ({"layers": None}, "layers: given None; accepted: a layer or a list of layers, 0..L"),
            ({"layers": "all"}, "layers: given 'all'"),
            ({"layers": [1.5]}, r"layers: given \[1.5\]"),
            ({"layers": -1}, "layers: given -1"),
            ({"address": "resid"}, "'resid'"),
            ({"address": 2}, "address: given 2; accepted: text"),
            ({"about": "a test"}, "about: given 'a test'; accepted: a mapping"),
            ({"about": {"seen": {"x": {1}}}}, r"about.seen.x: given \{1\}"),
            ({"about": {1: 2}}, "about: given 1; accepted: names that are text"),
        ],
    )
    def test_metadata_that_cannot_be_kept(self, tmp_path, how, line):
        with pytest.raises(UserError, match=line):
            save(tmp_path / "v.safetensors", {"theta": np.ones(3)}, **how)
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize(
        "value",
        [
            np.ones(2, np.complex64),
            np.array([None, {}]),
            "text",
            None,
            [[1], [1, 2]],
            np.ma.masked_array([1.0, 2.0], [True, False]),
            jax.random.key(0),
            np.ones(2, ml_dtypes.float8_e4m3fn),
            np.ones(2, np.longdouble),
        ],
        ids=lambda value: type(value).__name__,
    )
    def test_arrays_that_cannot_be_kept(self, tmp_path, value):
        with pytest.raises(UserError, match=r"vectors\['theta'\]: given .*accepted: an array of bool"):
            save(tmp_path / "v.safetensors", {"theta": value})

    @pytest.mark.parametrize(
        "vectors", [{1: np.ones(2)}, {"__metadata__": np.ones(2)}, {"\ud800": np.ones(2)}, np.ones(2)]
    )
    def test_names_that_cannot_be_kept(self, tmp_path, vectors):
        with pytest.raises(UserError, match="vectors: given"):
            save(tmp_path / "v.safetensors", vectors)

    def test_files_that_are_none(self, tmp_path):
        path = tmp_path / "v.safetensors"
        with pytest.raises(UserError, match=r"v\.safetensors: no such file"):
            tvjax.load_vectors(path)
        whole = safetensors.numpy.save({"theta": np.ones(9, np.float32)})
        for content, line in (
            (whole[:-4], "not a whole safetensors file"),
            (b"", "not a whole safetensors file"),
            (safetensors.numpy.save({"x": np.ones(2, ml_dtypes.float8_e4m3fn)}), "x: given F8_E4M3; accepted: BOOL"),
            (safetensors.numpy.save({"x": np.ones(2, np.complex64)}), "x: given C64; accepted: BOOL"),
        ):
            path.write_bytes(content)
            with pytest.raises(UserError, match=line):
                tvjax.load_vectors(path)
        with pytest.raises(UserError, match="a folder; accepted"):
            tvjax.load_vectors(tmp_path)
        for wrong in (tmp_path, path / "under"):
            with pytest.raises(UserError, match="cannot be written"):
                save(wrong, {"theta": np.ones(3)})

    def test_a_name_that_is_not_there(self, tmp_path):
        back = save(tmp_path / "v.safetensors", {"theta": np.ones(3), "phi": np.ones(3)})
        with pytest.raises(UserError, match="vectors: given 'thta'; accepted: phi, theta"):
            back["thta"]
        with pytest.raises(UserError, match=r"accepted: one: \['phi'\], \['theta'\]"):
            tvjax.add(back, layers=1)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "v.safetensors"
    save(path, {"theta": np.ones(3, np.float32)})
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        save(path, {"theta": np.zeros(3, np.float32)})
    assert tvjax.load_vectors(path)["theta"].tolist() == [1, 1, 1]
    assert [p.name for p in tmp_path.iterdir()] == ["v.safetensors"]


class TestFingerprint:
    def test_it_tells_models_apart(self):
        assert fingerprint(PARAMS) == fingerprint(dict(PARAMS))
        assert fingerprint(PARAMS) != fingerprint({"a": np.ones(3), "b": np.array([0, 1e-9])})
        assert fingerprint(PARAMS) != fingerprint({"a": np.ones(3), "c": np.zeros(2)})

    def test_it_is_that_of_the_numbers_wherever_they_lie(self):
        here, spread = (load_model(GOLDEN / "llama3", unroll=1, mesh=m) for m in (None, make_mesh(fsdp=4, tensor=2)))
        assert fingerprint(here.params) == fingerprint(spread.params)
        assert fingerprint(load_model(GOLDEN / "llama3", dtype="bfloat16").params) != fingerprint(here.params)

    def test_it_is_computed_once_for_arrays_that_cannot_change(self, monkeypatch):
        hashed = []
        whole = origin._hashed
        monkeypatch.setattr(origin, "_hashed", lambda params: hashed.append(1) or whole(params))
        params = jax.tree.map(jnp.asarray, PARAMS)
        first = fingerprint(params)
        assert fingerprint(dict(params)) == first and len(hashed) == 1
        assert fingerprint({**params, "a": 2 * params["a"]}) != first
        assert fingerprint({"a": params["a"], "c": params["b"]}) != first
        changing = {"a": np.ones(3), "b": np.zeros(2)}
        first = fingerprint(changing)
        changing["a"][0] = 2
        assert fingerprint(changing) != first
        for number in range(40):  # arrays that are gone leave their ids to others
            params = {"a": jnp.full(3, number)}
            assert fingerprint(params) == whole(params)
        assert len(origin._known) <= 16


class TestTheirModel:
    @pytest.fixture(scope="class")
    def models(self):
        return tuple(load_model(GOLDEN / name, unroll=1) for name in ("llama3", "qwen2"))

    @pytest.fixture
    def path(self, tmp_path, models):
        theta = np.random.default_rng(0).normal(size=(LAYERS + 1, 2, WIDTH)).astype(np.float32)
        path = tmp_path / "theta.safetensors"
        tvjax.save_vectors(path, {"theta": theta}, model=models[0], layers=range(LAYERS + 1))
        return path

    CALLS = (
        ("run", lambda m, edits: tvjax.run(m, PROMPTS, edits=edits)),
        ("capture", lambda m, edits: tvjax.capture(m, PROMPTS, ["blocks/resid"], edits=edits)["blocks/resid"]),
        ("generate", lambda m, edits: tvjax.generate(m, PROMPTS, max_new_tokens=2, edits=edits).ids_BT),
        ("steps", lambda m, edits: tvjax.generate(m, PROMPTS, max_new_tokens=2, edits=edits, during="steps").ids_BT),
    )
    WAYS = (
        ("slice", lambda v, **how: tvjax.replace(v["theta"][2], layers=2, **how)),
        ("scaled mean", lambda v, **how: tvjax.add(0.5 * v["theta"].mean(1)[2], layers=1, **how)),
        ("whole", lambda v, **how: tvjax.add(v, layers=range(LAYERS + 1), **how)),
        ("mixed", lambda v, **how: tvjax.mix(v["theta"][1].astype(np.float16), layers=2, keep=0.5, **how)),
        ("listed", lambda v, **how: [tvjax.add(np.ones(WIDTH), layers=1), tvjax.add(v["theta"][0], layers=1, **how)]),
        ("unpacked", lambda v, **how: tvjax.add(next(iter(v))["theta"][1], layers=1, **how)),
    )

    @pytest.mark.parametrize(("name", "call"), CALLS, ids=[name for name, _ in CALLS])
    def test_another_one_refuses_them(self, models, path, name, call):
        vectors, plain = tvjax.load_vectors(path), safetensors.numpy.load_file(path)
        ours, other = models
        for way, write in self.WAYS if name == "run" else self.WAYS[:1]:
            expected = write(dataclasses.replace(vectors, arrays=plain))  # arrays that know nothing
            np.testing.assert_array_equal(call(ours, write(vectors)), call(ours, expected))
            line = f"model {vectors.model} .*theta.safetensors.* is {fingerprint(other.params)} .*qwen2, in float32"
            with pytest.raises(UserError, match=line) as caught:
                call(other, write(vectors))
            assert "any_model=True" in str(caught.value) and "\n" not in str(caught.value), way
            if name != "steps":
                np.testing.assert_array_equal(call(other, write(vectors, any_model=True)), call(other, expected))

    @pytest.mark.parametrize("made", MADE)
    def test_what_numpy_makes_of_them_is_refused_too(self, models, path, made):
        theta = tvjax.load_vectors(path)["theta"][:, 0]
        vectors, plain = MADE[made](theta), MADE[made](np.asarray(theta))
        np.testing.assert_array_equal(np.asarray(vectors), plain)
        tvjax.run(models[0], PROMPTS[:1], edits=tvjax.add(vectors, layers=1))
        with pytest.raises(UserError, match="any_model"):
            tvjax.run(models[1], PROMPTS[:1], edits=tvjax.add(vectors, layers=1))

    def test_a_list_of_them_is_refused_too(self, models, path):
        theta = tvjax.load_vectors(path)["theta"]
        with pytest.raises(UserError, match="any_model"):
            tvjax.run(models[1], PROMPTS, edits=tvjax.add([theta[1, 0], theta[2, 0]], layers=[1, 2]))

    def test_those_of_two_models_do_not_mix(self, models, path, tmp_path):
        other = tmp_path / "other.safetensors"
        tvjax.save_vectors(other, {"theta": np.ones((3, WIDTH), np.float32)}, model=models[1], layers=range(3))
        a, b = (tvjax.load_vectors(p)["theta"] for p in (path, other))
        for mix in (
            lambda: a[1] + b[1],
            lambda: np.stack([a[1], b[1]]),
            lambda: tvjax.add([a[1], b[1]], layers=[1, 2]),
        ):
            with pytest.raises(UserError, match=r"of models .* and .* together"):
                mix()

    @pytest.mark.parametrize("positions", ["frist", 1.5, [0.5]])
    def test_positions_that_no_edit_takes(self, tmp_path, positions):
        with pytest.raises(UserError, match="positions"):
            save(tmp_path / "v.safetensors", {"theta": np.ones(3)}, positions=positions)

    def test_a_sweep_refuses_them(self, models, path):
        vectors = tvjax.load_vectors(path)
        plain = np.asarray(vectors["theta"])
        for given in (vectors, vectors["theta"]):
            np.testing.assert_array_equal(
                tvjax.sweep(models[0], PROMPTS, given), tvjax.sweep(models[0], PROMPTS, plain)
            )
            with pytest.raises(UserError, match="any_model"):
                tvjax.sweep(models[1], PROMPTS, given)
            tvjax.sweep(models[1], PROMPTS, given, any_model=True)

    def test_a_tree_of_edits_refuses_them(self, models, path):
        edit = tvjax.Edit(jnp.zeros(()), tvjax.load_vectors(path)["theta"][0][:, None])
        tvjax.run(models[0], PROMPTS, edits={"embed": edit})
        with pytest.raises(UserError, match="any_model"):
            tvjax.run(models[1], PROMPTS, edits={"embed": edit})

    def test_the_same_folder_in_another_dtype_is_another_model(self, path):
        half = load_model(GOLDEN / "llama3", unroll=1, dtype="bfloat16")
        with pytest.raises(UserError, match="llama3, in bfloat16"):
            tvjax.run(half, PROMPTS, edits=tvjax.add(tvjax.load_vectors(path)["theta"][2], layers=2))

    def test_a_model_whose_parameters_changed_is_another(self, models, path):
        """Whether they were replaced before or after a first call."""
        write = tvjax.add(tvjax.load_vectors(path)["theta"][2], layers=2)
        tvjax.run(models[0], PROMPTS, edits=write)
        params = jax.tree.map(lambda p: 1.01 * p, models[0].params)
        with pytest.raises(UserError, match="any_model"):
            tvjax.run(models[0].replace(params=params), PROMPTS, edits=write)

        def loss(params):
            return tvjax.run(models[0].replace(params=params), PROMPTS, edits=write).sum()

        with pytest.raises(UserError, match=r"in jit or grad .*any_model=True"):
            jax.grad(loss)(models[0].params)

    def test_nothing_is_hashed_for_vectors_that_know_no_model(self, models, monkeypatch):
        monkeypatch.setattr(origin, "_hashed", lambda params: pytest.fail("hashed"))
        monkeypatch.setattr(origin, "_known", [])
        write = tvjax.add(np.ones(WIDTH), layers=1)
        for name, call in self.CALLS:
            call(models[0], write if name != "steps" else None)

    def test_files_of_before_are_read(self, models, tmp_path):
        """One metadata key each, and those of others, which say nothing."""
        path = tmp_path / "old.safetensors"
        about = {"model": fingerprint(models[0].params), "position": "last", "layers": "[1, 2]", "layer": "2"}
        path.write_bytes(safetensors.numpy.save({"theta": np.ones(WIDTH, np.float32)}, metadata=about))
        old = tvjax.load_vectors(path)
        assert (old.layers, old.positions, old.about) == ((1, 2), "last", {"layer": 2})
        tvjax.run(models[0], PROMPTS, edits=tvjax.add(old, layers=1))
        with pytest.raises(UserError, match=about["model"]):
            tvjax.run(models[1], PROMPTS, edits=tvjax.add(old, layers=1))
        for metadata in (None, {"layers": "0..L"}):
            path.write_bytes(safetensors.numpy.save({"theta": np.ones(WIDTH, np.float32)}, metadata=metadata))
            tvjax.run(models[1], PROMPTS, edits=tvjax.add(tvjax.load_vectors(path), layers=1))
