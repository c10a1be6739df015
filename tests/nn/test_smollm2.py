"""SmolLM2-135M, a real model, against two readers of the same file: transformers and llama.cpp.

What is compared is the dequantized model, not the published one.
"""

import random
import shutil

import gguf
import numpy as np
import pytest

import tvjax
from tests.nn import control_files
from tests.nn.gguf_files import write_gguf
from tests.nn.golden import needs_torch
from tests.nn.llama_cpp import LlamaCpp, needs_llama
from tvjax.nn.sources import find
from tvjax.nn.tokens import pad

pytestmark = [pytest.mark.slow, needs_llama, needs_torch]
ATOL = 5e-4  # logits are up to 41
GREEDY = 32
PROMPTS = [
    "The capital of France is",
    "go -> went\nsee -> saw\ntake ->",
    "def fibonacci(n):\n    ",
    "1, 2, 4, 8, 16,",
    "Once upon a time, in a land far away,",
    "\nelephant ->",
    "Q: What is the plural of mouse?\nA:",
    "El perro come",
    "import numpy as np\n\nx = np.",
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
]
# Between bars: words, kinds of space and line, numbers, other scripts, code, what the tokenizer might take for its own.
ATOMS = (
    "the| The|ing|'s|'LL| |  |    |\n|\n\n|\r\n|\t|0|7|123|3.14|2026|\u00e9|e\u0301|\u00f1|привет|漢字|日本語|مرحبا|"
    "\u0661|\u00bd|😀|🇩🇪|.|...|!?|_|__init__|def f(x):|return|==|->|{}|();|#|//|\u00a0|\u3000|\u2028|\u200b|\x85|\x1f|"
    "\u017f|<|im_start|>|<0x41>|\u2581|supercalifragilistic"
)
# Layers that a control vector writes to: five alone, a range, and all that llama.cpp has.
STEERED = {f"h^{layer}": [layer] for layer in (2, 9, 16, 23, 30)} | {"a range": range(10, 21), "all": range(2, 31)}


@pytest.fixture(scope="module")
def file():
    return find("smollm2")


@pytest.fixture(scope="module")
def model(file):
    return tvjax.load(file)


@pytest.fixture(scope="module")
def reference(file):
    """The model and the tokenizer that transformers makes of the file."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    torch.set_num_threads(1)  # as llama.cpp: threads that wait for each other beside other tests take far longer
    folder, name = file.parent, file.name
    whole = {"quantization_config": GgufConfig(dequantize=True), "dtype": torch.float32}
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, **whole)
    return model, AutoTokenizer.from_pretrained(folder, gguf_file=name)


@pytest.fixture(scope="module")
def llama(file, model, tmp_path_factory):
    """llama.cpp with the dequantized tensors in float32: of a quantized file its own arithmetic is narrower."""
    folder = tmp_path_factory.mktemp("smollm2")
    tvjax.export(model, folder)
    said = gguf.GGUFReader(file).fields
    tokenizer = {key: field.contents() for key, field in said.items() if key.startswith("tokenizer.")}
    path = write_gguf(folder / "float32.gguf", folder, tokenizer=tokenizer)
    with LlamaCpp(path) as opened:
        yield opened
    shutil.rmtree(folder)


def test_ids_of_texts(model, reference, llama):
    rng = random.Random(0)
    texts = ["".join(rng.choices(ATOMS.split("|"), k=rng.randint(1, 12))) for _ in range(1000)] + PROMPTS
    ours = model.source.tokenizer.encode(texts)
    # Of a GGUF file, transformers takes GPT-2's way to cut texts whatever the file says; only digits are cut otherwise.
    theirs = reference[1](texts).input_ids
    plain = [not any(c.isnumeric() for c in text) for text in texts]
    assert sum(plain) > 400
    for text, said, ids, without in zip(texts, theirs, ours, plain, strict=True):
        assert llama.ids(text, special=True) == ids, text
        assert said == ids or not without, text


def test_logits_and_greedy_tokens(model, reference, llama):
    import torch

    prompts = model.source.tokenizer.encode(PROMPTS)
    tokens = pad(prompts)
    logits = np.asarray(tvjax.run(model, tokens))
    made = np.asarray(tvjax.generate(model, tokens, max_new_tokens=GREEDY, stop=[]).ids_BT)
    for number, prompt in enumerate(prompts):
        ours = logits[number][np.asarray(tokens.valid_BT[number])]
        ids = torch.tensor([prompt])
        with torch.no_grad():
            np.testing.assert_allclose(ours, reference[0](ids).logits[0], atol=ATOL, rtol=0)
            theirs = reference[0].generate(ids, max_new_tokens=GREEDY, do_sample=False)[0, len(prompt) :].tolist()
        np.testing.assert_allclose(ours, llama.logits(prompt), atol=ATOL, rtol=0)
        assert made[number].tolist() == llama.greedy(prompt, GREEDY)
        assert made[number][: len(theirs)].tolist() == theirs  # which ends at the end token


@pytest.mark.parametrize("count", [1, pytest.param(len(PROMPTS), marks=pytest.mark.exhaustive)])
def test_control_vectors(count, model, llama, tmp_path):
    """Ours in llama.cpp and its in ours: the same logits, of prompts and of the 32 tokens that follow."""
    prompts = model.source.tokenizer.encode(PROMPTS[:count])
    tokens = pad(prompts)
    bare = [llama.logits(prompt)[-1] for prompt in prompts]
    vectors = np.random.default_rng(0).normal(size=(29, 576)).astype(np.float32)  # of h^2..h^30
    ours, theirs = tmp_path / "ours.gguf", tmp_path / "theirs.gguf"
    try:
        for name, layers in STEERED.items():
            rows = vectors[[layer - 2 for layer in layers]] / len(layers) ** 0.5
            tvjax.export_control_vector(ours, rows, layers, model=model)
            control_files.write(theirs, {layer - 1: row for layer, row in zip(layers, rows, strict=True)})
            steering = control_files.read(ours)
            np.testing.assert_array_equal(steering, control_files.read(theirs))
            llama.control(steering)
            loaded = tvjax.load_control_vector(theirs, model)
            edit = tvjax.add(loaded, layers=loaded.layers, positions=loaded.positions)
            made = np.asarray(tvjax.generate(model, tokens, edits=edit, max_new_tokens=GREEDY, stop=()).ids_BT)
            whole = pad([[*prompt, *new] for prompt, new in zip(prompts, made.tolist(), strict=True)])
            logits = np.asarray(tvjax.run(model, whole, edits=edit))
            for number, prompt in enumerate(prompts):
                said = llama.logits([*prompt, *made[number].tolist()])
                np.testing.assert_allclose(
                    logits[number][np.asarray(whole.valid_BT[number])], said, atol=ATOL, rtol=0, err_msg=name
                )
                assert np.abs(said[len(prompt) - 1] - bare[number]).max() > 0.5, name
            if name == "all":  # with llama.cpp's cache too
                assert llama.generate(np.array(prompts[:1]), GREEDY)[0].tolist() == made[0].tolist()
    finally:
        llama.control(None)
