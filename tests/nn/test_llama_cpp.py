"""GGUF files against llama.cpp: its logits and ids are those of tvjax, which read the same file."""

import random
import unicodedata

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tvjax
from tests.nn.gguf_files import (
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    byte_letters,
    byte_level,
    sentencepiece,
    wide,
    with_vocabulary,
    write_gguf,
)
from tests.nn.golden import GOLDEN, make, needs_torch
from tests.nn.llama_cpp import LlamaCpp, needs_llama
from tvjax.nn import decoder
from tvjax.nn.pretrained.gguf_tokenizer import COMPOSED, PRE_TOKENIZERS
from tvjax.nn.tokens import pad

pytestmark = needs_llama
ATOL = 5e-4
# llama.cpp's gelu is the tanh form from a table in float16, whatever config.json says: what is rounded the other way
# there is a step of that table apart.
GELU_ATOL = 2e-3
GELU = ("gpt2", "gpt_neox", "gemma")
SILU = ("llama2", "llama_biased", "qwen2", "qwen3", "olmo2", "smollm3", "granite")
# Models whose windows llama.cpp does not know (mistral is llama to it, qwen2 has none, phi3 leaves
# its out): prompts that a window holds.
WINDOWS = {"mistral": 5, "qwen2_windows": 4, "phi3": 5}
CANNOT = {
    "llama3": "its original length of 16: of a file, tvjax reads those of Llama 3.1 (test_narrower_kinds has one)",
    "gptj": "no architecture of llama.cpp",
    "gpt2_untied": "its relu: llama.cpp has gelu in gpt2",
    "gpt_neox_sequential": "tied, without biases of attention: llama.cpp wants both in gptneox",
    "gemma2": "its query_pre_attn_scalar: llama.cpp has the head size, but for 46 blocks; REPLACED has it so",
    "gemma3": "the same, but for 62 blocks",
    "phi3_long": "its original length of 64: llama.cpp turns by the long factors where a context has room for more",
    "olmo3": "yarn, which tvjax reads of no file",
    "smollm3_windows": "each second layer without rotary positions: llama.cpp has each fourth",
}
# kind: how far llama.cpp is from float32 arithmetic on the same weights (measured: 0.007, 0.06, then 0.16 to 0.23).
# Logits are up to 4.7; those of 4 and 5 bits are 1.7 to 3.1 away from the unquantized model's.
NARROW = {"F16": 0.02, "BF16": 0.1, **dict.fromkeys(("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"), 0.4)}
PROMPTS = [*make.PROMPTS, [(7 * i) % 64 for i in range(40)]]
# What CANNOT names, with the one thing changed.
REPLACED = {
    "gpt2_untied": ("GPT2", {**make.GPT, "tie_word_embeddings": False, "n_inner": 20}),
    "gpt_neox_sequential": (
        "GPTNeoX",
        {**make.SIZES, **make.LONG, "rotary_pct": 1.0, "use_parallel_residual": False, "hidden_act": "gelu_new"},
    ),
    "gemma2": ("Gemma2", {**make.MODELS["gemma2"][1], "query_pre_attn_scalar": 8}),
    "gemma3": ("Gemma3", {**make.MODELS["gemma3"][1], "query_pre_attn_scalar": 8}),
}


@pytest.fixture
def table(monkeypatch):
    """tvjax with llama.cpp's gelu. What was compiled with one is not used with the other."""

    def gelu(x):
        half = lambda y: y.astype(jnp.float16).astype(jnp.float32)
        return jnp.where(x <= -10, 0, jnp.where(x >= 10, x, half(jax.nn.gelu(half(x)))))

    jax.clear_caches()
    monkeypatch.setitem(decoder.ACTIVATIONS, "gelu", gelu)
    monkeypatch.setitem(decoder.ACTIVATIONS, "gelu_exact", gelu)
    yield
    jax.clear_caches()


def check(path, prompts=PROMPTS, atol=ATOL):
    """Logits of all positions of each prompt, alone."""
    model = tvjax.load(path)
    with LlamaCpp(path) as llama:
        for prompt in prompts:
            expected = tvjax.run(model, pad([prompt]))[0]
            np.testing.assert_allclose(llama.logits(prompt), expected, atol=atol, rtol=0)


def test_every_golden_model_is_here():
    assert {*GELU, *SILU, *WINDOWS, *CANNOT} == set(make.MODELS)


@pytest.mark.parametrize("name", SILU)
def test_logits(name, tmp_path):
    check(write_gguf(tmp_path / "model.gguf", GOLDEN / name))


@pytest.mark.parametrize("name", GELU)
def test_logits_with_the_gelu_of_llama_cpp(name, tmp_path, table):
    check(write_gguf(tmp_path / "model.gguf", GOLDEN / name), atol=GELU_ATOL)


@pytest.mark.parametrize("name", WINDOWS)
def test_logits_within_a_window(name, tmp_path):
    prompts = [prompt[: WINDOWS[name]] for prompt in PROMPTS]
    check(write_gguf(tmp_path / "model.gguf", GOLDEN / name), prompts)


def test_logits_with_the_factors_of_short_prompts(tmp_path):
    change = {"phi3.rope.scaling.original_context_length": 4096}
    check(write_gguf(tmp_path / "model.gguf", GOLDEN / "phi3_long", change=change))


@needs_torch
@pytest.mark.parametrize("name", REPLACED)
def test_logits_of_what_llama_cpp_has_otherwise(name, tmp_path, table, monkeypatch):
    monkeypatch.setitem(make.MODELS, name, REPLACED[name])
    make.build(name).save_pretrained(tmp_path)
    check(write_gguf(tmp_path / "model.gguf", tmp_path), atol=GELU_ATOL)


@pytest.mark.parametrize(("kind", "atol"), NARROW.items())
def test_narrower_kinds(kind, atol, tmp_path):
    """That llama.cpp narrows what it multiplies with, too, is the tolerance."""
    check(write_gguf(tmp_path / "model.gguf", wide(tmp_path / "wide"), kind=kind), atol=atol)


def test_greedy_tokens(tmp_path):
    path = write_gguf(tmp_path / "model.gguf", GOLDEN / "llama2")
    model = tvjax.load(path)
    with LlamaCpp(path) as llama:
        for prompt in make.PROMPTS:
            made = tvjax.generate(model, pad([prompt]), max_new_tokens=8).ids_BT[0].tolist()
            assert llama.greedy(prompt, 8) == made


SPECIAL = {"<s>": CONTROL, "<unk>": UNKNOWN, "<user>": USER_DEFINED, "  ": USER_DEFINED, "nn": UNUSED}
# Between bars, what tells the regexes apart: Arabic digits, a combining accent, kinds of space, a long s.
ATOMS = (
    "a|the| the|B|'s|'LL|'| |  |\n|\r\n|\t|1|4567|\u0661|\u00bd|\u00e9|e\u0301|\u6f22\u5b57|\U0001f600|.|!!|_|\u00a0|"
    "\u3000|\u2028|\u200b|\x85|\x1f|\u017f|nn|\u2581|<0x41>"
)


def texts(atoms, count=500):
    rng = random.Random(0)
    return ["".join(rng.choices(atoms, k=rng.randint(1, 12))) for _ in range(count)]


def check_ids(path, texts):
    """Control tokens in a text are tokens, as in `transformers`."""
    tokenizer = tvjax.load(path).source.tokenizer
    with LlamaCpp(path, vocab_only=True) as llama:
        for text in texts:
            assert tokenizer.encode([text])[0] == llama.ids(text, special=True), text


@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
def test_byte_level_ids(pre, tmp_path):
    # Every second pair of bytes is a token: where a text is split shows in its ids. One token is of no merge.
    letters = byte_letters()
    pairs = [f"{a} {b}" for a in letters for b in letters if (ord(a) + ord(b)) % 2]
    random.Random(1).shuffle(pairs)
    size = 256 + len(pairs) + len(SPECIAL) + 1
    tokens = byte_level(size, pre=pre, merges=pairs, special={**SPECIAL, "Ġthe": NORMAL}, bos_token_id=0)
    path = write_gguf(tmp_path / "model.gguf", with_vocabulary(tmp_path / "resized", size), tokenizer=tokens)
    # llama.cpp composes no letters with their accents; the tokenizer.json that Qwen 2 was published with does.
    atoms = [atom for atom in ATOMS.split("|") if pre not in COMPOSED or unicodedata.is_normalized("NFC", atom)]
    check_ids(path, texts([*atoms, *SPECIAL]))


@pytest.mark.parametrize("prefix", [False, True])
def test_sentencepiece_ids(prefix, tmp_path):
    pieces = ["\u2581t", "he", "\u2581the", "th", "the", "\u2581a", "aa", "\u2581\u2581", "B.", *"\u2581theanB1'.é\n"]
    tokens = sentencepiece(
        300,
        {piece: -float(rank) for rank, piece in enumerate(pieces)},
        special={name: kind for name, kind in SPECIAL.items() if name not in ("<s>", "<unk>")},
        add_space_prefix=prefix,
    )
    path = write_gguf(tmp_path / "model.gguf", with_vocabulary(tmp_path / "resized", 300), tokenizer=tokens)
    check_ids(path, texts([*ATOMS.split("|"), *SPECIAL]))
