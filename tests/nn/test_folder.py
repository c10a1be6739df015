"""What a folder may be: whole safetensors, in one file or many, with the names and shapes that we know."""

import json
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy

import tvjax
from tests.nn.golden import GOLDEN
from tvjax.errors import UserError
from tvjax.nn.pretrained.weights import load_folder
from tvjax.parallel.mesh import make_mesh


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

    @pytest.mark.parametrize(("option", "value"), [("unroll", 4), ("unroll", -1), ("dtype", "int8")])
    def test_an_option_that_it_does_not_have_is_refused(self, folder, option, value):
        with pytest.raises(UserError, match=f"{option}: given {value!r}"):
            tvjax.load(folder, **{option: value})

    @pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
    def test_another_dtype_is_the_same_numbers_rounded(self, folder, dtype):
        whole, rounded = load_folder(folder)[1], load_folder(folder, dtype=dtype)[1]
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(a.astype(dtype), b), whole, rounded)

    def test_links_into_the_blobs_of_a_cache_are_followed(self, folder, tmp_path):
        blobs, snapshot = tmp_path / "cache" / "blobs", tmp_path / "cache" / "snapshots" / "abc"
        blobs.mkdir(parents=True)
        snapshot.mkdir(parents=True)
        expected = load_folder(folder)[1]
        shutil.copy(folder / "config.json", snapshot)
        shutil.move(folder / "model.safetensors", blobs / "1234")
        (snapshot / "model.safetensors").symlink_to(blobs / "1234")
        jax.tree.map(np.testing.assert_array_equal, load_folder(snapshot)[1], expected)

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
            ("rope_parameters", {"rope_type": "default", "rope_theta": None}, "rope_theta"),
            ("num_hidden_layers", 0, "1 or more"),
            ("num_hidden_layers", "3", "a value of type int"),
            ("num_attention_heads", None, "a value of type int"),
            ("num_key_value_heads", 3, "do not divide"),
            ("quantization_config", {"bits": 4}, "not implemented"),
            ("is_causal", False, "not implemented"),
            ("head_dim", 5, "even number"),
        ],
    )
    def test_what_is_not_implemented_is_refused_by_name(self, folder, field, value, says):
        self.settings(folder, **{field: value})
        with pytest.raises(UserError) as error:
            tvjax.load(folder)
        assert says in str(error.value) and "config.json" in str(error.value)
