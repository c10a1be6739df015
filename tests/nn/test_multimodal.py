"""Folders of gemma3 that read images too: their text model is read, and written as a folder of its own."""

import json

import jax
import numpy as np
import pytest
import safetensors.numpy

import tvjax
from tests.nn.golden import GOLDEN, make, needs_torch
from tvjax.errors import UserError
from tvjax.nn.pretrained.families import read_config
from tvjax.nn.pretrained.folder import SINGLE

# Where the two orders of transformers have the text model, its readout, and what reads images.
ORDERS = {
    "older": ("language_model.model.", "language_model.lm_head.", ""),
    "newer": ("model.language_model.", "lm_head.", "model."),
}


def text_config():
    values = json.loads((GOLDEN / "gemma3" / "config.json").read_text())
    return {name: value for name, value in values.items() if name not in ("architectures", "tie_word_embeddings")}


@pytest.fixture
def folder(tmp_path):
    """Golden gemma3 as the text model of a folder with a tensor or two of a vision tower."""

    def written(order="older", head=False, **fields):
        model, readout, images = ORDERS[order]
        tensors = safetensors.numpy.load_file(GOLDEN / "gemma3" / SINGLE)
        tensors = {model + name.removeprefix("model."): tensor for name, tensor in tensors.items()}
        if head:
            tensors[f"{readout}weight"] = tensors[f"{model}embed_tokens.weight"]
        tensors[f"{images}vision_tower.patch.weight"] = np.zeros((2, 3), np.float32)
        tensors[f"{images}multi_modal_projector.norm.weight"] = np.zeros(2, np.float32)
        safetensors.numpy.save_file(tensors, tmp_path / SINGLE, {"format": "pt"})
        values = {"model_type": "gemma3", "text_config": text_config(), "vision_config": {}, "dtype": "float32"}
        (tmp_path / "config.json").write_text(json.dumps(values | fields))
        return tmp_path

    return written


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("order", ORDERS)
def test_the_text_model_is_that_of_its_own_folder(order, head, folder, tmp_path):
    with pytest.warns(UserWarning, match="2 tensors of what reads images are not read"):
        model = tvjax.load(folder(order, head))
    alone = tvjax.load(GOLDEN / "gemma3")
    assert model.config == alone.config
    jax.tree.map(np.testing.assert_array_equal, model.params, alone.params)
    tvjax.export(model, tmp_path / "out")
    values = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (values["model_type"], values["architectures"]) == ("gemma3_text", ["Gemma3ForCausalLM"])
    again = tvjax.load(tmp_path / "out")
    assert again.config == alone.config
    jax.tree.map(np.testing.assert_array_equal, again.params, alone.params)


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"text_config": None}, "text_config: given None; accepted: an object, of model_type gemma3_text"),
        ({"text_config": {"model_type": "llama"}}, "text_config: given 'llama'"),
        (
            {"tie_word_embeddings": True, "text_config": {"tie_word_embeddings": False}},
            "text_config.tie_word_embeddings",
        ),
        ({"text_config": {"final_logit_softcapping": 2.0}}, "text_config.final_logit_softcapping: given 2.0"),
        ({"quantization_config": {"bits": 4}}, "quantization_config: given {'bits': 4}"),
    ],
)
def test_what_is_refused(fields, line):
    values = {"model_type": "gemma3", "text_config": text_config()}
    with pytest.raises(UserError) as error:
        read_config(values | fields, "config.json")
    assert line in str(error.value) and "\n" not in str(error.value)


def test_a_tensor_in_both_orders_is_refused(folder):
    path = folder()
    tensors = safetensors.numpy.load_file(path / SINGLE)
    tensors["model.language_model.norm.weight"] = tensors["language_model.model.norm.weight"]
    safetensors.numpy.save_file(tensors, path / SINGLE, {"format": "pt"})
    with pytest.raises(UserError, match=r"holds the tensor model\.norm\.weight twice"):
        tvjax.load(path)


@needs_torch
@pytest.mark.slow
def test_the_logits_are_those_of_the_whole_in_transformers(tmp_path):
    import torch
    import transformers

    vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    vision |= {"image_size": 8, "patch_size": 4, "model_type": "siglip_vision_model"}
    config = transformers.Gemma3Config(text_config=text_config(), vision_config=vision, mm_tokens_per_image=4)
    torch.manual_seed(0)
    theirs = transformers.Gemma3ForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    theirs.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="of what reads images are not read"):
        model = tvjax.load(tmp_path)
    for prompt in make.PROMPTS:
        with torch.no_grad():
            expected = theirs(torch.tensor([prompt])).logits[0].numpy()
        np.testing.assert_allclose(tvjax.run(model, [prompt])[0], expected, atol=1e-4, rtol=0)
