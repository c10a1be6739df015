"""Pretrained families against `transformers`: golden folders, and where torch is installed, new models made now."""

import dataclasses
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import tvjax
from tests.nn.golden import make
from tvjax.errors import UserError
from tvjax.nn.decoder import Decoder, DecoderConfig
from tvjax.nn.model import Model, forward
from tvjax.nn.pretrained.families import FAMILIES, read_config
from tvjax.nn.pretrained.weights import abstract_params, load_folder, save_folder
from tvjax.nn.tokens import pad
from tvjax.parallel.mesh import make_mesh, shardings
from tvjax.vectors.tvp import STREAM, stream_at

GOLDEN = Path(make.__file__).parent
HAS_TORCH = all(importlib.util.find_spec(name) for name in ("torch", "transformers"))
needs_torch = pytest.mark.skipif(not HAS_TORCH, reason="needs the parity extra")
every_model = pytest.mark.parametrize("name", make.MODELS)


def check(folder, atol=1e-4):
    """Logits, every layer's state and 32 greedy tokens, padded on either side, as transformers says them."""
    model, said = tvjax.load(folder), safetensors.numpy.load_file(folder / "said.safetensors")
    for side in ("left", "right"):
        tokens = pad(make.PROMPTS, side=side)
        out, found = forward(
            model.decoder, model.params, tokens.ids_BT, addresses=STREAM, positions_BT=tokens.positions_BT
        )
        states = stream_at(found, slice(None))
        made = tvjax.generate(model, tokens, max_new_tokens=make.NEW_TOKENS)
        for number in range(len(make.PROMPTS)):
            real = np.asarray(tokens.valid_BT[number])
            np.testing.assert_allclose(out[number][real], said[f"logits.{number}"], atol=atol, rtol=0)
            np.testing.assert_allclose(states[:, number][:, real], said[f"states.{number}"], atol=atol, rtol=0)
            np.testing.assert_array_equal(made.ids_BN[number], said[f"tokens.{number}"])


@every_model
def test_golden(name):
    check(GOLDEN / name)


@needs_torch
@pytest.mark.slow
@every_model
def test_made_now(name, tmp_path):
    make.write(tmp_path, name, seed=1)
    check(tmp_path)


def test_every_family_has_a_golden_model():
    kinds = {json.loads((GOLDEN / name / "config.json").read_text())["model_type"] for name in make.MODELS}
    assert kinds == set(FAMILIES)


class TestFolder:
    """What a folder may be: whole safetensors, in one file or many, with the names and shapes that we know."""

    @pytest.fixture
    def folder(self, tmp_path):
        shutil.copytree(GOLDEN / "llama3", tmp_path / "model")
        return tmp_path / "model"

    def tensors(self, folder):
        return safetensors.numpy.load_file(folder / "model.safetensors")

    def write(self, folder, tensors):
        safetensors.numpy.save_file(tensors, folder / "model.safetensors")

    def settings(self, folder, **changes):
        path = folder / "config.json"
        values = {**json.loads(path.read_text()), **changes}
        path.write_text(json.dumps(values))

    def split(self, folder, second="model-00002-of-00002.safetensors"):
        """The same tensors in two files with an index."""
        tensors = self.tensors(folder)
        names = sorted(tensors)
        shares = {"model-00001-of-00002.safetensors": names[::2], second: names[1::2]}
        for file, share in shares.items():
            if "/" not in file:
                safetensors.numpy.save_file({n: tensors[n] for n in share}, folder / file)
        (folder / "model.safetensors").unlink()
        index = {"weight_map": {n: file for file, share in shares.items() for n in share}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    def test_a_sharded_folder_is_the_same_model(self, folder):
        expected = load_folder(folder)[1]
        self.split(folder)
        jax.tree.map(np.testing.assert_array_equal, load_folder(folder)[1], expected)

    def test_a_bare_checkpoint_without_the_prefix_is_the_same_model(self, folder):
        expected = load_folder(folder)[1]
        self.write(folder, {n.removeprefix("model."): t for n, t in self.tensors(folder).items()})
        jax.tree.map(np.testing.assert_array_equal, load_folder(folder)[1], expected)

    def test_it_lies_on_the_mesh_by_the_rules(self, folder):
        mesh = make_mesh(tensor=2)
        expected = load_folder(folder)[1]
        params = load_folder(folder, mesh=mesh)[1]
        jax.tree.map(np.testing.assert_array_equal, params, expected)
        kernel = params["blocks"]["up"]["kernel"]
        assert kernel.sharding.shard_shape(kernel.shape) == (*kernel.shape[:-1], kernel.shape[-1] // 2)

    @pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
    def test_another_dtype_is_the_same_numbers_rounded(self, folder, dtype):
        whole, rounded = load_folder(folder)[1], load_folder(folder, dtype=dtype)[1]
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(a.astype(dtype), b), whole, rounded)

    def test_links_into_the_blobs_of_a_cache_are_followed(self, folder, tmp_path):
        blobs, snapshot = tmp_path / "cache" / "blobs", tmp_path / "cache" / "snapshots" / "abc"
        blobs.mkdir(parents=True)
        snapshot.mkdir(parents=True)
        shutil.copy(folder / "config.json", snapshot)
        shutil.move(folder / "model.safetensors", blobs / "1234")
        (snapshot / "model.safetensors").symlink_to(blobs / "1234")
        load_folder(snapshot)

    def break_missing(self, folder):
        tensors = self.tensors(folder)
        del tensors["model.layers.1.mlp.up_proj.weight"]
        self.write(folder, tensors)

    def break_surplus(self, folder):
        self.write(folder, self.tensors(folder) | {"model.layers.9.mlp.up_proj.weight": np.zeros((2, 2), np.float32)})

    def break_shape(self, folder):
        name = "model.layers.1.mlp.up_proj.weight"
        tensors = self.tensors(folder)
        self.write(folder, tensors | {name: tensors[name][:-1]})

    def break_dtype(self, folder):
        name = "model.norm.weight"
        tensors = self.tensors(folder)
        self.write(folder, tensors | {name: tensors[name].astype(np.int32)})

    def break_truncated(self, folder):
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-100])

    def break_outside(self, folder):
        self.split(folder, second="../stolen.safetensors")

    def break_outside_link(self, folder):
        (folder / "model.safetensors").rename(folder.parent / "stolen.safetensors")
        (folder / "model.safetensors").symlink_to(folder.parent / "stolen.safetensors")

    def break_index_names_no_file(self, folder):
        self.split(folder)
        (folder / "model-00002-of-00002.safetensors").unlink()

    def break_index_is_wrong(self, folder):
        self.split(folder)
        path = folder / "model.safetensors.index.json"
        values = json.loads(path.read_text())
        values["weight_map"]["model.norm.weight"] = next(
            f for f in values["weight_map"].values() if f != values["weight_map"]["model.norm.weight"]
        )
        path.write_text(json.dumps(values))

    def break_pickle(self, folder):
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")

    def break_nothing_there(self, folder):
        (folder / "model.safetensors").unlink()

    def break_config_is_no_json(self, folder):
        (folder / "config.json").write_text("{")

    @pytest.mark.parametrize(
        ("how", "says"),
        {
            "missing": "no tensor model.layers.1.mlp.up_proj.weight",
            "surplus": "model.layers.9.mlp.up_proj.weight",
            "shape": "given shape [23, 16]; accepted: [24, 16]",
            "dtype": "given I32; accepted: F32, F16, BF16",
            "truncated": "not a whole safetensors file",
            "outside": "'../stolen.safetensors'; accepted: files in this folder",
            "outside_link": "'model.safetensors'; accepted: files in this folder",
            "index_names_no_file": "no such file",
            "index_is_wrong": "has no tensor model.norm.weight",
            "pickle": "pytorch_model.bin, a pickle",
            "nothing_there": "neither model.safetensors nor",
            "config_is_no_json": "not whole JSON",
        }.items(),
    )
    def test_a_broken_folder_is_refused_in_one_line(self, folder, how, says):
        getattr(self, f"break_{how}")(folder)
        with pytest.raises(UserError) as error:
            tvjax.load(folder)
        assert says in str(error.value) and "\n" not in str(error.value) and str(folder) in str(error.value)

    @pytest.mark.parametrize(
        ("field", "value", "says"),
        [
            ("model_type", "mamba", "gpt2, gpt_neox, gptj, llama"),
            ("hidden_act", "xielu", "gelu_new"),
            ("rope_parameters", {"rope_type": "yarn", "factor": 2.0}, "default, linear or llama3"),
            ("rope_parameters", {"rope_type": "linear"}, "all numbers that rope_type linear needs"),
            ("rope_parameters", {"rope_type": "default", "beta_fast": 3}, "beta_fast"),
            ("num_hidden_layers", 0, "1 or more"),
            ("num_hidden_layers", "3", "a value of type int"),
            ("num_attention_heads", None, "a value of type int"),
            ("num_key_value_heads", 3, "do not divide"),
            ("quantization_config", {"bits": 4}, "not implemented"),
            ("attention_sinks", 4, "does not know"),
            ("head_dim", 5, "even number"),
        ],
    )
    def test_what_is_not_implemented_is_refused_by_name(self, folder, field, value, says):
        self.settings(folder, **{field: value})
        with pytest.raises(UserError) as error:
            tvjax.load(folder)
        assert says in str(error.value) and "config.json" in str(error.value)


class TestExport:
    @every_model
    def test_back_and_forth_changes_no_bit(self, name, tmp_path):
        model = tvjax.load(GOLDEN / name)
        tvjax.export(model, tmp_path)
        again = tvjax.load(tmp_path)
        assert again.config == model.config
        jax.tree.map(np.testing.assert_array_equal, again.params, model.params)
        first, second = (safetensors.numpy.load_file(f / "model.safetensors") for f in (GOLDEN / name, tmp_path))
        for tensor in second.keys() | first.keys() - {"lm_head.weight", "embed_out.weight"}:
            np.testing.assert_array_equal(first[tensor], second[tensor])

    def trained(self, **changes):
        config = DecoderConfig(
            num_layers=2,
            width=16,
            num_heads=2,
            num_outputs=20,
            inputs="tokens",
            vocab_size=21,
            max_positions=32,
            unbiased=("readout",),
        )
        config = dataclasses.replace(config, **changes)
        params = Decoder(config).init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
        return Model(
            jax.tree.map(lambda p: p + 0.1 * jax.random.normal(jax.random.key(p.size), p.shape), params), config
        )

    VARIANTS = {  # noqa: RUF012
        "as trained": {},
        "without biases": {"bias": False},
        "like llama": {
            "positions": "rotary",
            "norm": "rmsnorm",
            "mlp": "gated_silu",
            "num_kv_heads": 1,
            "bias": False,
            "max_positions": 0,
        },
    }

    @pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
    def test_a_model_trained_here_comes_back_the_same(self, changes, tmp_path):
        model = self.trained(**changes)
        tvjax.export(model, tmp_path)
        ids = jax.random.randint(jax.random.key(1), (2, 7), 0, 21)
        again = tvjax.run(tvjax.load(tmp_path), ids)
        np.testing.assert_allclose(again[..., :20], tvjax.run(model, ids), atol=1e-5)

    @needs_torch
    @pytest.mark.slow
    @pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
    def test_transformers_reads_it_and_says_the_same(self, changes, tmp_path):
        import torch
        import transformers

        model = self.trained(**changes)
        tvjax.export(model, tmp_path)
        theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
        ids = np.array(jax.random.randint(jax.random.key(1), (2, 7), 0, 21))
        with torch.no_grad():
            logits = theirs(torch.tensor(ids, dtype=torch.long)).logits.numpy()
        np.testing.assert_allclose(logits[..., :20], tvjax.run(model, jnp.asarray(ids)), atol=1e-4)

    @pytest.mark.parametrize(
        "changes", [{"norm": "rmsnorm"}, {"unbiased": ()}, {"mlp": "gated_silu"}, {"num_kv_heads": 1}]
    )
    def test_what_no_family_has_is_refused(self, changes, tmp_path):
        with pytest.raises(UserError, match="export"):
            tvjax.export(self.trained(**changes), tmp_path)
        assert not list(tmp_path.iterdir())


class TestScale:
    """The largest models, by their shapes alone."""

    LLAMA3 = {  # noqa: RUF012
        "model_type": "llama",
        "vocab_size": 128256,
        "num_key_value_heads": 8,
        "max_position_embeddings": 8192,
        "rope_theta": 500000.0,
        "rms_norm_eps": 1e-5,
    }
    SIZES = {  # noqa: RUF012
        "Llama-3-8B": (
            LLAMA3
            | {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "intermediate_size": 14336},
            8_030_261_248,
        ),
        "Llama-3-70B": (
            LLAMA3
            | {"hidden_size": 8192, "num_hidden_layers": 80, "num_attention_heads": 64, "intermediate_size": 28672},
            70_553_706_496,
        ),
        "Mistral-7B": (
            {
                "model_type": "mistral",
                "vocab_size": 32000,
                "hidden_size": 4096,
                "num_hidden_layers": 32,
                "num_attention_heads": 32,
                "num_key_value_heads": 8,
                "intermediate_size": 14336,
                "max_position_embeddings": 32768,
                "sliding_window": 4096,
            },
            7_241_732_096,
        ),
    }

    @pytest.mark.parametrize("name", SIZES)
    def test_shapes_and_shardings(self, name):
        values, count = self.SIZES[name]
        config = read_config(values, "config.json", dtype="bfloat16", param_dtype="bfloat16", unroll=1)
        abstract = abstract_params(config)
        assert sum(leaf.size for leaf in jax.tree.leaves(abstract)) == count
        places = shardings(make_mesh(tensor=8), abstract, members=False)
        share = sum(
            int(np.prod(place.shard_shape(leaf.shape)))
            for leaf, place in zip(jax.tree.leaves(abstract), jax.tree.leaves(places), strict=True)
        )
        assert share < 1.01 * count / 8

    def test_capturing_one_layer_stores_one(self):
        config = DecoderConfig(num_layers=32, width=64, num_heads=4, num_outputs=8, unroll=1, positions="none")
        decoder, inputs = Decoder(config), jnp.zeros((16, 64, 5))
        params = jax.eval_shape(lambda: decoder.init(jax.random.key(0), inputs))["params"]

        def bytes_of(**options):
            run = lambda p, i: forward(decoder, p, i, at=slice(0, 1), **options)
            memory = jax.jit(run).lower(params, inputs).compile().memory_analysis()
            return memory.output_size_in_bytes + memory.temp_size_in_bytes

        nothing = bytes_of()
        one = bytes_of(addresses=("blocks/resid",), layers=(14,))
        state = 16 * 64 * 64 * 4
        assert one < nothing + 4 * state
        assert bytes_of(addresses=("blocks/resid",)) > nothing + 31 * state
        last = bytes_of(addresses=("blocks/resid",), read_BN=jnp.full((16, 1), 63))
        assert last < nothing + 4 * state


MEASURE = """
import resource, sys
import jax, jax.numpy as jnp
from tvjax.nn.pretrained.weights import load_folder
jnp.zeros(3).block_until_ready()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
params = load_folder(sys.argv[1])[1]
jax.block_until_ready(params)
size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
print(size, 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))
"""


@pytest.mark.slow
def test_loading_a_gigabyte_takes_little_more(tmp_path):
    """Peak host memory, code and compiler left out, is at most 1.2 times the parameters."""
    values = {
        "model_type": "llama",
        "vocab_size": 16000,
        "hidden_size": 1024,
        "num_hidden_layers": 16,
        "num_attention_heads": 16,
        "intermediate_size": 3584,
        "max_position_embeddings": 2048,
        "torch_dtype": "float32",
    }
    config = read_config(values, "config.json")
    params = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), abstract_params(config))
    save_folder(tmp_path, config, params, values)
    del params
    done = subprocess.run([sys.executable, "-c", MEASURE, str(tmp_path)], capture_output=True, text=True, check=True)
    size, peak = map(int, done.stdout.split())
    assert size > 1e9
    assert peak < 1.2 * size, f"{peak / size:.2f} times"
