"""Models written as folders: read again here, and by `transformers`."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import tvjax
from tests.conftest import SMALL, changed
from tests.nn.golden import GOLDEN, every_model, needs_torch
from tvjax.errors import UserError
from tvjax.experiments import tvp as experiment
from tvjax.nn.decoder import Decoder, DecoderConfig
from tvjax.nn.model import Model


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
