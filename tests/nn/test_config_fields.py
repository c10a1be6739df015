"""Every field of every family's config.json, left out, null, respelled and contradicted, against `transformers`.

The cases, some 7200, are made from the table of fields: see `cases`.
"""

import dataclasses
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from tests.nn.golden import GOLDEN, each_family, make, needs_torch
from tvjax.errors import UserError
from tvjax.nn.decoder import Decoder, DecoderConfig
from tvjax.nn.pretrained.families import ACTIVATIONS, FAMILIES, read_config
from tvjax.nn.pretrained.fields import FIELDS, FLAG, INERT, NUMBER, POSITIVE, READ, SIZE, WORD
from tvjax.nn.pretrained.weights import load_folder

PROMPT = np.array([[5, 9, 13, 2, 40, 33, 7, 61, 22, 8, 3, 50, 19]])  # longer than every window of the golden folders
FOLDER_OF = {json.loads((GOLDEN / n / "config.json").read_text())["model_type"]: n for n in reversed(make.MODELS)}
# What a row of the table is beside the field of its name in the reference's class: fields that the class has in a block
# (with the reference's default there), or that it has not and its code reads all the same.
BESIDE = {
    "rope_theta": 10_000.0,
    "rotary_emb_base": 10_000.0,
    "rotary_pct": 0.25,
    "partial_rotary_factor": None,
    "original_max_position_embeddings": None,
    "rope_local_base_freq": 10_000.0,
    "rope_scaling": None,
    "sliding_window_pattern": 6,
    "layer_types": None,
    "head_dim": None,
}
# The same, of one family.
BESIDE_IN = {
    "gemma3_text": {"rope_theta": 1_000_000.0},
    "olmo3": {"rope_theta": 500_000.0},
    "smollm3": {"rope_theta": 2_000_000.0},
    "phi3": {"partial_rotary_factor": 1.0},
}
# Read by the reference only to be compared, to be moved to where it does not count, or to say how to compute.
IDLE = {
    *("num_heads", "embed_dim", "head_dim", "rope_theta", "partial_rotary_factor", "original_max_position_embeddings"),
    *("rope_parameters", "vision_aspect_ratio", "vision_feature_layer", "vision_feature_select_strategy"),
    *("experts_implementation", "output_cross_attentions", "num_labels", "summary_last_dropout"),
    # Of the classes of gemma3 that read images.
    *("vision_config", "mm_tokens_per_image", "image_token_id", "text_config"),
}
# Values unlike any default, for the fields that we pass over; others get one of their type.
ODD = {
    "architectures": ["Nobody"],
    "auto_map": {"AutoModel": "nobody.Model"},
    "dtype": "bfloat16",
    "torch_dtype": "bfloat16",
    "id2label": {"0": "a", "1": "b", "2": "c"},
    "label2id": {"a": 0, "b": 1, "c": 2},
    "num_labels": 3,
    "problem_type": "regression",
    "attn_implementation": "eager",
    "return_dict": True,
    "output_attentions": True,
    "gradient_checkpointing": True,
    "initializer_range": 0.7,
}


def golden(name: str) -> dict[str, Any]:
    return json.loads((GOLDEN / name / "config.json").read_text())


def family_of(name: str) -> str:
    return golden(name)["model_type"]


def other(value: Any, row: Any) -> Any:
    """Another value that the field could have."""
    if row.kind is FLAG:
        return not value
    if row.kind is WORD:
        return "silu" if value != "silu" else "gelu"
    if row.kind in (NUMBER, POSITIVE):
        return 2.5 * (value or 1.0)
    return (value or 4) + 2 if row.kind is SIZE or type(value) is int else 3


def without(values: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}


def plain_cases(values: dict[str, Any], row: Any, full: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    bare = without(values, row.name, *row.aliases)
    value = values.get(row.name, row.default)
    yield "left out", bare
    yield "null", bare | {row.name: None}
    if value is None and row.kind is SIZE:
        value = 4
    if row.kind.type in (int, float, bool, str):
        yield "said", bare | {row.name: value}
        yield "a list", bare | {row.name: [value]}
        yield "a flag or a number", bare | {row.name: 1 if row.kind is FLAG else True}
    if row.default is not None:
        yield "its default", bare | {row.name: row.default}
    # What becomes of a tied head that the folder has is decided where its tensors are read.
    if full and row.kind.type in (int, float, bool, str) and row.name != "tie_word_embeddings":
        yield "another", bare | {row.name: other(value, row)}
    for alias in row.aliases:
        yield f"as {alias}", bare | {alias: value}
        yield f"{alias} null", bare | {alias: None}
        yield f"twice, {alias} too", bare | {alias: value, row.name: value}
        yield f"contradicted by {alias}", bare | {row.name: value, alias: other(value, row)}
        yield f"contradicted by null {alias}", bare | {row.name: value, alias: None}


def layer_cases(values: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    layers = values.get("num_hidden_layers", values.get("n_layer"))
    full, sliding = "full_attention", "sliding_attention"
    lists = ([full] * layers, [sliding] * layers, [full] * (layers + 1), ["attention"] * layers, [full, sliding, full])
    for kinds in (*lists, None, full, [1] * layers):
        changed = values | {"layer_types": kinds}
        yield f"{kinds}", changed
        yield f"{kinds} without sliding_window", changed | {"sliding_window": None}
        if "sliding_window" in {row.name for row in FIELDS[values["model_type"]]}:
            for used in (False, True):
                yield f"{kinds}, used {used}", changed | {"use_sliding_window": used, "sliding_window": 4}


def layered_rope_cases(values: dict[str, Any], full: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """The blocks of each kind of layers, and what stands beside them."""
    blocks, bare = values["rope_parameters"], without(values, "rope_parameters")
    for layers, block in blocks.items():
        changes = {
            "left out": without(blocks, layers),
            "null": blocks | {layers: None},
            "empty": blocks | {layers: {}},
            "of kind word": blocks | {layers: "linear"},
            "with more": blocks | {layers: block | {"finetuned": True}},
            "with both, contradicted": blocks | {layers: block | {"type": "llama3"}},
            "with type": blocks | {layers: without(block, "rope_type") | {"type": block["rope_type"]}},
        }
        for kind in ("default", "linear", "llama3", "dynamic", "yarn", "longrope", "proportional"):
            changes[f"of kind {kind}"] = blocks | {layers: block | {"rope_type": kind}}
        for key in sorted({*block, "partial_rotary_factor", "original_max_position_embeddings", "rope_theta"}):
            changes[f"{key} left out"] = blocks | {layers: without(block, key)}
            for value in (None, "high", True, -1.0, *((0.5, 32) if full else ())):
                changes[f"{key} {value}"] = blocks | {layers: block | {key: value}}
        yield from ((f"{layers}, {what}", bare | {"rope_parameters": changed}) for what, changed in changes.items())
        yield f"{layers}, for each kind", values | {"rope_parameters": block}
        yield f"{layers} as rope_scaling", bare | {"rope_scaling": block}
        yield (
            f"{layers} as rope_scaling beside empty rope_parameters",
            bare | {"rope_parameters": {}, "rope_scaling": block},
        )
        yield f"{layers} as rope_scaling, against rope_parameters", values | {"rope_scaling": block}
        others = without(blocks, layers)
        yield f"{layers} as rope_scaling, beside {[*others]}", bare | {"rope_parameters": others, "rope_scaling": block}
    thetas = {layers: without(block, "rope_theta") for layers, block in blocks.items()}
    for name in ("rope_theta", "rope_local_base_freq", "partial_rotary_factor", "original_max_position_embeddings"):
        for value in (40.0, None, "high", *((1.0,) if full else ())):
            value = int(value) if isinstance(value, float) and "max" in name else value
            yield f"{name} {value} beside it", values | {name: value}
            yield f"{name} {value} instead", bare | {"rope_parameters": thetas, name: value}
            yield f"{name} {value} without a block", bare | {name: value}
    yield "without a block", bare
    yield "another kind of layers", values | {"rope_parameters": blocks | {"chunked_attention": {}}}


def rope_cases(values: dict[str, Any], full: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """The block under both names, each number in it left out, null, changed, and beside it instead of in it."""
    block = values["rope_parameters"]
    beside = {"rope_theta": "rope_theta", "partial_rotary_factor": "partial_rotary_factor"}
    if values["model_type"] == "gpt_neox":
        beside |= {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}
    beside["original_max_position_embeddings"] = "original_max_position_embeddings"
    bare = without(values, "rope_parameters")
    for name in ("rope_parameters", "rope_scaling"):
        yield f"as {name}", bare | {name: block}
        yield f"{name} with type", bare | {name: without(block, "rope_type") | {"type": block["rope_type"]}}
        yield f"{name} with both", bare | {name: block | {"type": block["rope_type"]}}
        yield f"{name} with both, contradicted", bare | {name: block | {"type": "dynamic"}}
        yield f"{name} of a future kind", bare | {name: block | {"rope_type": "spiral"}}
        yield f"{name} of a null kind", bare | {name: block | {"rope_type": None}}
        yield f"{name} empty", bare | {name: {}}
        yield f"{name} without a kind", bare | {name: without(block, "rope_type")}
        yield f"{name} a word", bare | {name: "linear"}
        yield f"{name} with more", bare | {name: block | {"finetuned": True}}
        yield f"{name} for each kind of layer", bare | {name: {"full_attention": block, "sliding_attention": block}}
        for kind in ("default", "linear", "llama3", "dynamic", "yarn", "longrope", "proportional"):
            yield f"{name} of kind {kind}", bare | {name: block | {"rope_type": kind}}
        for key in sorted({*block, *beside}):
            yield f"{name}.{key} left out", bare | {name: without(block, key)}
            for value in (None, "high", True, float("nan"), -1.0, *((0.5, 32) if full else ())):
                yield f"{name}.{key} {value}", bare | {name: block | {key: value}}
    for key, outer in beside.items():
        for value in (block.get(key, 16 if "max" in key else 1.0), None, "high", *((0.5, 32) if full else ())):
            yield f"{outer} {value} beside it", values | {outer: value}
            yield f"{outer} {value} instead", bare | {"rope_parameters": without(block, key), outer: value}
            yield f"{outer} {value} beside rope_scaling", bare | {"rope_scaling": without(block, key), outer: value}
            yield f"{outer} {value} without a block", bare | {outer: value}
    yield "rope_scaling beside the same rope_parameters", values | {"rope_scaling": block}
    yield "rope_scaling without its rope_theta", values | {"rope_scaling": without(block, "rope_theta")}
    yield "rope_scaling against rope_parameters", values | {"rope_scaling": {"rope_type": "linear", "factor": 7.0}}
    yield "null rope_scaling beside rope_parameters", values | {"rope_scaling": None}
    for name in ("rope_theta", "rotary_emb_base", "rotary_pct", "partial_rotary_factor"):
        yield f"{name} of this or another family", values | {name: 0.5}


def cases(name: str) -> list[tuple[str, str, dict[str, Any]]]:
    """For a golden folder: the field, what is done to it, and the whole config.json.

    Values other than those of the folder and of the table only in the first folder of a family or of a rope type.
    """
    values, listed = golden(name), []
    rows, rope = {row.name for row in FIELDS[values["model_type"]]}, values.get("rope_parameters")
    full = name in FOLDER_OF.values()
    for row in FIELDS[values["model_type"]]:
        if row.name not in ("rope_parameters", "rope_scaling", "layer_types"):
            listed += [(row.name, what, changed) for what, changed in plain_cases(values, row, full)]
    if rope is not None and "full_attention" in rope:
        listed += [("rope", what, changed) for what, changed in layered_rope_cases(values, full)]
    elif rope is not None:
        scaled = full or rope["rope_type"] != "default"
        listed += [("rope", what, changed) for what, changed in rope_cases(values, scaled)]
    listed += [("layer_types", what, changed) for what, changed in layer_cases(values)]
    for field in ("hidden_act", "hidden_activation", "activation_function"):
        for act in (*(sorted(sum(ACTIVATIONS.values(), ())) if full else ()), "gelu_10", "quick_gelu", "relu2", "tanh"):
            listed.append((field, f"{field} {act}", values | {field: act}))
    for field, accepted in {**READ[""], **READ.get(values["model_type"], {})}.items():
        if field not in rows:
            listed += [(field, f"{field} {value}", values | {field: value}) for value in accepted]
    return listed


def test_cases_are_many():
    counts = {name: len(cases(name)) for name in make.MODELS}
    assert len(counts) == 22 and sum(counts.values()) > 7000, counts


class Reference:
    """What `transformers` makes of a folder: logits, or the kind of failure. Equal configs are run once."""

    def __init__(self, folder: Path) -> None:
        from safetensors.torch import load_file

        self.folder, self.kept = folder, {}
        tensors = load_file(folder / "model.safetensors")
        self.tensors = {name.replace("embed_out", "lm_head"): tensor for name, tensor in tensors.items()}

    def logits(self) -> Any:
        import torch
        from transformers import AutoConfig

        try:
            config = AutoConfig.from_pretrained(self.folder)
        except Exception:
            return "raises"
        key = json.dumps(vars(config), sort_keys=True, default=str)
        if key not in self.kept:
            with torch.no_grad():
                self.kept[key] = self._run(config)
        return self.kept[key]

    def _run(self, config: Any) -> Any:
        """As `from_pretrained` does it, and faster: the model of this config, with the folder's tensors."""
        import torch
        from transformers import AutoModelForCausalLM

        config._attn_implementation, config.dtype = "eager", torch.float32
        sizes = [getattr(config, name, 0) or 0 for name in ("hidden_size", "intermediate_size", "num_hidden_layers")]
        try:
            if max(*sizes, config.vocab_size // 4, config.max_position_embeddings // 1000) > 200:
                return "does not fit"
            if config.tie_word_embeddings and "lm_head.weight" in self.tensors:  # kept apart if it differs
                model = AutoModelForCausalLM.from_pretrained(self.folder, config=config).eval()
                return model(torch.tensor(PROMPT)).logits.numpy()
            model = AutoModelForCausalLM.from_config(config).eval()
            tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
            report = model.load_state_dict(self.tensors, strict=False)
            if report.unexpected_keys or set(report.missing_keys) - tied:
                return "does not fit"
            logits = model(torch.tensor(PROMPT)).logits.numpy()
        except Exception:
            return "raises"
        return logits if np.isfinite(logits).all() else "raises"


class Ours:
    """The same of tvjax. Equal configs are run once, and those with equal shapes share their parameters."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.kept = folder, {}
        self.base, self.params, _ = load_folder(GOLDEN / name)

    @staticmethod
    def _shape(config: DecoderConfig) -> DecoderConfig:
        free = ("norm_epsilon", "rotary_base", "rotary_scaling", "max_positions", "windows")
        free += ("attention_scale", "attention_cap", "readout_cap", "embed_scale", "rotaries", "rotary_width")
        free += ("residual_scale", "readout_scale", "positions")
        defaults = {f.name: f.default for f in dataclasses.fields(DecoderConfig)}
        bound = ("max_positions", "positions") if config.positions == "learned" else ()
        kept = {name: defaults[name] for name in free if name not in bound}
        mlp = "gated_silu" if config.mlp.startswith("gated") else "silu"
        return dataclasses.replace(config, mlp=mlp, num_kv_heads=config.kv_heads, head_width=config.channels, **kept)

    def logits(self, values: dict[str, Any]) -> Any:
        try:
            config = read_config(values, "config.json", warn=False)
            if config not in self.kept:
                self.kept[config] = self._run(config)
            return self.kept[config]
        except UserError as error:
            return str(error)

    def _run(self, config: DecoderConfig) -> Any:
        params = self.params
        if self._shape(config) != self._shape(self.base):
            config, params, _ = load_folder(self.folder)
        with jax.disable_jit():
            return np.asarray(Decoder(dataclasses.replace(config, unroll=1)).apply({"params": params}, PROMPT))


# Cases that may be refused although the reference loads them: contradictions, wrong types and senseless numbers, what
# is not implemented, and a window in a family without one (the reference then keeps a shorter cache).
MAY_BE_REFUSED = re.compile(
    r"contradicted|against|without its|a list|a flag|another|high|True|nan|-1\.0|0\.5|32|of kind|of another"
    r"|gelu_10|quick_gelu|relu2|tanh$|head_dim said|sliding|for each kind"
    r"|original_max_position_embeddings (said|left out|its default|None)"
)


@needs_torch
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@each_family
def test_logits_or_a_refusal_by_name(name, tmp_path):
    import torch
    import transformers

    transformers.logging.set_verbosity(transformers.logging.CRITICAL)
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    shutil.copy(GOLDEN / name / "model.safetensors", tmp_path)
    reference, ours, wrong = Reference(tmp_path), Ours(tmp_path, name), []
    for field, what, values in cases(name):
        (tmp_path / "config.json").write_text(json.dumps(values))
        said = ours.logits(values)
        if isinstance(said, str):
            names = {field, *re.findall(r"\w+", what), "tensor"} | ({"rotary_pct"} if field == "rope" else set())
            names |= (
                {"short_factor", "partial_rotary_factor"} if field in ("hidden_size", "num_attention_heads") else set()
            )
            if not any(name in said for name in names):
                wrong.append((field, what, said, "names no field"))
            elif MAY_BE_REFUSED.search(f"{field} {what}") or "an even number of channels" in said:
                continue  # the reference rounds an odd number of turned channels up, which we do not
            elif not isinstance(reference.logits(), str):
                wrong.append((field, what, said, "though transformers loads it"))
            continue
        theirs = reference.logits()
        if isinstance(theirs, str):
            wrong.append((field, what, f"transformers: {theirs}"))
        elif not np.allclose(said, theirs, atol=1e-4, rtol=0):
            wrong.append((field, what, np.abs(said - theirs).max()))
    assert not wrong, "\n".join(map(str, wrong))
    assert len(ours.kept) > 1


def reading_class(family: str) -> Any:
    from transformers import CONFIG_MAPPING

    return CONFIG_MAPPING[family]


every_family = pytest.mark.parametrize("family", FAMILIES)


@needs_torch
@every_family
def test_defaults_and_spellings_are_those_of_the_class(family):
    theirs = {field.name: field.default for field in dataclasses.fields(reading_class(family))}
    spellings = reading_class(family).attribute_map
    for row in FIELDS[family]:
        beside = BESIDE | BESIDE_IN.get(family, {})
        assert row.default == theirs.get(row.name, beside.get(row.name)), row
        assert set(row.aliases) == {alias for alias, name in spellings.items() if name == row.name}, row
        assert row.name in theirs or row.name in BESIDE, row
    known = {row.name for row in FIELDS[family]} | set(READ[""]) | set(READ.get(family, {})) | INERT
    assert not theirs.keys() - known


def read_while_running(family: str) -> set[str]:
    """The names that the reference asks its config for, when a folder is read and run with a cache."""
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedConfig

    asked: set[str] = set()
    plain = PreTrainedConfig.__getattribute__

    def recording(self: Any, name: str) -> Any:
        asked.add(name)
        return plain(self, name)

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(PreTrainedConfig, "__getattribute__", recording)
        model = AutoModelForCausalLM.from_pretrained(GOLDEN / FOLDER_OF[family], attn_implementation="eager").eval()
        past = model(torch.tensor(PROMPT)).past_key_values
        model(torch.tensor([[5]]), past_key_values=past)
    fields = {field.name for field in dataclasses.fields(type(model.config))}
    own = {name for name in asked if name.startswith("_") or (hasattr(type(model.config), name) and name not in fields)}
    return asked - own - set(vars(GenerationConfig()))


def read_in_the_source(family: str) -> set[str]:
    """The names that stand behind `config.` or in a `getattr` of a config in the code of the family."""
    import inspect
    import sys

    from transformers import AutoModelForCausalLM

    module = sys.modules[AutoModelForCausalLM._model_mapping[reading_class(family)].__module__]
    text = re.sub(r'"""(.|\n)*?"""', "", inspect.getsource(module))
    names = set(re.findall(r"\bconfig\.([a-z]\w*)", text)) | set(
        re.findall(r"attr\((?:self\.)?config, \"(\w+)\"", text)
    )
    return {name for name in names if not callable(getattr(reading_class(family), name, None))}


@needs_torch
@pytest.mark.filterwarnings("ignore")
@every_family
def test_all_that_the_reference_reads_is_in_a_list(family):
    """So what is in no list cannot change its logits: we load it with a warning."""
    rows = {name for row in FIELDS[family] for name in (row.name, *row.aliases)}
    read = read_while_running(family) | read_in_the_source(family)
    of_family, shared = set(READ.get(family, {})), set(READ[""])
    assert sorted(read - rows - shared - of_family - INERT - IDLE) == []
    assert sorted(of_family - read) == []
    in_blocks = {"rope_scaling", "rotary_emb_base", "rotary_pct", "original_max_position_embeddings"}
    instead = {"rope_local_base_freq", "sliding_window_pattern", "no_rope_layer_interval"}
    assert sorted(rows - read - in_blocks - instead) == []


@needs_torch
def test_all_that_is_refused_everywhere_is_read_by_shared_code():
    import inspect

    from transformers import cache_utils, configuration_utils, masking_utils, modeling_utils
    from transformers.models.auto import auto_factory

    modules = (cache_utils, configuration_utils, masking_utils, modeling_utils, auto_factory)
    text = "".join(map(inspect.getsource, modules))
    assert not [name for name in READ[""] if not re.search(f'"{name}"|\\.{name}\\b', text)]


@needs_torch
@pytest.mark.filterwarnings("ignore")
@every_family
def test_what_is_passed_over_changes_nothing(family, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    defaults = {field.name: field.default for field in dataclasses.fields(reading_class(family))}
    odd = {name: {bool: not defaults.get(name), float: 0.5}.get(type(defaults.get(name)), 7) for name in INERT} | ODD
    odd = {name: value for name, value in odd.items() if name not in vars(GenerationConfig()) and name != "model_type"}
    values = golden(FOLDER_OF[family])
    config = values | odd | {"transformers_version": "4.0.0", "summary_type": "mean", "summary_activation": "tanh"}
    shutil.copy(GOLDEN / FOLDER_OF[family] / "model.safetensors", tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with torch.no_grad():
        logits = [
            AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)
            .eval()(torch.tensor(PROMPT))
            .logits.numpy()
            for folder in (tmp_path, GOLDEN / FOLDER_OF[family])
        ]
    np.testing.assert_array_equal(*logits)
    assert read_config(config, "config.json") == read_config(values, "config.json")


# Fields of published folders that the class of their family does not read.
HARMLESS = {
    "qwen2": {"use_mrope": False, "attention_bias": False, "rope_parameters.mrope_section": None},
    "gpt2": {"n_special": 0, "predict_special_tokens": True, "intermediate_size": 99, "rotary": True, "head_dim": 3},
    "gptj": {"rotary": True, "rope_theta": 5.0, "scale_attn_weights": False},
    "gpt_neox": {"rope_theta": 5.0, "partial_rotary_factor": 1.0, "num_key_value_heads": 1},
    "gemma": {"hidden_activation": "relu", "attn_logit_softcapping": 1.0, "partial_rotary_factor": 0.5},
    "gemma2": {"hidden_act": "relu", "cache_implementation_of": "hybrid", "use_sliding_window": False},
    "mistral": {"attention_bias": True, "mlp_bias": True, "max_window_layers": 1},
    "qwen3": {"mlp_bias": True, "use_qk_norm": False},
    "gemma3_text": {"hidden_act": "relu", "use_sliding_window": False, "max_window_layers": 1},
    "olmo2": {"clip_qkv": None, "mlp_bias": True, "use_sliding_window": True},
    "olmo3": {"clip_qkv": None, "sliding_window_pattern": 2, "use_sliding_window": False},
    "smollm3": {"max_window_layers": 28, "is_llama_config": True, "pretraining_length": 1},
    "phi3": {"attention_bias": False, "mlp_bias": False, "lm_head_bias": False, "full_attn_mod": 1},
    "granite": {"mup": True, "use_sliding_window": False},
    "llama": {
        "is_llama_config": True,
        "rope_interleaved": False,
        "transformers.js_config": {"dtype": "q4"},
        "_attn_implementation": "sdpa",
        "_attn_implementation_autoset": True,
        "unk_token_id": 0,
        "mask_token_id": None,
        "cls_token_id": 1,
        "_model_name_or_path": "somewhere",
        "use_flash_attn": True,
        "neftune_noise_alpha": None,
        "model_max_length": 4,
        "max_sequence_length": 4,
        "unsloth_version": "2025.1",
        "attention_sinks": 4,
        "use_bidirectional_attention": True,
        "tie_encoder_decoder": False,
        "pruned_heads": {},
    },
}


class TestWarning:
    """What the class of a family does not read is named once, and changes nothing."""

    @every_family
    def test_all_names_in_one(self, family):
        values, fields = golden(FOLDER_OF[family]), HARMLESS[family]
        values |= {name: value for name, value in fields.items() if "." not in name or "js" in name}
        nested = [name.split(".")[1] for name in fields if name.startswith("rope_parameters.")]
        if nested:
            values["rope_parameters"] = values["rope_parameters"] | {key: [1, 1] for key in nested}
        with pytest.warns(UserWarning, match="config.json") as warned:
            config = read_config(values, "config.json")
        assert len(warned) == 1 and "\n" not in str(warned[0].message)
        assert not [name for name in fields if name not in str(warned[0].message)]
        assert config == read_config(golden(FOLDER_OF[family]), "config.json")

    @pytest.mark.parametrize(
        ("name", "fields"),
        [(name, {}) for name in make.MODELS]
        + [
            ("llama3", {"rope_theta": 500.0, "is_causal": True, "sliding_window": None}),
            ("llama2", {"layer_types": ["full_attention"] * 3}),
            ("gpt_neox", {"hidden_act": "gelu", "rotary_pct": 0.5, "rotary_emb_base": 10000}),
        ],
    )
    @pytest.mark.filterwarnings("error")
    def test_none_without_reason(self, name, fields):
        read_config(golden(name) | fields, "config.json")

    def test_of_a_value_that_the_block_overrides(self):
        with pytest.warns(UserWarning, match="rope_theta"):
            config = read_config(golden("llama3") | {"rope_theta": 9.0}, "config.json")
        assert config.rotary_base == 500.0


class TestRefusal:
    """One line with the file, the field, and what is accepted."""

    @pytest.mark.parametrize(
        ("name", "fields", "field"),
        [
            (FOLDER_OF[family or "llama"], {field: value}, field)
            for family, listed in READ.items()
            for field in listed
            for value in ({"a": 1}, 0)
        ]
        + [
            ("llama3", {"vocab_size": True}, "vocab_size"),
            ("llama3", {"rms_norm_eps": float("nan")}, "rms_norm_eps"),
            ("llama3", {"rms_norm_eps": 10**400}, "rms_norm_eps"),
            ("llama3", {"rope_theta": float("inf")}, "rope_theta"),
            ("llama3", {"head_dim": 10**400}, "head_dim"),
            ("llama3", {"vocab_size": 2**40}, "vocab_size"),
            ("gpt_neox", {"hidden_size": 4 * 10**400}, "hidden_size"),
            ("gpt_neox", {"intermediate_size": 2**31}, "intermediate_size"),
            ("mistral", {"num_hidden_layers": 2**63}, "num_hidden_layers"),
            ("gpt2", {"n_layer": 2**31}, "n_layer"),
            ("qwen2_windows", {"max_window_layers": -(10**400)}, "max_window_layers"),
            ("llama3", {"rope_scaling": {"type": "spiral", "factor": 2.0}}, "rope_scaling.type"),
            ("llama3", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling"),
            ("llama_biased", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
            ("gpt2", {"hidden_size": 32}, "hidden_size"),
            ("llama3", {"rope_parameters": {"rope_type": ["default"]}}, "rope_parameters.rope_type"),
            ("gpt_neox", {"rope_parameters": {}, "rotary_pct": 0.1}, "rotary_pct"),
            ("gpt_neox", {"rope_parameters": {}, "rotary_pct": 1e308}, "rotary_pct"),
            ("gemma2", {"final_logit_softcapping": 0}, "final_logit_softcapping"),
            ("gemma2", {"sliding_window": None}, "sliding_window"),
            ("mistral", {"sliding_window": 0}, "sliding_window"),
            ("mistral", {"num_key_value_heads": None}, "num_key_value_heads"),
            ("qwen2", {"head_dim": None}, "head_dim"),
            ("gemma3", {"sliding_window": None}, "sliding_window"),
            ("gemma3", {"rope_parameters": {"rope_type": "default"}}, "rope_parameters.rope_type"),
            (
                "gemma3",
                {"rope_parameters": {"full_attention": {"rope_type": "spiral"}}},
                "rope_parameters.full_attention",
            ),
            ("olmo3", {"rope_parameters": {"sliding_attention": []}}, "rope_parameters.sliding_attention"),
            ("olmo2", {"layer_types": ["sliding_attention"] * 3}, "layer_types"),
            ("smollm3", {"no_rope_layers": [1, 0]}, "no_rope_layers"),
            ("smollm3", {"no_rope_layers": [True, False, True]}, "no_rope_layers"),
            ("smollm3", {"no_rope_layer_interval": 0}, "no_rope_layer_interval"),
            ("smollm3", {"rope_parameters": {"rope_type": "yarn"}}, "rope_parameters.factor"),
            (
                "smollm3",
                {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1}},
                "rope_parameters.rope",
            ),
            ("phi3", {"rope_parameters": {"rope_type": "linear", "factor": 2.0}}, "rope_parameters.rope_type"),
            ("phi3", {"layer_types": ["sliding_attention"] * 3, "sliding_window": None}, "layer_types"),
            ("phi3_long", {"original_max_position_embeddings": 32}, "original_max_position_embeddings"),
            ("phi3_long", {"rope_parameters": {"rope_type": "longrope"}}, "rope_parameters.short_factor"),
            ("granite", {"attention_multiplier": 0}, "attention_multiplier"),
            ("llama2", {"rope_parameters": {"rope_type": "dynamic"}}, "rope_parameters.factor"),
        ],
    )
    def test_names_the_field(self, name, fields, field):
        with pytest.raises(UserError) as error:
            read_config(golden(name) | fields, "config.json")
        assert str(error.value).startswith(f"config.json: {field}") and "\n" not in str(error.value)
        assert ": given " in str(error.value)
