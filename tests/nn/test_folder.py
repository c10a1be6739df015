"""What a folder may be: whole safetensors, in one file or many, with the names and shapes that we know."""

import json
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import tvjax
from tests.nn.golden import GOLDEN, each_family, needs_torch
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

    def test_a_single_file_goes_before_an_index(self, folder):
        tensors = self.tensors(folder)
        expected = load_folder(folder)[1]
        self.split(folder)
        for share in folder.glob("model-*"):
            halves = {n: t / 2 for n, t in safetensors.numpy.load_file(share).items()}
            safetensors.numpy.save_file(halves, share)
        self.write(folder, tensors)
        with pytest.warns(UserWarning, match="model.safetensors is read") as warned:
            jax.tree.map(np.testing.assert_array_equal, load_folder(folder)[1], expected)
        assert [one.filename for one in warned] == [__file__]

    def test_files_that_an_index_names_are_read_whole_and_others_are_not(self, folder):
        expected = load_folder(folder)[1]
        self.write(folder.parent, {n: t / 2 for n, t in self.tensors(folder).items()})
        self.split(folder)
        path = folder / "model.safetensors.index.json"
        values = json.loads(path.read_text())
        del values["weight_map"]["lm_head.weight"]
        path.write_text(json.dumps(values))
        for other in ("model-00003-of-00003", "consolidated", "adapter_model"):
            shutil.copy(folder.parent / "model.safetensors", folder / f"{other}.safetensors")
        jax.tree.map(np.testing.assert_array_equal, load_folder(folder)[1], expected)

    def test_a_path_that_is_a_file_is_no_folder(self, folder):
        with pytest.raises(UserError, match="does not read as text"):
            load_folder(folder / "config.json")
        with pytest.raises(UserError, match=r"config\.json: a file"):
            tvjax.load(folder / "config.json")

    def halves(self, folder, chosen, dtype):
        """The folder with the tensors that `chosen` picks in another dtype."""
        self.write(folder, {n: t.astype(dtype) if chosen(n) else t for n, t in self.tensors(folder).items()})

    @pytest.mark.parametrize(
        ("kinds", "expected"),
        [
            (("float16", "float16"), "float16"),
            (("bfloat16", "bfloat16"), "bfloat16"),
            (("float32", "bfloat16"), "float32"),
            (("float16", "bfloat16"), "float32"),
        ],
    )
    def test_the_dtype_holds_every_tensor_as_it_is(self, folder, kinds, expected):
        self.settings(folder, dtype=expected)
        for kind, norms in zip(kinds, (True, False), strict=True):
            self.halves(folder, lambda n, norms=norms: ("norm" in n) == norms, kind)
        tensors, (config, params, _) = self.tensors(folder), load_folder(folder)
        assert (config.dtype, config.param_dtype) == (expected, expected)
        for ours, theirs in (("front", "embed_tokens"), ("norm", "norm")):
            (leaf,) = jax.tree.leaves(params[ours])
            np.testing.assert_array_equal(
                leaf.astype(jnp.float32), tensors[f"model.{theirs}.weight"].astype(np.float32)
            )

    def test_tensors_that_are_not_read_do_not_decide_the_dtype(self, folder):
        self.settings(folder, dtype="float16")
        self.halves(folder, lambda n: True, "float16")
        extra = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": np.ones(2, np.float32) for i in range(3)}
        self.write(folder, self.tensors(folder) | extra)
        assert load_folder(folder)[0].param_dtype == "float16"

    @pytest.mark.parametrize("field", ["dtype", "torch_dtype"])
    def test_the_tensors_decide_where_config_json_names_another_dtype(self, folder, field):
        self.settings(folder, dtype=None)
        self.settings(folder, **{field: "bfloat16"})
        with pytest.warns(UserWarning, match=f"{field} of config.json is bfloat16, its tensors are float32"):
            assert load_folder(folder)[0].param_dtype == "float32"

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

    def break_twice(self, folder):
        tensors = self.tensors(folder)
        self.split(folder)
        path = folder / "model-00001-of-00002.safetensors"
        safetensors.numpy.save_file(
            safetensors.numpy.load_file(path) | {"lm_head.weight": tensors["lm_head.weight"]}, path
        )
        path = folder / "model-00002-of-00002.safetensors"
        safetensors.numpy.save_file(
            safetensors.numpy.load_file(path) | {"lm_head.weight": tensors["lm_head.weight"]}, path
        )

    def break_adapter(self, folder):
        (folder / "adapter_config.json").write_text("{}")

    def break_ranks(self, folder):
        (folder / "shard-00000-model-00001-of-00001.safetensors").write_bytes(b"")

    def break_other_file(self, folder):
        self.settings(folder, transformers_weights="other.safetensors")

    def break_config_link(self, folder):
        (folder / "config.json").rename(folder.parent / "elsewhere.json")
        (folder / "config.json").symlink_to(folder.parent / "elsewhere.json")

    def break_tokenizer_link(self, folder):
        (folder.parent / "elsewhere.json").write_text("{}")
        (folder / "tokenizer.json").symlink_to(folder.parent / "elsewhere.json")

    def break_tokenizer(self, folder):
        (folder / "tokenizer.json").write_text('{"version": "1.0",\n')

    def break_empty(self, folder):
        self.write(folder, self.tensors(folder) | {"model.norm.weight": np.zeros((0, 16), np.float32)})

    def break_float64(self, folder):
        self.write(folder, self.tensors(folder) | {"model.norm.weight": np.ones(16, np.float64)})

    def break_float8(self, folder):
        self.write(folder, self.tensors(folder) | {"model.norm.weight": np.ones(16, ml_dtypes.float8_e4m3fn)})

    def break_a_layer_more(self, folder):
        shutil.copytree(GOLDEN / "gpt2", folder, dirs_exist_ok=True)
        self.write(folder, self.tensors(folder) | {"transformer.h.3.attn.c_attn.bias": np.zeros(48, np.float32)})

    def break_file_is_a_folder(self, folder):
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors").mkdir()

    def break_no_head(self, folder):
        tensors = self.tensors(folder)
        del tensors["lm_head.weight"]
        self.write(folder, tensors)

    def break_head_of_another_size(self, folder):
        self.settings(folder, tie_word_embeddings=True)
        self.write(folder, self.tensors(folder) | {"lm_head.weight": np.ones((65, 16), np.float32)})

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
            "twice": "lm_head.weight twice, in model-0000",
            "adapter": "adapter_config.json",
            "ranks": "shard-00000-model-00001-of-00001.safetensors",
            "other_file": "transformers_weights: given 'other.safetensors'",
            "config_link": "'config.json'; accepted: files in this folder",
            "tokenizer_link": "'tokenizer.json'; accepted: files in this folder",
            "tokenizer": "tokenizer.json: not a whole tokenizer",
            "empty": "given shape [0, 16]; accepted: [16]",
            "float64": "given F64; accepted: F32, F16, BF16",
            "float8": "given F8_E4M3; accepted: F32, F16, BF16",
            "a_layer_more": "transformer.h.3.attn.c_attn.bias",
            "file_is_a_folder": "neither model.safetensors nor",
            "no_head": "no tensor lm_head.weight",
            "head_of_another_size": "lm_head.weight: given shape [65, 16]",
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
            ("rope_parameters", {"rope_type": "spiral", "factor": 2.0}, "default, linear, llama3"),
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

    @pytest.mark.parametrize(
        "values",
        [
            *({"model_type": name} for name in ("mixtral", "qwen3_moe", "gpt_oss")),
            {"model_type": "deepseek_v3", "n_routed_experts": 256},
        ],
        ids=lambda values: values["model_type"],
    )
    def test_a_mixture_of_experts_is_refused_with_the_reason(self, folder, values):
        self.settings(folder, **values)
        line = r"model_type: given '\w+' \(mixtures of experts are not implemented\); accepted: [^;]*$"
        with pytest.raises(UserError, match=line):
            tvjax.load(folder)


NAMES = {"gpt2": "transformer.wte.weight", "gptj": "transformer.wte.weight", "gpt_neox": "gpt_neox.embed_in.weight"}


class TestTiedReadout:
    """What config.json says of the readout, against what the folder holds: as transformers decides."""

    @pytest.fixture
    def parts(self, tmp_path):
        def copied(name, *, head, table=True, **changes):
            """The folder of `name` with another head: "own", "equal" to the embedding, or "absent"."""
            folder = tmp_path / head
            shutil.copytree(GOLDEN / name, folder, ignore=shutil.ignore_patterns("said*"))
            values = json.loads((folder / "config.json").read_text()) | changes
            (folder / "config.json").write_text(json.dumps({n: v for n, v in values.items() if v is not None}))
            kind = values["model_type"]
            names = ("embed_out.weight" if kind == "gpt_neox" else "lm_head.weight"), NAMES.get(kind)
            tensors = safetensors.numpy.load_file(folder / "model.safetensors")
            at = names[1] or "model.embed_tokens.weight"
            tensors.pop(names[0], None)
            if head != "absent":
                tensors[names[0]] = tensors[at] + np.float32(head == "own")
            if not table:
                del tensors[at]
            safetensors.numpy.save_file(tensors, folder / "model.safetensors", {"format": "pt"})
            return folder

        return copied

    @each_family
    def test_one_that_differs_is_kept(self, name, parts):
        folder = parts(name, head="own", tie_word_embeddings=True)
        with pytest.warns(UserWarning, match="but they differ: the model keeps both"):
            model = tvjax.load(folder, unroll=1)
        assert not model.config.tied_readout
        (folder / "config.json").write_text(
            json.dumps(json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": False})
        )
        said = tvjax.load(folder, unroll=1)
        assert said.config == model.config
        jax.tree.map(np.testing.assert_array_equal, model.params, said.params)

    @pytest.mark.parametrize("name", ["gpt2_untied", "gemma", "gemma2"])
    def test_so_it_is_where_the_family_ties_by_default(self, name, parts):
        with pytest.warns(UserWarning, match="but they differ"):
            assert not tvjax.load(parts(name, head="own", tie_word_embeddings=None)).config.tied_readout

    @pytest.mark.parametrize("name", ["gpt2", "llama3", "gpt_neox"])
    def test_one_that_is_equal_or_absent_is_the_embedding(self, name, parts, recwarn):
        models = [tvjax.load(parts(name, head=head, tie_word_embeddings=True)) for head in ("equal", "absent")]
        assert all(m.config.tied_readout for m in models) and not recwarn
        jax.tree.map(np.testing.assert_array_equal, *(m.params for m in models))

    def test_a_folder_with_the_head_alone_has_it_as_embedding(self, parts):
        model = tvjax.load(parts("llama3", head="own", table=False, tie_word_embeddings=True))
        assert model.config.tied_readout

    @pytest.mark.parametrize("head", ["equal", "absent"])
    def test_a_bias_of_a_tied_readout_is_kept(self, head, parts):
        model = tvjax.load(parts("gptj", head=head, tie_word_embeddings=True))
        assert model.params["readout"]["bias"].any()
        np.testing.assert_array_equal(model.params["readout"]["kernel"].T, model.params["front"]["embedding"])

    def test_an_unread_head_does_not_decide_the_dtype(self, parts):
        folder = parts("llama3", head="equal", tie_word_embeddings=True, dtype="bfloat16")
        tensors = safetensors.numpy.load_file(folder / "model.safetensors")
        tensors = {n: t.astype(ml_dtypes.bfloat16) for n, t in tensors.items()}
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].astype(np.float32)
        safetensors.numpy.save_file(tensors, folder / "model.safetensors")
        config = tvjax.load(folder).config
        assert config.tied_readout and config.param_dtype == "bfloat16"

    @pytest.mark.filterwarnings("ignore:.*but they differ")
    @pytest.mark.parametrize("ties", [True, False])
    def test_gpt_neox_has_it_under_the_name_of_the_other_families_too(self, ties, parts):
        folder = parts("gpt_neox", head="own", tie_word_embeddings=ties)
        usual = tvjax.load(folder)
        tensors = safetensors.numpy.load_file(folder / "model.safetensors")
        tensors["lm_head.weight"] = tensors.pop("embed_out.weight")
        safetensors.numpy.save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        renamed = tvjax.load(folder)
        assert renamed.config == usual.config
        jax.tree.map(np.testing.assert_array_equal, renamed.params, usual.params)

    def test_a_kept_one_lies_on_the_mesh(self, parts):
        folder = parts("llama3", head="own", tie_word_embeddings=True)
        with pytest.warns(UserWarning, match="but they differ"):
            kernel = tvjax.load(folder, mesh=make_mesh(tensor=2)).params["readout"]["kernel"]
        assert kernel.sharding.shard_shape(kernel.shape) != kernel.shape

    def test_the_comparison_goes_to_the_last_row(self, parts, monkeypatch):
        monkeypatch.setattr("tvjax.nn.pretrained.folder._ROWS", 5)
        folder = parts("llama3", head="equal", tie_word_embeddings=True)
        tensors = safetensors.numpy.load_file(folder / "model.safetensors")
        assert tvjax.load(folder).config.tied_readout
        tensors["lm_head.weight"][-1, -1] += 1
        safetensors.numpy.save_file(tensors, folder / "model.safetensors")
        with pytest.warns(UserWarning, match="but they differ"):
            assert not tvjax.load(folder).config.tied_readout

    @needs_torch
    @pytest.mark.slow
    @pytest.mark.filterwarnings("ignore:.*but they differ")
    @pytest.mark.parametrize(
        ("name", "head", "table"),
        [
            *((name, "own", True) for name in ("gpt2", "gpt_neox", "gptj", "llama3", "qwen3", "gemma", "gemma2")),
            ("gptj", "equal", True),
            ("gptj", "absent", True),
            ("llama3", "own", False),
        ],
    )
    def test_transformers_decides_the_same(self, name, head, table, parts):
        import torch
        import transformers

        folder = parts(name, head=head, table=table, tie_word_embeddings=True)
        ids = np.array([[5, 9, 13, 2, 40]])
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        with torch.no_grad():
            said = model(torch.tensor(ids)).logits.numpy()
        np.testing.assert_allclose(tvjax.run(tvjax.load(folder), jnp.asarray(ids)), said, atol=1e-4)
