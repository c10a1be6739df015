"""Models written as folders: read again here, and by `transformers`."""

import dataclasses
import errno
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import tvjax
from tests.conftest import SMALL, changed
from tests.nn.golden import GOLDEN, each_family, needs_torch
from tvjax.errors import UserError
from tvjax.experiments.tvp import run as experiment
from tvjax.nn.decoder import Decoder, DecoderConfig
from tvjax.nn.model import Model, cut
from tvjax.nn.pretrained.folder import ALONG, SINGLE
from tvjax.nn.pretrained.tokenizer import train_tokenizer


class TestExport:
    @each_family
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
            unroll=1,
            unbiased=("readout",),
        )
        config = dataclasses.replace(config, **changes)
        params = jax.jit(Decoder(config).init)(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
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


def settings(folder):
    return json.loads((folder / "config.json").read_text())


class TestConfig:
    """config.json says what was written, whatever the source's said."""

    @pytest.fixture(scope="class")
    def model(self):
        return tvjax.load(GOLDEN / "llama3")

    KINDS = ("float32", "bfloat16", "float16")

    @pytest.mark.parametrize("name", ["llama3", "trained"])
    @pytest.mark.parametrize("kind", KINDS)
    def test_the_dtype_is_that_of_the_tensors(self, name, kind, model, tmp_path):
        model = model if name == "llama3" else TestExport().trained()
        model = model.replace(params=jax.tree.map(lambda p: p.astype(kind), model.params))
        for config in (model.config, dataclasses.replace(model.config, dtype="bfloat16", param_dtype="float16")):
            tvjax.export(model.replace(config=config), tmp_path)
            values, again = settings(tmp_path), tvjax.load(tmp_path)
            assert (values["dtype"], "torch_dtype" in values, again.config.param_dtype) == (kind, False, kind)
            if name == "llama3":
                jax.tree.map(np.testing.assert_array_equal, again.params, model.params)

    @pytest.mark.parametrize(("kinds", "expected"), [(("float32", "float16"), "float32"), (KINDS[1:], "float32")])
    def test_params_of_several_dtypes_lose_no_bit(self, kinds, expected, model, tmp_path):
        leaves, tree = jax.tree.flatten(model.params)
        mixed = jax.tree.unflatten(tree, [leaf.astype(kinds[i % 2]) for i, leaf in enumerate(leaves)])
        tvjax.export(model.replace(params=mixed), tmp_path)
        again = tvjax.load(tmp_path)
        assert settings(tmp_path)["dtype"] == again.config.param_dtype == expected
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype(expected)), again.params, mixed)

    def test_a_source_with_the_old_name_of_the_dtype_gets_the_new_one(self, tmp_path):
        shutil.copytree(GOLDEN / "gpt2", tmp_path, dirs_exist_ok=True)
        values = settings(tmp_path)
        del values["dtype"]
        (tmp_path / "config.json").write_text(json.dumps(values | {"torch_dtype": "float32"}))
        tvjax.export(tvjax.load(tmp_path, dtype="float16"), tmp_path)
        assert settings(tmp_path) == values | {"dtype": "float16", "tie_word_embeddings": True}

    def test_a_readout_that_was_kept_is_not_tied_again(self, model, tmp_path):
        shutil.copy(GOLDEN / "llama3" / SINGLE, tmp_path)
        (tmp_path / "config.json").write_text(json.dumps(model.source.values | {"tie_word_embeddings": True}))
        with pytest.warns(UserWarning, match="but they differ"):
            kept = tvjax.load(tmp_path)
        tvjax.export(kept, tmp_path)
        assert settings(tmp_path)["tie_word_embeddings"] is False
        again = tvjax.load(tmp_path)
        assert again.config == kept.config
        jax.tree.map(np.testing.assert_array_equal, again.params, kept.params)

    @pytest.mark.parametrize("name", ["llama3", "gpt2", "qwen2_windows", "gemma2"])
    def test_a_model_that_was_cut_is_written_with_its_depth(self, name, tmp_path):
        model = tvjax.load(GOLDEN / name)
        lower = cut(model, 2)[0]
        tvjax.export(model.replace(config=lower.config, params=lower.params), tmp_path)
        again = tvjax.load(tmp_path)
        assert again.config.num_layers == 2 and again.config.windows == lower.config.windows
        jax.tree.map(np.testing.assert_array_equal, again.params, lower.params)

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            ({"vocab_size": 65, "num_outputs": 65}, "export: num_outputs: given 65; accepted: 64"),
            ({"rotary_base": 3.0}, "export: rotary_base: given 3.0"),
            ({"norm_epsilon": 0.5}, "export: norm_epsilon: given 0.5"),
        ],
    )
    def test_a_model_that_its_source_does_not_describe_is_refused(self, change, says, model, tmp_path):
        with pytest.raises(UserError, match="export: ") as error:
            tvjax.export(model.replace(config=dataclasses.replace(model.config, **change)), tmp_path)
        assert says in str(error.value) and not list(tmp_path.iterdir())

    def wrong_missing(self, params):
        return {name: leaf for name, leaf in params.items() if name != "readout"}

    def wrong_surplus(self, params):
        return params | {"extra": params["norm"]}

    def wrong_shape(self, params):
        return params | {"norm": jax.tree.map(lambda p: p[:-1], params["norm"])}

    def wrong_dtype(self, params):
        return params | {"norm": jax.tree.map(lambda p: p.astype(jnp.int32), params["norm"])}

    @pytest.mark.parametrize(
        ("how", "says"),
        [
            ("missing", "readout/kernel: given shape None"),
            ("surplus", "extra/scale"),
            ("shape", "norm/scale: given shape (15,)"),
            ("dtype", "norm/scale: given 'int32'"),
        ],
    )
    def test_params_that_are_not_this_model_s_are_refused(self, how, says, model, tmp_path):
        with pytest.raises(UserError) as error:
            tvjax.export(model.replace(params=getattr(self, f"wrong_{how}")(model.params)), tmp_path)
        assert f"export: params: {says}" in str(error.value) and not list(tmp_path.iterdir())


class TestFiles:
    """What an export does to the files that are there, and which files go along."""

    @pytest.fixture
    def source(self, tmp_path):
        folder = tmp_path / "source"
        shutil.copytree(GOLDEN / "llama3", folder, ignore=shutil.ignore_patterns("said*"))
        (folder / "tokenizer.json").write_text(train_tokenizer(["a b c"], 300))
        for name in set(ALONG) - {"tokenizer.json"}:
            (folder / name).write_text(f'{{"from": "{name}"}}')
        (folder / "README.md").write_text("of the source")
        return folder

    @pytest.fixture
    def bare(self):
        return tvjax.load(GOLDEN / "gpt2")

    def state(self, folder):
        return {p.name: p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    def test_the_tokenizer_s_and_generation_s_files_go_along(self, source, tmp_path):
        tvjax.export(tvjax.load(source), tmp_path / "out")
        here, there = self.state(source), self.state(tmp_path / "out")
        assert there.keys() == here.keys() - {"README.md"} == {*ALONG, "config.json", SINGLE}
        assert all(there[name] == here[name] for name in ALONG)

    def test_a_folder_of_templates_is_left_behind_with_a_word(self, source, tmp_path):
        (source / "additional_chat_templates").mkdir()
        with pytest.warns(UserWarning, match="additional_chat_templates does not go along"):
            tvjax.export(tvjax.load(source), tmp_path / "out")

    def test_they_are_those_that_were_loaded(self, source, bare, tmp_path):
        model, before = tvjax.load(source), self.state(source)
        tvjax.export(bare, source)
        tvjax.export(model, tmp_path / "out")
        assert all(self.state(tmp_path / "out")[name] == before[name] for name in ALONG)

    def test_those_of_another_model_go(self, source, bare):
        tvjax.export(bare, source)
        assert self.state(source).keys() == {"config.json", SINGLE, "README.md"}
        assert tvjax.load(source).source.tokenizer is None

    def test_a_tokenizer_without_a_model_stays_with_one_that_was_trained_here(self, source):
        (source / "config.json").unlink()
        tvjax.export(TestExport().trained(), source)
        assert tvjax.load(source).source.tokenizer is not None
        tvjax.export(TestExport().trained(), source)
        assert tvjax.load(source).source.tokenizer is None

    def test_into_its_own_folder_it_stays_the_same(self, source):
        tvjax.export(tvjax.load(source), source)
        before = self.state(source)
        tvjax.export(tvjax.load(source), source)
        assert self.state(source) == before

    def test_files_that_are_links_into_a_cache_go_along_and_are_not_written_through(self, source, tmp_path):
        blobs, snapshot = tmp_path / "cache" / "blobs", tmp_path / "cache" / "snapshots" / "abc"
        blobs.mkdir(parents=True)
        snapshot.mkdir(parents=True)
        for path in source.iterdir():
            shutil.copy(path, blobs / f"of-{path.name}")
            (snapshot / path.name).symlink_to(f"../../blobs/of-{path.name}")
        before = self.state(blobs)
        model = tvjax.load(snapshot)
        tvjax.export(model.replace(params=jax.tree.map(lambda p: p / 2, model.params)), snapshot)
        assert self.state(blobs) == before and set(ALONG) <= self.state(snapshot).keys()
        assert not (snapshot / SINGLE).is_symlink() and (snapshot / "README.md").is_symlink()

    def test_links_out_of_the_folder_are_replaced_and_not_followed(self, bare, tmp_path):
        folder, elsewhere = tmp_path / "folder", tmp_path / "elsewhere"
        folder.mkdir(), elsewhere.mkdir()
        names = (SINGLE, "model.safetensors.index.json", "model-00001-of-00002.safetensors", "tokenizer.json")
        for name in names:
            (elsewhere / name).write_text(json.dumps({"weight_map": {"a": "other.safetensors"}}))
            (folder / name).symlink_to(elsewhere / name)
        (folder / "other.safetensors").write_text("mine")
        before = self.state(elsewhere)
        tvjax.export(bare, folder)
        assert self.state(elsewhere) == before
        assert {p.name for p in folder.iterdir()} == {"config.json", SINGLE, "other.safetensors"}

    def test_an_index_names_no_file_to_delete_but_safetensors_beside_it(self, source, bare, tmp_path):
        (tmp_path / "outside.safetensors").write_text("mine")
        names = ("README.md", "../outside.safetensors", "old.safetensors")
        (source / "old.safetensors").write_text("")
        (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict(zip("abc", names))}))  # noqa: B905
        tvjax.export(bare, source)
        assert self.state(source).keys() == {"config.json", SINGLE, "README.md"}
        assert (tmp_path / "outside.safetensors").read_text() == "mine"

    OTHERS = (
        "pytorch_model.bin",
        "pytorch_model-00001-of-00002.bin",
        "tf_model.h5",
        "flax_model.msgpack",
        "consolidated.safetensors",
        "consolidated.00.pth",
        "adapter_config.json",
        "adapter_model.safetensors",
        "model.fp16.safetensors",
        "shard-00000-model-00001-of-00001.safetensors",
        "weights.gguf",
        "additional_chat_templates",
    )

    @pytest.mark.parametrize("name", OTHERS)
    def test_a_model_in_another_form_is_refused(self, name, source, bare):
        (source / name).write_text("")
        before = self.state(source)
        with pytest.raises(UserError, match=f"holds {name}, of another model"):
            tvjax.export(bare, source)
        assert self.state(source) == before

    def break_run(self, source):
        (source / "config.json").write_text('{"experiment": "tvp"}')
        return source

    def break_file(self, source):
        return source / "README.md"

    def break_below_a_file(self, source):
        return source / "README.md" / "folder"

    def break_no_place(self, source):
        return Path("/proc/tvjax")

    def break_folder_in_the_way(self, source):
        (source / "model-00001-of-00002.safetensors").mkdir()
        return source

    def break_stage_in_the_way(self, source):
        (source / ".tvjax-export").write_text("mine")
        return source

    @pytest.mark.parametrize(
        ("how", "says"),
        {
            "run": "config.json: is that of no model, as of a run",
            "file": "README.md'; accepted: a folder, or a name for one that is not there yet",
            "below_a_file": "folder: cannot be written (Not a directory)",
            "no_place": "/proc/tvjax: cannot be written",
            "folder_in_the_way": "model-00001-of-00002.safetensors: is a folder",
            "stage_in_the_way": "cannot be written (File exists)",
        }.items(),
    )
    def test_a_place_that_cannot_be_written_is_refused_in_one_line(self, how, says, source, bare):
        target = getattr(self, f"break_{how}")(source)
        before = self.state(source)
        with pytest.raises(UserError) as error:
            tvjax.export(bare, target)
        assert says in str(error.value) and "\n" not in str(error.value) and self.state(source) == before

    def test_a_full_disk_leaves_the_old_model(self, source, bare, monkeypatch):
        def full(path, content):
            if path.name == "config.json":
                raise OSError(errno.ENOSPC, "No space left on device")
            path.write_bytes(content)

        before = self.state(source)
        monkeypatch.setattr("tvjax.nn.pretrained.folder.write_whole", full)
        with pytest.raises(OSError, match="No space left"):
            tvjax.export(bare, source)
        assert self.state(source) == before and not (source / ".tvjax-export").exists()


@pytest.mark.slow
class TestRunOfTheMainJob:
    """A token model as `configs/tvp_synthetic.py:token_offset` trains it, only shorter."""

    @pytest.fixture(scope="class")
    def model(self, tmp_path_factory):
        folder = tmp_path_factory.mktemp("runs") / "token_offset"
        config = changed(
            SMALL,
            task={"name": "token_offset", "vocab_size": 7, "offsets": (1, 3), "held_out_offsets": (2,)},
            train__tensorboard=False,
        )
        experiment.run(config, folder, "train", lambda line: None)
        return tvjax.load(folder, member="tvp")

    @pytest.fixture(scope="class")
    def prompts(self, model):
        return model.source.task.sample(jax.random.key(0), 4, 4, model.source.layout).inputs

    def test_it_comes_back_the_same(self, model, prompts, tmp_path):
        tvjax.export(model, tmp_path)
        again, outputs = tvjax.load(tmp_path), model.config.num_outputs
        np.testing.assert_allclose(tvjax.run(again, prompts)[..., :outputs], tvjax.run(model, prompts), atol=1e-5)

    @needs_torch
    def test_transformers_says_the_same(self, model, prompts, tmp_path):
        import torch
        import transformers

        tvjax.export(model, tmp_path)
        theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
        with torch.no_grad():
            logits = theirs(torch.tensor(np.asarray(prompts), dtype=torch.long)).logits.numpy()
        expected = tvjax.run(model, prompts)
        np.testing.assert_allclose(logits[..., : model.config.num_outputs], expected, atol=1e-4)
        theirs.save_pretrained(tmp_path / "back")
        np.testing.assert_allclose(tvjax.run(tvjax.load(tmp_path / "back"), prompts), logits, atol=1e-4)
