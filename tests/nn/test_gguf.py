"""GGUF files: what is written from a Hugging Face folder reads as it, and what is not understood is refused."""

import dataclasses
import json

import gguf
import jax
import numpy as np
import pytest
import safetensors.numpy

import tvjax
from tests.nn.gguf_files import (
    NO_VOCAB,
    byte_level,
    sentencepiece,
    wide,
    with_vocabulary,
    write_gguf,
)
from tests.nn.golden import GOLDEN, make, needs_torch
from tvjax.errors import UserError
from tvjax.nn.pretrained.gguf_file import ARCHITECTURES, GGUF, KINDS
from tvjax.nn.tokens import pad

# What a file does not say: a window where llama.cpp has none, another activation than the architecture's, another
# scale of queries than the head size, the original length of "llama3".
OTHERWISE = {
    "mistral": {"windows": ()},
    "qwen2_windows": {"windows": ()},
    "gpt2_untied": {"mlp": "gelu"},
    "gemma2": {"attention_scale": 8**-0.5},
    "gemma3": {"attention_scale": 8**-0.5},
}
# What no file says: gptj and olmo3 at all; an original length, rotary layers in another order, yarn.
READ = [name for name in make.MODELS if name not in ("gptj", "llama3", "olmo3", "smollm3_windows")]
LLAMA2 = GOLDEN / "llama2"


def same(one, other, atol=0.0):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol, rtol=0), one, other)


@pytest.mark.parametrize("name", READ)
def test_a_file_reads_as_the_folder_that_it_was_made_of(name, tmp_path):
    folder = tvjax.load(GOLDEN / name)
    model = tvjax.load(write_gguf(tmp_path / "model.gguf", GOLDEN / name))
    said = dataclasses.asdict(model.config)
    wanted = dataclasses.asdict(folder.config) | {"hidden_width": folder.config.hidden} | OTHERWISE.get(name, {})
    if said["rotary_scaling"]:  # a file has it in float32
        amplitudes = [config["rotary_scaling"].pop("amplitude") for config in (said, wanted)]
        np.testing.assert_allclose(*amplitudes, rtol=1e-6)
    # Some sizes a folder leaves to others to say, and a file does not.
    assert said | {"num_kv_heads": 0, "head_width": 0} == wanted | {"num_kv_heads": 0, "head_width": 0}
    assert model.config.kv_heads == folder.config.kv_heads
    assert model.config.channels == folder.config.channels
    # 1 was added to the norms of gemma, and is taken off again.
    same(model.params, folder.params, atol=1e-7 if name.startswith("gemma") else 0.0)


def test_every_architecture_is_read_in_a_test():
    kinds = {json.loads((GOLDEN / name / "config.json").read_text())["model_type"] for name in READ}
    assert {row.family for row in ARCHITECTURES.values()} <= kinds


def test_scalings_are_those_of_the_folder(tmp_path):
    folder = wide(tmp_path / "wide")
    model = tvjax.load(write_gguf(tmp_path / "model.gguf", folder))
    assert model.config.rotary_scaling == tvjax.load(folder).config.rotary_scaling
    for change in ({"llama.rope.scaling.factor": 4.0}, {"llama.rope.scale_linear": 4.0}):
        model = tvjax.load(write_gguf(tmp_path / "model.gguf", LLAMA2, change=change))
        assert (model.config.rotary_scaling.kind, model.config.rotary_scaling.factor) == ("linear", 4.0)
    none = {"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 4.0}
    assert tvjax.load(write_gguf(tmp_path / "model.gguf", LLAMA2, change=none)).config.rotary_scaling is None


def test_what_a_file_leaves_out_is_as_in_llama_cpp(tmp_path):
    names = ("attn_logit_softcapping", "final_logit_softcapping", "attention.sliding_window")
    left_out = dict.fromkeys(f"gemma2.{name}" for name in names)
    config = tvjax.load(write_gguf(tmp_path / "model.gguf", GOLDEN / "gemma2", change=left_out)).config
    assert (config.attention_cap, config.readout_cap, config.windows) == (50.0, 30.0, (4096, 0, 4096))
    left_out = dict.fromkeys(f"llama.{name}" for name in ("attention.head_count_kv", "rope.freq_base", "vocab_size"))
    config = tvjax.load(write_gguf(tmp_path / "model.gguf", LLAMA2, change=left_out)).config
    assert (config.kv_heads, config.rotary_base, config.vocab_size) == (4, 10_000.0, 64)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_quantized_tensors_are_those_of_the_package(kind, tmp_path):
    folder, quantization = wide(tmp_path / "wide"), gguf.GGMLQuantizationType[kind]
    kept = {
        name: t if t.ndim == 1 else gguf.dequantize(gguf.quants.quantize(t, quantization), quantization)
        for name, t in safetensors.numpy.load_file(folder / "model.safetensors").items()
    }
    model = tvjax.load(write_gguf(tmp_path / "model.gguf", folder, kind=kind))
    safetensors.numpy.save_file(kept, folder / "model.safetensors")
    same(model.params, tvjax.load(folder).params)


def write_table(path, kind):
    """The bytes of an embedding ``[64, 256]`` of a kind that the package only reads, in an otherwise empty file."""
    size, rng = gguf.GGML_QUANT_SIZES[kind][1], np.random.default_rng(0)
    raw = rng.integers(0, 64, (64, size), np.uint8)  # any are numbers; in float16, wherever a scale lies, finite ones
    writer = gguf.GGUFWriter(path, "llama")
    sizes = dict.fromkeys(("context_length", "block_count", "feed_forward_length", "attention.head_count"), 1)
    for key, value in (sizes | {"embedding_length": 256}).items():
        writer.add_uint32(f"llama.{key}", value)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_tensor("token_embd.weight", raw, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return raw


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.endswith("_K")])
def test_k_quants_are_those_of_the_package(kind, tmp_path):
    raw = write_table(tmp_path / "model.gguf", gguf.GGMLQuantizationType[kind])
    file = GGUF(tmp_path / "model.gguf")
    assert file.shapes == {"model.embed_tokens.weight": (64, 256)}
    expected = gguf.dequantize(raw, gguf.GGMLQuantizationType[kind])
    assert np.isfinite(expected).all()
    assert expected.std() > 0
    np.testing.assert_array_equal(file.read("model.embed_tokens.weight"), expected)


def test_dtype_is_the_narrowest_that_holds_all_or_what_is_asked(tmp_path):
    path = write_gguf(tmp_path / "model.gguf", wide(tmp_path / "wide"), kind="F16")
    assert tvjax.load(path).config.dtype == "float32"  # its norms are
    assert tvjax.load(path, dtype="bfloat16").params["front"]["embedding"].dtype == "bfloat16"


class TestExport:
    @needs_torch
    @pytest.mark.parametrize("name", ["llama2", "qwen2", "gpt2", "gpt_neox", "gemma"])
    def test_the_folder_of_a_file_is_the_same_model_in_transformers(self, name, tmp_path):
        import torch
        from transformers import AutoModelForCausalLM

        model = tvjax.load(write_gguf(tmp_path / "model.gguf", GOLDEN / name))
        tvjax.export(model, tmp_path / "out")
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
        for prompt in make.PROMPTS:
            with torch.no_grad():
                expected = theirs(torch.tensor([prompt])).logits[0]
            np.testing.assert_allclose(tvjax.run(model, pad([prompt]))[0], expected, atol=1e-4, rtol=0)
        same(tvjax.load(tmp_path / "out").params, model.params)

    @needs_torch
    @pytest.mark.parametrize("kind", ["byte_level", "sentencepiece"])
    def test_the_tokenizer_goes_along(self, kind, tmp_path):
        from transformers import AutoTokenizer

        texts = ["the theme  is ab", "<s> ab\n123 é", "漢字"]
        if kind == "byte_level":
            tokens = byte_level(300, merges=["t h", "th e"], special={"<s>": 3}, bos_token_id=258, add_bos_token=True)
        else:
            tokens = sentencepiece(300, {"▁th": -1.0, "th": -2.0, "e": -3.0, "t": -4.0, "h": -5.0, "▁": -6.0})
        tokens |= {
            "tokenizer.ggml.eos_token_id": 7,
            "tokenizer.ggml.eot_token_id": 8,
            "tokenizer.chat_template": "{{x}}",
        }
        path = write_gguf(tmp_path / "model.gguf", with_vocabulary(tmp_path / "wide", 300), tokenizer=tokens)
        model = tvjax.load(path)
        assert model.source.end_ids == (7, 8)
        tvjax.export(model, tmp_path / "out")
        theirs, again = AutoTokenizer.from_pretrained(tmp_path / "out"), tvjax.load(tmp_path / "out")
        ours = model.source.tokenizer
        assert [theirs(text).input_ids for text in texts] == ours.encode(texts) == again.source.tokenizer.encode(texts)
        assert [theirs.decode(ids, skip_special_tokens=True) for ids in ours.encode(texts)] == list(
            map(ours.decode, ours.encode(texts))
        )
        assert theirs.chat_template == "{{x}}"
        assert again.source.end_ids == (7, 8)


def test_a_file_without_a_tokenizer_takes_ids(tmp_path):
    model = tvjax.load(write_gguf(tmp_path / "model.gguf", LLAMA2, tokenizer=NO_VOCAB))
    assert model.source.tokenizer is None
    assert tvjax.run(model, pad([[1, 2]])).shape == (1, 2, 64)


QWEN3_MOE = {"general.architecture": "qwen3moe", "qwen3moe.expert_count": 128}
GPT_OSS = {"general.architecture": "gpt-oss", "gpt-oss.expert_count": 32}


class TestRefused:
    @pytest.mark.parametrize(
        ("name", "change", "line"),
        [
            ("llama2", {"general.architecture": "falcon"}, r"general.architecture: given 'falcon'; accepted: llama, q"),
            ("llama2", {"llama.block_count": None}, "has no key llama.block_count, which this model needs"),
            ("llama2", {"llama.attention.layer_norm_rms_epsilon": None}, "has no key llama.attention.layer_norm_rms"),
            ("llama2", {"llama.block_count": "3"}, "llama.block_count: given '3'; accepted: a value of type int"),
            ("llama2", {"llama.attention.head_count": [4, 4, 2]}, "llama.attention.head_count: given .4, 4, 2.; acc"),
            ("llama2", {"llama.vocab_size": 65}, "llama.vocab_size: given 65; accepted: 64"),
            (
                "llama2",
                {"llama.expert_count": 8},
                r"llama.expert_count: given 8; accepted: 0 \(mixtures of experts are",
            ),
            ("llama2", QWEN3_MOE, r"qwen3moe.expert_count: given 128; accepted: 0 \(mixtures of experts are"),
            ("llama2", GPT_OSS, r"gpt-oss.expert_count: given 32; accepted: 0 \(mixtures of experts are"),
            ("llama2", {"llama.attention.causal": False}, "llama.attention.causal: given False; accepted: True"),
            ("llama2", {"llama.logit_scale": 0.5}, "has the key llama.logit_scale, which is not implemented"),
            ("llama2", {"llama.rope.dimension_count": 2}, "llama.rope.dimension_count: given 2; accepted: 4"),
            ("llama2", {"llama.rope.scaling.type": "yarn"}, "llama.rope.scaling.type: given 'yarn'; accepted: none or"),
            ("llama2", {"llama.block_count": 4}, "has no tensor model.layers.3"),
            ("llama2", {"llama.block_count": 2}, "tensor blk.2.*no place for"),
            ("llama2", {"llama.block_count": 2**31}, "num_hidden_layers: given 2147483648"),
            ("llama2", {"llama.feed_forward_length": 32}, r"shape \[24, 16\]; accepted: \[32, 16\]"),
            ("llama3", {}, "tensor rope_freqs.weight: given others; accepted: those of a Llama 3.1"),
            ("gpt2", {"gpt2.attention.head_count_kv": 1}, "gpt2.attention.head_count_kv: given 1; accepted: 4"),
            ("llama2", {"split.count": 3}, "is one of several parts of a model"),
        ],
    )
    def test_what_is_not_understood(self, name, change, line, tmp_path):
        path = write_gguf(tmp_path / "model.gguf", GOLDEN / name, change=change)
        with pytest.raises(UserError, match=f"model.gguf: .*{line}"):
            tvjax.load(path)

    def test_a_kind_of_tensor(self, tmp_path):
        write_table(tmp_path / "model.gguf", gguf.GGMLQuantizationType.IQ4_XS)
        with pytest.raises(UserError, match=r"tensor token_embd.weight: given IQ4_XS; accepted: F32, F16, BF16, Q4_0"):
            tvjax.load(tmp_path / "model.gguf")

    @pytest.mark.parametrize(
        ("fields", "line"),
        [
            ({"model": "bert"}, "tokenizer.ggml.model: given 'bert'; accepted: gpt2 or llama"),
            ({"pre": "default"}, "tokenizer.ggml.pre: given 'default'; accepted: gpt-2, olmo"),
            ({"pre": None}, "tokenizer.ggml.pre: given 'default'"),
            ({"merges": None}, "has no key tokenizer.ggml.merges"),
            ({"merges": ["ab"]}, r"tokenizer.ggml.merges\[0\]: given 'ab'; accepted: two tokens"),
            ({"merges": ["a €"]}, "not a whole tokenizer"),
            ({"tokens": ["a"] * 64}, "tokenizer.ggml.tokens: given 'a'; accepted: each token once"),
            ({"tokens": [str(i) for i in range(65)]}, "tokenizer.ggml.tokens: given 65 entries; accepted: at most 64"),
            ({"token_type": [9] * 64}, "tokenizer.ggml.token_type: accepted: 1..6 for each of 64"),
            ({"token_type": [1]}, "tokenizer.ggml.token_type: accepted: 1..6 for each of 64"),
            ({"bos_token_id": 64}, "tokenizer.ggml.bos_token_id: given 64; accepted: 0..63"),
            ({"add_bos_token": True}, "add_bos_token: given True; accepted: that with tokenizer.ggml.bos_token_id"),
            ({"add_sep_token": True}, "tokenizer.ggml.add_sep_token: is not implemented"),
        ],
    )
    def test_a_tokenizer(self, fields, line, tmp_path):
        change = {f"tokenizer.ggml.{key}": value for key, value in fields.items()}
        path = write_gguf(tmp_path / "model.gguf", LLAMA2, change=change)
        with pytest.raises(UserError, match=f"model.gguf: .*{line}"):
            tvjax.load(path)

    def test_scores_that_are_not_one_for_each_token(self, tmp_path):
        tokens = sentencepiece(300, {"a": -1.0}) | {"tokenizer.ggml.scores": [0.0]}
        path = write_gguf(tmp_path / "model.gguf", with_vocabulary(tmp_path / "wide", 300), tokenizer=tokens)
        with pytest.raises(UserError, match=r"tokenizer.ggml.scores: given 1 entries; accepted: one for each token"):
            tvjax.load(path)

    def test_a_file_that_ends_early_wherever_it_does(self, tmp_path):
        whole = write_gguf(tmp_path / "model.gguf", LLAMA2).read_bytes()
        cut = tmp_path / "cut.gguf"
        for size in [*range(64), *np.random.default_rng(0).integers(64, len(whole) - 64, 60).tolist()]:
            cut.write_bytes(whole[:size])
            with pytest.raises(UserError, match=r"cut.gguf: not a whole GGUF file \(.*\); fetch it again"):
                tvjax.load(cut)

    def test_a_count_that_no_file_can_hold(self, tmp_path):
        """The package would read on behind the end of the file."""
        whole = bytearray(write_gguf(tmp_path / "model.gguf", LLAMA2).read_bytes())
        place = whole.index(b"tokenizer.ggml.token_type") + len(b"tokenizer.ggml.token_type") + 8
        assert int.from_bytes(whole[place : place + 8], "little") == 64
        whole[place : place + 8] = (2**40).to_bytes(8, "little")
        (tmp_path / "model.gguf").write_bytes(whole)
        with pytest.raises(UserError, match=r"model.gguf: not a whole GGUF file"):
            tvjax.load(tmp_path / "model.gguf")

    @pytest.mark.parametrize(
        ("content", "line"),
        [
            (b"no such thing, but long enough for a header", "magic"),
            (b"", "empty"),
            (b"GGUF\x63\0\0\0" + b"\0" * 16, "99"),
        ],
    )
    def test_what_is_no_gguf(self, content, line, tmp_path):
        (tmp_path / "model.gguf").write_bytes(content)
        with pytest.raises(UserError, match=f"model.gguf: not a whole GGUF file .*{line}"):
            tvjax.load(tmp_path / "model.gguf")

    def test_a_member_or_a_folder_of_that_name(self, tmp_path):
        with pytest.raises(UserError, match="member: given 'x'; accepted: None"):
            tvjax.load(write_gguf(tmp_path / "model.gguf", LLAMA2), "x")
        (tmp_path / "folder.gguf").mkdir()
        with pytest.raises(UserError, match=r"config.json: missing"):
            tvjax.load(tmp_path / "folder.gguf")
