"""docs/coming_from.md: its tables hold against forward hooks of transformers, and its code runs where the library is.

The golden models are small; which module's output is which address does not depend on their size.
"""

import re
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest

import tvjax
from tests.nn.golden import GOLDEN, needs_torch

PAGE = (Path(__file__).parents[2] / "docs" / "coming_from.md").read_text()
PROMPTS = [[5, 9, 13, 2, 40, 33], [8, 3, 50, 19, 7, 61]]
LIKE = {"llama": "llama3"}
"""The golden model of a family that has several."""
READ = ("embed", "blocks/resid", "blocks/attn_out", "blocks/mlp_out", "blocks/heads", "final_norm", "logits")


def rows(heading, first):
    """The rows of the table under a heading whose head begins with `first`: lists of cells, no code marks."""
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    table = section[section.index(f"| {first} |") :].split("\n\n")[0].splitlines()
    return [[cell.strip().replace("`", "") for cell in line.strip("|").split("|")] for line in table[2:]]


def code(heading):
    """The Python of a section."""
    return re.findall("```python\n(.*?)```", PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0], re.DOTALL)[0]


OUTPUTS = {row[0]: row[1:] for row in rows("Outputs", "family")}


def pytorch(name):
    """A golden model in transformers, float32."""
    import transformers

    folder = GOLDEN / LIKE.get(name, name)
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()


def heard(model, ids, inputs, outputs):
    """What goes into the modules named `inputs` and out of those named `outputs`, and what the model says."""
    import torch

    kept, hooks = {}, []
    for name in inputs:
        hook = lambda module, given, name=name: kept.__setitem__(name, given[0])
        hooks.append(model.get_submodule(name).register_forward_pre_hook(hook))
    for name in outputs:
        hook = lambda module, given, out, name=name: kept.__setitem__(name, out)
        hooks.append(model.get_submodule(name).register_forward_hook(hook))
    with torch.no_grad():
        said = model(torch.tensor(ids), output_hidden_states=True)
    for hook in hooks:
        hook.remove()
    return kept, said


def same(ours, theirs):
    np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), atol=1e-4, rtol=0)


@needs_torch
@pytest.mark.parametrize("family", OUTPUTS)
def test_the_outputs_of_modules(family):
    """Of each family: every row of the tables of layers and of outputs, as far as they are of transformers."""
    import torch

    block, *inner, heads, _ = OUTPUTS[family]
    model = tvjax.load(GOLDEN / LIKE.get(family, family))
    seen, count = tvjax.capture(model, PROMPTS, READ), model.config.num_layers
    names = [[f"{block}.{name}".format(b=b) for name in inner] for b in range(count)]
    before = [f"{block}.{heads}".format(b=b) for b in range(count)]
    blocks = [block.format(b=b) for b in range(count)]
    attention = [name.rpartition(".")[0] for name in before]
    adding = {name for pair in names for name in pair}
    kept, said = heard(pytorch(family), PROMPTS, before, {*blocks, *attention, *adding})

    same(seen["embed"], said.hidden_states[0])
    same(seen["final_norm"], said.hidden_states[count])
    same(seen["logits"], said.logits)
    assert np.abs(seen["blocks/resid"][-1] - said.hidden_states[count].numpy()).max() > 0.1
    for b in range(count):
        assert isinstance(kept[blocks[b]], torch.Tensor) and isinstance(kept[attention[b]], tuple)
        same(seen["blocks/resid"][b], kept[blocks[b]])
        for address, name in zip(("blocks/attn_out", "blocks/mlp_out"), names[b], strict=True):
            out = kept[name][0] if isinstance(kept[name], tuple) else kept[name]
            same(seen[address][b], model.config.residual_scale * out)
        same(seen["blocks/heads"][b].reshape(*np.shape(PROMPTS), -1), kept[before[b]])
    if "layernorm" in inner[0]:
        assert np.abs(seen["blocks/attn_out"][1] - kept[attention[1]][0].numpy()).max() > 0.1


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where the page's path/to/model leads: to a model with a tokenizer, of which some libraries make a condition."""
    transformers, tokenizers = pytest.importorskip("transformers"), pytest.importorskip("tokenizers")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({f"w{i}": i for i in range(64)}, "w0"))
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="w1", eos_token="w2", pad_token="w0"
    )

    def lay(name):
        shutil.copytree(GOLDEN / name, tmp_path / "path" / "to" / "model")
        tokenizer.save_pretrained(tmp_path / "path" / "to" / "model")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        return tmp_path

    return lay


def executed(heading, folder):
    """The names that the code of a section leaves. It runs from a file: nnsight reads its own source."""
    (folder / "snippet.py").write_text(code(heading))
    return runpy.run_path(str(folder / "snippet.py"))


@needs_torch
@pytest.mark.parametrize(
    ("heading", "library"),
    [("TransformerLens", "transformer_lens"), ("nnsight", "nnsight"), ("steering-vectors", "steering_vectors")],
)
def test_the_code_of_the_page(heading, library, folder):
    pytest.importorskip(library)
    names = executed(heading, folder("llama3"))
    if heading != "steering-vectors":
        same(names["ours"], names["theirs"])
    else:
        assert tvjax.load_vectors("steering.safetensors").layers == (1, 2)
    same(names["our_logits"], names["their_logits"])
    assert np.abs(names["our_logits"] - tvjax.run(names["model"], names["prompts"])).max() > 0.1


@needs_torch
@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "gptj", "llama3", "gemma2"])
def test_the_names_of_transformer_lens(name, folder):
    lens, torch = pytest.importorskip("transformer_lens.model_bridge"), pytest.importorskip("torch")
    where = folder(name) / "path" / "to" / "model"
    model = tvjax.load(where)
    lensed = lens.TransformerBridge.boot_transformers(str(where))
    with torch.no_grad():
        out, cache = lensed.run_with_cache(torch.tensor(PROMPTS))
    table = {row[0]: row[1] for row in rows("TransformerLens", "here, at layer l")}
    seen = tvjax.capture(model, PROMPTS, [*table, "embed", "final_norm"])
    same(seen["embed"], cache["blocks.0.hook_resid_pre"])
    same(seen["final_norm"], cache["ln_final.hook_out"])
    same(seen["logits"], out)
    for address, cell in table.items():
        if address == "logits" or (address == "blocks/attn_logits" and name == "gptj"):
            continue
        turned, _, plain = cell.partition("; ")
        if plain and name in ("gpt_neox", "gptj"):
            continue
        theirs = cache["blocks.1." + (plain.removesuffix(" in gpt2") if plain and name == "gpt2" else turned)].numpy()
        ours = np.asarray(seen[address][1])
        if address in ("blocks/attn_logits", "blocks/attn_patterns"):
            ours = ours.swapaxes(1, 2)
            ours, theirs = (np.where(ours < -1e24, 0, array) for array in (ours, theirs))
        same(ours, theirs)


@needs_torch
def test_the_files_of_function_vectors(folder):
    """Made here by hooks as that code makes them, and added as it adds them, to the output of block 1."""
    import torch

    where = folder("gptj")
    model = pytorch("gptj")
    before = [f"transformer.h.{b}.attn.out_proj" for b in range(3)]
    kept, said = heard(model, PROMPTS, before, ())
    heads = torch.stack([kept[name].unflatten(-1, (4, 4)).mean(0).transpose(0, 1) for name in before])  # [L, H, T, C]
    states = torch.stack([state[:, -1].mean(0) for state in said.hidden_states[1:]])
    effects = torch.rand(5, 3, 4, generator=torch.Generator().manual_seed(0)) + 0.1
    for name, tensor in (("head_activations", heads), ("layer_activations", states)):
        torch.save(tensor, where / f"antonym_mean_{name}.pt")
    torch.save(effects, where / "antonym_indirect_effect.pt")
    names = executed("Files of function vectors", where)

    total = torch.zeros(16)
    for index in effects.mean(0).flatten().topk(10).indices:
        b, head = divmod(int(index), 4)
        alone = torch.zeros(4, 4)
        alone[head] = heads[b, head, -1]
        total += model.transformer.h[b].attn.out_proj(alone.flatten()).detach()

    def logits(change):
        def hook(module, given, out):
            out[:, -1] = change(out[:, -1])

        handle = model.transformer.h[1].register_forward_hook(hook)
        with torch.no_grad():
            out = model(torch.tensor(names["prompts"])).logits
        handle.remove()
        return out

    same(names["our_logits"], logits(lambda state: state + total))
    same(names["state_logits"], logits(lambda state: states[1]))
