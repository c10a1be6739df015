"""Folders that are read, written and read again, here and by `transformers`, alone and one over another."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import tvjax
from tests.nn.golden import GOLDEN, each_family, make, needs_torch
from tvjax.errors import UserError
from tvjax.nn.decoder import Decoder, DecoderConfig
from tvjax.nn.model import Model
from tvjax.nn.pretrained.folder import INDEX, SINGLE
from tvjax.nn.pretrained.weights import COLUMNS, _copy, _laid_out

DTYPES = ("float32", "bfloat16", "float16")
every_dtype = pytest.mark.parametrize("dtype", DTYPES)
in_turn = pytest.mark.parametrize(
    ("name", "dtype"),
    [
        pytest.param(name, dtype, marks=pytest.mark.slow if (i + j) % 3 == 0 else pytest.mark.exhaustive)
        for i, name in enumerate(make.MODELS)
        for j, dtype in enumerate(DTYPES)
    ],
)
"""Every folder in one of the dtypes, and in the others before a release."""
WORDS = {
    "model": {"type": "WordLevel", "vocab": {"a": 0, "<pad>": 1, "</s>": 2}, "unk_token": "a"},
    **dict.fromkeys(("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder")),
    "version": "1.0",
    "added_tokens": [],
}


def stored(name, dtype, folder):
    """A golden folder whose tensors, and config.json, are of `dtype`."""
    folder.mkdir()
    tensors = safetensors.numpy.load_file(GOLDEN / name / SINGLE)
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
    safetensors.numpy.save_file({n: t.astype(kind) for n, t in tensors.items()}, folder / SINGLE, {"format": "pt"})
    values = json.loads((GOLDEN / name / "config.json").read_text()) | {"dtype": dtype}
    (folder / "config.json").write_text(json.dumps(values))
    return folder


def same(one, other):
    """Whether two models are the same, to the last bit of their parameters."""
    assert dataclasses.replace(one.config, unroll=0) == dataclasses.replace(other.config, unroll=0)
    jax.tree.map(np.testing.assert_array_equal, one.params, other.params)
    assert {p.dtype for p in jax.tree.leaves(one.params)} == {p.dtype for p in jax.tree.leaves(other.params)}


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0), (2, 0, 1), (0, 2, 1)])
def test_a_tensor_in_any_order_is_laid_out_whole(order):
    part = np.random.default_rng(0).normal(size=(3, 2 * COLUMNS + 5, COLUMNS + 1)).astype(np.float32).transpose(order)
    rows = _laid_out(part, np.dtype(ml_dtypes.bfloat16))
    assert rows.flags.c_contiguous
    np.testing.assert_array_equal(rows, part.astype(ml_dtypes.bfloat16))
    for shape in (part.shape[:-1] + (COLUMNS,), (part.shape[0] + 1, *part.shape[1:])):
        with pytest.raises(ValueError, match="broadcast"):
            _copy(np.empty(shape, np.float32), part)


@every_dtype
@each_family
def test_load_export_load(name, dtype, tmp_path):
    """66 cases: 22 folders in 3 dtypes."""
    model = tvjax.load(stored(name, dtype, tmp_path / "in"))
    assert model.config.param_dtype == dtype
    tvjax.export(model, tmp_path / "out")
    same(tvjax.load(tmp_path / "out"), model)
    values, before = (json.loads((tmp_path / f / "config.json").read_text()) for f in ("out", "in"))
    assert values == before | {"tie_word_embeddings": model.config.tied_readout, "dtype": dtype}
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"config.json", SINGLE}


@needs_torch
@in_turn
def test_export_transformers_save_load(name, dtype, tmp_path):
    """66 cases: what transformers read is what was exported, and comes back from shards, over which the next goes."""
    import torch
    import transformers

    model = tvjax.load(stored(name, dtype, tmp_path / "in"), unroll=1)
    tvjax.export(model, tmp_path / "out")
    theirs, source = (transformers.AutoModelForCausalLM.from_pretrained(tmp_path / f) for f in ("out", "in"))
    assert theirs.dtype == source.dtype == getattr(torch, dtype)
    for path, tensor in source.state_dict().items():
        assert torch.equal(tensor, theirs.state_dict()[path]), path
    theirs.save_pretrained(tmp_path / "back", max_shard_size="4KB")
    assert (tmp_path / "back" / INDEX).is_file()
    back = tvjax.load(tmp_path / "back", unroll=1)
    same(back, model)
    if dtype == "float32":
        ids = np.array([make.PROMPTS[0]])
        with torch.no_grad():
            logits = theirs.eval()(torch.tensor(ids)).logits.numpy()
        np.testing.assert_allclose(tvjax.run(back, jnp.asarray(ids)), logits, atol=1e-4)
    halved = back.replace(params=jax.tree.map(lambda p: p / 2, back.params))
    tvjax.export(halved, tmp_path / "back")
    same(tvjax.load(tmp_path / "back"), halved)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back").state_dict()
    tvjax.export(halved, tmp_path / "clean")
    clean = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "clean").state_dict()
    assert all(torch.equal(tensor, again[path]) for path, tensor in clean.items())


def trained():
    """A token model as one that is trained here: it came from no folder."""
    config = DecoderConfig(2, 8, 2, 11, inputs="tokens", vocab_size=11, max_positions=16, unbiased=("readout",))
    params = jax.jit(Decoder(config).init)(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    return Model(params, config)


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """Models of several families and dtypes, with and without a tokenizer, and what a clean export of each holds."""
    root = tmp_path_factory.mktemp("pool")
    texts = {"tokenizer.json": json.dumps(WORDS), "tokenizer_config.json": '{"pad_token": "<pad>"}'}
    others = {"tokenizer.json": json.dumps(WORDS), "generation_config.json": "{}", "merges.txt": "", "vocab.json": "{}"}
    models = []
    for name, dtype, files in (("llama3", "float32", texts), ("gpt2", "bfloat16", {}), ("gemma2", "float16", others)):
        folder = stored(name, dtype, root / name)
        for file, text in files.items():
            (folder / file).write_text(text)
        models.append(tvjax.load(folder))
    models += [trained(), models[0].replace(params=jax.tree.map(lambda p: -p, models[0].params))]
    folders = [root / f"clean{number}" for number in range(len(models))]
    for model, folder in zip(models, folders, strict=True):
        tvjax.export(model, folder)
    return models, folders


def scatter(folder, rng):
    """Put the folder's tensors into shards with an index, as another program would, or leave both forms there."""
    tensors = safetensors.numpy.load_file(folder / SINGLE)
    count = int(rng.integers(1, 4))
    pattern = ["model-{:05}-of-{:05}.safetensors", "part{}of{}.safetensors"][rng.integers(2)]
    files = {name: pattern.format(rng.integers(1, count + 1), count) for name in tensors}
    for file in set(files.values()):
        safetensors.numpy.save_file({n: tensors[n] for n in tensors if files[n] == file}, folder / file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": files}))
    if rng.integers(2):
        (folder / SINGLE).unlink()


def sequences(seed, pool, folder):
    """Export the pool's models in a random order over each other, scattered in between: the folder after each."""
    rng = np.random.default_rng(seed)
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    for step in range(4):
        chosen = int(rng.integers(len(pool)))
        tvjax.export(pool[chosen], folder)
        yield chosen
        if step % 2 == 0:
            scatter(folder, rng)


@pytest.mark.parametrize("seed", range(10))
def test_after_any_exports_the_folder_is_the_last_model(seed, pool, tmp_path):
    """40 exports over folders in one file, in shards, with both, with and without a tokenizer."""
    models, clean = pool
    folder = tmp_path / "folder"
    for chosen in sequences(seed, models, folder):
        assert {p.name for p in folder.iterdir()} == {p.name for p in clean[chosen].iterdir()} | {"notes.txt"}
        for path in clean[chosen].iterdir():
            assert (folder / path.name).read_bytes() == path.read_bytes()
        if models[chosen].source:
            same(tvjax.load(folder), models[chosen])


@needs_torch
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10, 15))
def test_transformers_reads_the_last_model_too(seed, pool, tmp_path):
    import torch
    import transformers

    def read(folder):
        return transformers.AutoModelForCausalLM.from_pretrained(folder).state_dict()

    models, clean = pool
    folder = tmp_path / "folder"
    for chosen in sequences(seed, models, folder):
        expected, tensors = read(clean[chosen]), read(folder)
        assert expected.keys() == tensors.keys()
        assert all(torch.equal(tensor, tensors[path]) for path, tensor in expected.items())


class Killed(BaseException):
    """What ends a process between two changes of a folder."""


def test_killed_at_any_change_the_folder_is_the_old_model_the_new_one_or_none(pool, tmp_path, monkeypatch):
    models, _ = pool
    left = {"old": 0, "new": 0, "none": 0}
    originals = {"os.replace": os.replace, "pathlib.Path.unlink": Path.unlink}
    for last in range(40):
        folder = tmp_path / str(last)
        tvjax.export(models[0], folder)
        scatter(folder, np.random.default_rng(last))
        done = {"count": 0}

        def counted(original, done=done, last=last):
            def change(*args, **options):
                if done["count"] == last:
                    raise Killed
                done["count"] += 1
                return original(*args, **options)

            return change

        with monkeypatch.context() as patch:
            for name, original in originals.items():
                patch.setattr(name, counted(original))
            try:
                tvjax.export(models[2], folder)
                finished = True
            except Killed:
                finished = False
        try:
            model = tvjax.load(folder)
        except UserError as error:
            assert "config.json: missing" in str(error)
            left["none"] += 1
        else:
            new = "gemma2" in str(model.source.values["model_type"])
            same(model, models[2 if new else 0])
            assert set(model.source.files) == set(models[2 if new else 0].source.files)
            left["new" if new else "old"] += 1
        if finished:
            break
        tvjax.export(models[2], folder)
        same(tvjax.load(folder), models[2])
    assert finished and left["old"] >= 3 and left["none"] >= 5 and left["new"] == 1


def test_a_stage_that_a_killed_export_left_goes(pool, tmp_path):
    shutil.copytree(pool[1][0], tmp_path / ".tvjax-export")
    tvjax.export(pool[0][1], tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"config.json", SINGLE}
