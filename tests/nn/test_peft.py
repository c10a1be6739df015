"""Adapters in folders of peft: the logits with them are peft's, whichever of the two wrote the folder."""

import dataclasses
import errno
import importlib.util
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import tvjax
from tests.nn.golden import GOLDEN, HAS_TORCH, make
from tvjax.errors import UserError
from tvjax.nn.lora import apply_lora, init_lora, sites
from tvjax.nn.model import Model
from tvjax.nn.prefix import start_prefix
from tvjax.nn.pretrained import folder
from tvjax.nn.tokens import pad

needs_peft = pytest.mark.skipif(
    not (HAS_TORCH and importlib.util.find_spec("peft")), reason="needs the parity extra, with peft"
)
ATOL = 1e-5
CONFIG, WEIGHTS, EMBEDDINGS = "adapter_config.json", "adapter_model.safetensors", "prompt_embeddings"
# Of each family the names of modules, and a pattern of whole names. mistral and gemma2 have windows that a prompt
# with a prefix exceeds; gptj turns neighbours; gpt2 and gpt_neox hold queries, keys and values in one matrix.
NAMES = {
    "gpt2": (["c_attn", "c_fc", "mlp.c_proj"], r"transformer\.h\.[02]\.(attn|mlp)\.c_\w+"),
    "gpt_neox": (
        ["query_key_value", "dense", "dense_h_to_4h"],
        r".*\.layers\.\d+\.(attention\.\w+|mlp\.dense_4h_to_h)",
    ),
    "gptj": (["q_proj", "k_proj", "out_proj", "fc_in"], r".*\.(k_proj|v_proj|fc_out)"),
    "llama3": (["q_proj", "v_proj", "up_proj"], r".*self_attn\.[kvo]_proj|.*down_proj"),
    "gemma2": (["q_proj", "o_proj", "gate_proj"], r"model\.layers\.(0|1)\..*_proj"),
    "mistral": (["self_attn.k_proj", "mlp.down_proj"], r".*\.mlp\.\w+_proj"),
}


def options(name, kind):
    """Three sets of LoRA's options."""
    names, pattern = NAMES[name]
    first, last = names[0], names[-1]
    return {
        "plain": {"r": 3, "lora_alpha": 5, "target_modules": names, "fan_in_fan_out": name == "gpt2"},
        "patterns": {
            "r": 2,
            "lora_alpha": 3,
            "target_modules": names,
            "rank_pattern": {last: 4, rf"\w+\.\w+\.1\..*{first}": 1},
            "alpha_pattern": {rf".*\.0\.\w+\.{last.split('.')[-1]}": 7},
            "layers_to_transform": [0, 1],
        },
        "rooted": {
            "r": 4,
            "lora_alpha": 1.5,
            "target_modules": pattern,
            "use_rslora": True,
            "exclude_modules": r".*\.0\..*v_proj",
        },
    }[kind]


# Where fewer channels turn than these, their order in a file is ours.
CHANGED = {"gptj": {"rotary_dim": 4}}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Ours, by name."""
    made = {}
    for name in NAMES:
        path = shutil.copytree(GOLDEN / name, tmp_path_factory.mktemp("models") / name)
        values = json.loads((path / "config.json").read_text()) | CHANGED.get(name, {})
        (path / "config.json").write_text(json.dumps(values))
        made[name] = tvjax.load(path)
    return made


def theirs(name):
    import torch
    import transformers

    torch.set_num_threads(1)
    options = {"attn_implementation": "eager", **CHANGED.get(name, {})}
    return transformers.AutoModelForCausalLM.from_pretrained(GOLDEN / name, **options).eval()


def with_adapter(name, config, seed=0):
    """The model of transformers with a random adapter of peft."""
    import peft
    import torch

    model = peft.get_peft_model(theirs(name), config).eval()
    torch.manual_seed(seed)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if "lora_" in path or "prompt_encoder" in path:
                size = 0.1 if "prompt_encoder" in path else 0.2  # larger prompts: float32 alone differs by the bound
                parameter.copy_(size * torch.randn(parameter.shape))
    return model


def loaded(name, path):
    """The model of transformers with the adapter in a folder, as peft reads it."""
    import peft

    return peft.PeftModel.from_pretrained(theirs(name), path).eval()


def logits(model):
    """Those of each prompt alone."""
    import torch

    with torch.no_grad():
        return [model(input_ids=torch.tensor([prompt])).logits[0].numpy() for prompt in make.PROMPTS]


def check(expected, model, prefix=None):
    """All prompts in one padded batch."""
    tokens = pad(make.PROMPTS)
    ours = np.asarray(tvjax.run(model, tokens, prefix=prefix))
    for number, logits in enumerate(expected):
        np.testing.assert_allclose(ours[number][np.asarray(tokens.valid_BT[number])], logits, atol=ATOL, rtol=0)


def changed(model, adapted):
    """Whether the adapter changes every prompt by far more than the tolerance."""
    tokens = pad(make.PROMPTS)
    change = tvjax.run(adapted.model, tokens, prefix=adapted.prefix) - tvjax.run(model, tokens)
    return float(jnp.abs(change).max((1, 2)).min()) > 0.05


@needs_peft
@pytest.mark.parametrize("kind", ["plain", "patterns", "rooted"])
@pytest.mark.parametrize("name", NAMES)
def test_lora_of_peft(name, kind, models, tmp_path):
    import peft

    model = with_adapter(name, peft.LoraConfig(task_type="CAUSAL_LM", **options(name, kind)))
    model.save_pretrained(tmp_path / "theirs")
    adapted = tvjax.load_adapter(tmp_path / "theirs", models[name])
    check(logits(model), adapted.model)
    assert changed(models[name], adapted)
    # And back: the same adapter, which peft reads.
    tvjax.export_adapter(tmp_path / "ours", adapted, models[name])
    check(logits(loaded(name, tmp_path / "ours")), adapted.model)
    again = tvjax.load_adapter(tmp_path / "ours", models[name])
    jax.tree.map(np.testing.assert_array_equal, again.lora, adapted.lora)


def random_lora(key, c, ranks):
    """One of ours, of a rank a site."""
    lora = {}
    for site, rank in ranks.items():
        pair = init_lora(key, c, (site,), rank)[site]
        key, own = jax.random.split(key)
        lora[site] = {"down": pair["down"], "up": 0.2 * jax.random.normal(own, pair["up"].shape)}
    return lora


@needs_peft
@pytest.mark.parametrize("kind", ["usual", "of each site", "of some layers"])
@pytest.mark.parametrize("name", NAMES)
def test_lora_of_ours_in_peft(name, kind, models, tmp_path):
    model, c = models[name], models[name].config
    ranks = {"query": 2, "value": 2} if kind == "usual" else {site: 1 + i % 3 for i, site in enumerate(sites(c))}
    lora = random_lora(jax.random.key(3), c, ranks)
    if kind == "of some layers":
        lora = jax.tree.map(lambda a: a.at[1].set(0), lora)
    tvjax.export_adapter(tmp_path, lora, model)
    ours = Model(apply_lora(model.params, lora, "highest"), c)
    check(logits(loaded(name, tmp_path)), ours)
    held = safetensors.numpy.load_file(tmp_path / WEIGHTS)
    assert any(".1." in path for path in held) == (kind != "of some layers")


@needs_peft
@pytest.mark.parametrize("projected", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_prefix_of_peft(name, projected, models, tmp_path):
    import peft

    more = {"prefix_projection": True, "encoder_hidden_size": 5} if projected else {}
    config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4, **more)
    model = with_adapter(name, config)
    model.save_pretrained(tmp_path / "theirs")
    adapted = tvjax.load_adapter(tmp_path / "theirs", models[name])
    check(logits(model), adapted.model, adapted.prefix)
    assert changed(models[name], adapted)
    tvjax.export_adapter(tmp_path / "ours", adapted, models[name])
    check(logits(loaded(name, tmp_path / "ours")), adapted.model, adapted.prefix)


@needs_peft
@pytest.mark.parametrize("name", [name for name in NAMES if name != "gpt2"])
def test_prefix_of_ours_in_peft(name, models, tmp_path):
    prefix = start_prefix(models[name], jnp.array([5, 2, 9]))
    tvjax.export_adapter(tmp_path, prefix, models[name])
    check(logits(loaded(name, tmp_path)), models[name], prefix)


@pytest.mark.parametrize("name", NAMES)
def test_a_prefix_stands_before_what_is_generated(name, models):
    """Each new token is the likeliest one behind the prefix, the prompt and the tokens before it."""
    model = models[name]
    prefix = jax.tree.map(lambda a: 2 * a, start_prefix(model, jnp.array([5, 2, 9])))
    made = tvjax.generate(model, pad(make.PROMPTS), prefix=prefix, max_new_tokens=4, stop=())
    bare = tvjax.generate(model, pad(make.PROMPTS), max_new_tokens=4, stop=())
    for number, prompt in enumerate(make.PROMPTS):
        ids = list(prompt)
        for _ in range(4):
            ids.append(int(tvjax.run(model, [ids], prefix=prefix)[0, -1].argmax()))
        assert made.ids_BT[number].tolist() == ids[len(prompt) :]
    assert made.ids_BT.tolist() != bare.ids_BT.tolist()


def test_a_prefix_of_real_tokens_says_what_they_say(models):
    """Positions know distances alone in llama: the prompt behind the tokens is the prompt behind their prefix."""
    model, words = models["llama3"], [5, 2, 9]
    prefix = start_prefix(model, jnp.array(words))
    for prompt in make.PROMPTS:
        whole = tvjax.run(model, [words + prompt])[0, len(words) :]
        np.testing.assert_allclose(tvjax.run(model, [prompt], prefix=prefix)[0], whole, atol=ATOL, rtol=0)


def test_a_prefix_has_a_gradient(models):
    prefix = start_prefix(models["llama3"], jnp.array([5, 2]))
    slope = jax.grad(lambda p: tvjax.run(models["llama3"], [[8, 3, 50]], prefix=p, last=True)[0, 0, 7])(prefix)
    assert all(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(slope))


def folder_of(path, model, *, prefix=False, values=None, tensors=None):
    """A whole folder, with `values` of its config and `tensors` replaced, added, or left out where they are None."""
    c = model.config
    adapter = random_lora(jax.random.key(0), c, {"query": 2, "up": 2})
    if prefix:
        keys = np.random.default_rng(0).normal(size=(c.num_layers, c.kv_heads, 3, c.channels))
        adapter = {"keys": keys, "values": -keys}
    tvjax.export_adapter(path, adapter, model)
    said = json.loads((path / CONFIG).read_text()) | (values or {})
    held = safetensors.numpy.load_file(path / WEIGHTS) | (tensors or {})
    (path / CONFIG).write_text(json.dumps({name: v for name, v in said.items() if v is not ...}))
    safetensors.numpy.save_file({name: t for name, t in held.items() if t is not None}, path / WEIGHTS)
    return path


FIRST = "base_model.model.model.layers.0.self_attn.q_proj."
A, B = f"{FIRST}lora_A.weight", f"{FIRST}lora_B.weight"
BAD_LORA = {
    "another kind": ({"peft_type": "ADALORA"}, {}, "peft_type: given 'ADALORA'; accepted: LORA or PREFIX_TUNING"),
    "no kind": ({"peft_type": ["LORA"]}, {}, "peft_type: given"),
    "DoRA": ({"use_dora": True}, {}, "use_dora: given True; accepted: null, false"),
    "whole modules": ({"modules_to_save": ["lm_head"]}, {}, r"modules_to_save: given \['lm_head'\]"),
    "biases": ({"bias": "lora_only"}, {}, "bias: given 'lora_only'; accepted: 'none'"),
    "biases of B": ({"lora_bias": True}, {}, "lora_bias: given True"),
    "a base that changed": ({"init_lora_weights": "pissa"}, {}, "init_lora_weights: given 'pissa'; accepted: True"),
    "a field of tomorrow": ({"use_wings": {"a": 1}}, {}, "use_wings: given"),
    "another head": ({"task_type": "SEQ_CLS"}, {}, "task_type: given 'SEQ_CLS'; accepted: None or 'CAUSAL_LM'"),
    "layers twice": ({"layer_replication": [[0, 2], [1, 3]]}, {}, "layer_replication: given"),
    "rank 0": ({"r": 0}, {}, "r: given 0; accepted: a whole number, 1 or more"),
    "a rank of words": ({"r": "2"}, {}, "r: given '2'"),
    "a rank true": ({"r": True}, {}, "r: given True"),
    "no alpha": ({"lora_alpha": float("nan")}, {}, "lora_alpha: given nan; accepted: a finite number"),
    "another rank": ({"r": 3}, {}, r"given shape \[2, 16\]; accepted: \[3, 16\], by the rank"),
    "another rank of one": ({"rank_pattern": {"q_proj": 1}}, {}, r"given shape \[2, 16\]; accepted: \[1, 16\]"),
    "no pattern": ({"rank_pattern": {"q_proj(": 1}}, {}, "rank_pattern: given .*; accepted: regular expressions"),
    "no map": ({"alpha_pattern": [1]}, {}, "alpha_pattern: given .*; accepted: a map from patterns"),
    "a rank that is none": ({"rank_pattern": {"q_proj": -1}}, {}, "rank_pattern: given {'q_proj': -1}"),
    "rslora is no flag": ({"use_rslora": 1}, {}, "use_rslora: given 1; accepted: true or false"),
    "modules that are not there": ({"target_modules": ["q_proj", "c_attn"]}, {}, "target_modules: given 'c_attn'"),
    "no modules": ({"target_modules": None}, {}, "target_modules: given None"),
    "none of its modules": ({"target_modules": "nothing"}, {}, "target_modules: given 'nothing'; accepted: one that"),
    "the readout": ({"target_modules": ["lm_head"]}, {}, "target_modules: given 'lm_head'; accepted: modules of this"),
    "all of its modules": ({"target_modules": "all-linear"}, {}, "has no tensor .*k_proj.lora_A"),
    "fewer modules": ({"target_modules": ["q_proj"]}, {}, "holds a tensor .*up_proj.lora_A.weight; accepted: lora_A"),
    "fewer layers": ({"layers_to_transform": 1}, {}, r"holds a tensor .*\.0\..*lora_A.weight"),
    "layers of words": ({"layers_to_transform": "all"}, {}, "layers_to_transform: given 'all'"),
    "a tensor is missing": ({}, {B: None}, "has no tensor .*q_proj.lora_B.weight, of a module that"),
    "another width": ({}, {A: np.zeros((2, 8), np.float32)}, r"given shape \[2, 8\]; accepted: \[2, 16\]"),
    "a matrix turned": ({}, {B: np.zeros((2, 16), np.float32)}, r"given shape \[2, 16\]; accepted: \[16, 2\]"),
    "DoRA's tensors": ({}, {f"{FIRST}lora_magnitude_vector": np.ones(16, np.float32)}, "holds a tensor .*magnitude"),
    "of another model": ({}, {A.replace("model.layers", "h"): np.ones((2, 16), np.float32)}, "holds a tensor base"),
    "bytes": ({}, {A: np.ones((2, 16), np.int8)}, "given I8; accepted: F32, F16, BF16"),
    "not finite": ({}, {A: np.full((2, 16), np.nan, np.float32)}, "lora_A.weight: given nan at"),
}
BAD_PREFIX = {
    "other layers": ({"num_layers": 2}, {}, "num_layers: given 2; accepted: 3"),
    "other heads": ({"num_attention_heads": 4}, {}, "num_attention_heads: given 4; accepted: 2"),
    "another width": ({"token_dim": 16}, {}, "token_dim: given 16; accepted: 8"),
    "other tokens": ({"num_virtual_tokens": 4}, {}, r"given shape \[3, 48\]; accepted: \[4, 48\]"),
    "no tokens": ({"num_virtual_tokens": ...}, {}, "num_virtual_tokens: given None"),
    "two stacks": ({"num_transformer_submodules": 2}, {}, "num_transformer_submodules: given 2"),
    "no tensor": ({}, {"prompt_embeddings": None, "x": np.ones(1, np.float32)}, "holds a tensor x; accepted: prompt_"),
    "another tensor": ({}, {"x": np.ones(1, np.float32)}, "holds a tensor x; accepted: prompt_embeddings alone"),
}
BAD = {**BAD_LORA, **{f"prefix: {what}": bad for what, bad in BAD_PREFIX.items()}}


@pytest.mark.parametrize("what", BAD)
def test_what_is_not_implemented_or_does_not_fit_is_refused(what, models, tmp_path):
    values, tensors, line = BAD[what]
    folder_of(tmp_path, models["llama3"], prefix=what.startswith("prefix"), values=values, tensors=tensors)
    with pytest.raises(UserError, match=line) as caught:
        tvjax.load_adapter(tmp_path, models["llama3"])
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("prefix", [False, True])
def test_the_untouched_folders_load(prefix, models, tmp_path):
    """What `BAD` begins from is read, and what changes nothing is passed over: fields of training, of other kinds."""
    values = {
        "peft_version": "0.21",
        "lora_dropout": 0.1,
        "use_dora": False,
        "modules_to_save": None,
        "loftq_config": {},
    }
    folder_of(tmp_path, models["llama3"], prefix=prefix, values=values)
    adapted = tvjax.load_adapter(tmp_path, models["llama3"])
    assert changed(models["llama3"], adapted)


def test_names_and_patterns_of_modules(models, tmp_path):
    """The same modules by last words, by ends, by whole names, by a pattern, and less those that are excluded."""
    model = models["llama3"]
    folder_of(tmp_path, model)
    expected = tvjax.load_adapter(tmp_path, model).lora
    ends = [f"model.layers.{layer}.{end}" for layer in range(3) for end in ("self_attn.q_proj", "mlp.up_proj")]
    for how in (
        {"target_modules": ["self_attn.q_proj", "up_proj"]},
        {"target_modules": ends, "layers_to_transform": [7]},
        {"target_modules": r"model\.layers\.[0-2]\.(self_attn\.q|mlp\.up)_proj"},
        {"target_modules": "all-linear", "exclude_modules": ["k_proj", "v_proj", "o_proj", "gate_proj", "down_proj"]},
        {"target_modules": r".*_proj", "exclude_modules": r".*(self_attn\.[^q]|gate|down).*"},
        {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": [0, 1, 2], "layers_pattern": "layers"},
        {"rank_pattern": {"q_proj": 2, "up_proj": 2}, "r": 5, "alpha_pattern": {".*q_proj": 2}},
    ):
        folder_of(tmp_path, model, values=how)
        jax.tree.map(np.testing.assert_array_equal, tvjax.load_adapter(tmp_path, model).lora, expected)


def test_half_precision_is_widened(models, tmp_path):
    folder_of(tmp_path, models["llama3"])
    held = safetensors.numpy.load_file(tmp_path / WEIGHTS)
    for kind in (np.float16, jnp.bfloat16):
        narrow = {name: tensor.astype(kind) for name, tensor in held.items()}
        safetensors.numpy.save_file(narrow, tmp_path / WEIGHTS)
        lora = tvjax.load_adapter(tmp_path, models["llama3"]).lora
        np.testing.assert_array_equal(lora["query"]["down"][0], narrow[A].T.astype(np.float32))


def test_folders_that_are_not_whole_are_refused(models, tmp_path):
    model, inside = models["llama3"], tmp_path / "inside"
    with pytest.raises(
        UserError, match=r"adapter_config.json: missing; accepted: a folder that peft's save_pretrained"
    ):
        tvjax.load_adapter(tmp_path / "nothing", model)
    folder_of(inside, model)
    content = (inside / WEIGHTS).read_bytes()
    (inside / WEIGHTS).unlink()
    with pytest.raises(UserError, match=r"inside: holds no adapter_model.safetensors"):
        tvjax.load_adapter(inside, model)
    (inside / "adapter_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(UserError, match=r"holds adapter_model.bin, a pickle, .*; accepted: adapter_model.safetensors"):
        tvjax.load_adapter(inside, model)
    (inside / WEIGHTS).write_bytes(content[:-8])
    with pytest.raises(UserError, match="not a whole safetensors file"):
        tvjax.load_adapter(inside, model)
    (inside / WEIGHTS).unlink()
    (tmp_path / "other").write_bytes(content)
    (inside / WEIGHTS).symlink_to(tmp_path / "other")
    with pytest.raises(UserError, match="accepted: files in this folder"):
        tvjax.load_adapter(inside, model)
    (inside / CONFIG).write_text("{")
    with pytest.raises(UserError, match=r"adapter_config.json: not whole JSON"):
        tvjax.load_adapter(inside, model)
    with pytest.raises(UserError, match=r"model: given 'llama3'; accepted: what tvjax.load gives"):
        tvjax.load_adapter(inside, "llama3")


PAIR = {"down": np.ones((3, 16, 2)), "up": np.ones((3, 2, 16))}
KEYS = np.ones((3, 2, 5, 4))
UNWRITABLE = {
    "no adapter": (None, "adapter: given 'NoneType'; accepted: what load_adapter gives"),
    "nothing": ({}, "adapter: given 'dict'"),
    "another kernel": ({"c_attn": PAIR}, "adapter: given 'c_attn'; accepted: kernels of this model: query"),
    "half a pair": ({"query": {"down": PAIR["down"]}}, r"adapter\['query'\]: given \['down'\]"),
    "another width": ({"up": PAIR}, r"adapter\['up'\]: given .*; accepted: down \[3, 16, r\] and up \[3, r, 24\]"),
    "no rank": ({"query": {"down": np.ones((3, 16, 0)), "up": np.ones((3, 0, 16))}}, "adapter"),
    "not finite": ({"query": {**PAIR, "up": PAIR["up"] * np.inf}}, r"adapter\['query'\]\['up'\]: given inf at"),
    "words": ({"query": {**PAIR, "up": "up"}}, r"adapter\['query'\]\['up'\]: given"),
    "zeros": ({"query": jax.tree.map(np.zeros_like, PAIR)}, "adapter: given 'zeros alone'"),
    "keys alone": ({"keys": KEYS}, r"prefix: given \['keys'\]"),
    "other layers": ({"keys": KEYS[:2], "values": KEYS[:2]}, r"prefix\['keys'\]: given 'shape \[2, 2, 5, 4\]'"),
    "other values": ({"keys": KEYS, "values": KEYS[:, :, :1]}, r"prefix\['values'\]: given"),
    "keys that are not finite": ({"keys": KEYS * np.nan, "values": KEYS}, r"prefix\['keys'\]: given nan at"),
}


@pytest.mark.parametrize("what", UNWRITABLE)
def test_what_is_no_adapter_of_the_model_is_not_written(what, models, tmp_path):
    adapter, line = UNWRITABLE[what]
    with pytest.raises(UserError, match=line) as caught:
        tvjax.export_adapter(tmp_path / "new", adapter, models["llama3"])
    assert "\n" not in str(caught.value) and not (tmp_path / "new").exists()


def test_a_prefix_of_learned_positions_says_where_its_prompts_begin(models, tmp_path):
    model = models["gpt2"]
    prefix = start_prefix(model, jnp.array([5, 2]))
    with pytest.raises(UserError, match="adapter: given 'a prefix before prompts that begin at position 0'; accepted"):
        tvjax.export_adapter(tmp_path, prefix, model)
    with pytest.raises(UserError, match=r"prefix: given \['key'\]"):
        tvjax.run(model, [[1, 2]], prefix={"key": 1})
    folder_of(tmp_path, models["gpt_neox"], prefix=True)  # of the same sizes
    adapted = tvjax.load_adapter(tmp_path, model)
    tvjax.run(adapted.model, [[1] * 61], prefix=adapted.prefix)
    with pytest.raises(UserError, match=r"prompts: given '62 tokens'; accepted: .*the model's 61 positions"):
        tvjax.run(adapted.model, [[1] * 62], prefix=adapted.prefix)
    long = np.zeros((64, 3 * 2 * 16), np.float32)
    folder_of(tmp_path, models["gpt_neox"], prefix=True, values={"num_virtual_tokens": 64}, tensors={EMBEDDINGS: long})
    with pytest.raises(UserError, match="num_virtual_tokens: given 64; accepted: fewer than the model's 64 positions"):
        tvjax.load_adapter(tmp_path, model)


def test_a_folder_of_something_else_is_left_as_it_is(models, tmp_path):
    model, lora = models["llama3"], {"query": PAIR}
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"path: given .*; accepted: a folder"):
        tvjax.export_adapter(tmp_path / "file", lora, model)
    for name in ("config.json", "adapter_model.bin"):
        other = tmp_path / name.split(".")[0]
        other.mkdir()
        (other / name).write_text("{}")
        with pytest.raises(UserError, match=f"holds {name}; accepted: a folder without"):
            tvjax.export_adapter(other, lora, model)
        assert [file.name for file in other.iterdir()] == [name]
    folder_of(tmp_path / "earlier", model, prefix=True)
    (tmp_path / "earlier" / "README.md").write_text("mine")
    tvjax.export_adapter(tmp_path / "earlier", lora, model)
    assert sorted(file.name for file in (tmp_path / "earlier").iterdir()) == ["README.md", CONFIG, WEIGHTS]
    assert tvjax.load_adapter(tmp_path / "earlier", model).prefix is None


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG])
def test_a_write_that_fails_leaves_the_adapter_that_was_there(name, models, tmp_path, monkeypatch):
    model = models["llama3"]
    folder_of(tmp_path / "adapter", model)
    before = {file.name: file.read_bytes() for file in (tmp_path / "adapter").iterdir()}
    whole = folder.write_whole

    def full(path, content):
        if path.name == name:
            raise OSError(errno.EACCES, "no more")
        whole(path, content)

    monkeypatch.setattr(folder, "write_whole", full)
    with pytest.raises(UserError, match=r"adapter: cannot be written \(no more\)"):
        tvjax.export_adapter(tmp_path / "adapter", {"query": PAIR}, model)
    assert {file.name: file.read_bytes() for file in (tmp_path / "adapter").iterdir()} == before


def test_a_model_that_was_trained_here_has_names_too(models, tmp_path):
    """Those of the folder that `tvjax.export` writes; and the adapter can be merged into that folder."""
    model = models["llama3"]
    own = Model(model.params, dataclasses.replace(model.config, rotary_scaling=None))
    folder_of(tmp_path / "adapter", own)
    said = json.loads((tmp_path / "adapter" / CONFIG).read_text())
    assert said["target_modules"] == ["q_proj", "up_proj"] and said["base_model_name_or_path"] is None
    adapted = tvjax.load_adapter(tmp_path / "adapter", own)
    tvjax.export(adapted.model, tmp_path / "merged")
    tokens = pad(make.PROMPTS)
    merged = tvjax.run(tvjax.load(tmp_path / "merged"), tokens)
    np.testing.assert_allclose(merged, tvjax.run(adapted.model, tokens), atol=ATOL, rtol=0)
