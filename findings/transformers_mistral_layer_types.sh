#!/usr/bin/env bash
# transformers 5.24.0: a folder whose config.json says "mistral" and has a list of layer_types.
#
# A guess: Mistral's configuration has no such field: the key does nothing, and sliding_window holds in every layer.
# What happens: it depends on the class that reads the folder. AutoModelForCausalLM takes the model for a Ministral, and
# its windows go by layer: with "full_attention" everywhere the logits are those of no window at all. Nothing is said.
# MistralForCausalLM, which the folder names as its architecture, has the window in every layer, and warns. What the
# first saves is a "ministral" from then on.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/env"
"$place/env/bin/pip" install --quiet --disable-pip-version-check transformers==5.24.0 torch==2.14.1 tokenizers==0.23.3
cd "$place"
HF_HUB_OFFLINE=1 env/bin/python - <<'PYTHON'
import json
import pathlib

import torch
from transformers import AutoModelForCausalLM, MistralConfig, MistralForCausalLM

torch.manual_seed(0)
sizes = {"vocab_size": 16, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "head_dim": 8}
heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "initializer_range": 0.5, "sliding_window": 2}
MistralForCausalLM(MistralConfig(**sizes, **heads)).save_pretrained("model")
path = pathlib.Path("model/config.json")
written = json.loads(path.read_text())


def logits(loader, **changes):
    """What that class makes of the same weights, with those keys in config.json."""
    path.write_text(json.dumps(written | changes))
    model = loader.from_pretrained("model")
    print(f"{loader.__name__}, {changes}: a {type(model).__name__}")
    return model(torch.arange(3, 11)[None]).logits


full = {"layer_types": ["full_attention", "full_attention"]}
window = logits(AutoModelForCausalLM)
none = logits(AutoModelForCausalLM, sliding_window=None)
automatic = logits(AutoModelForCausalLM, **full)
named = logits(MistralForCausalLM, **full)
print("largest difference from no window:", (automatic - none).abs().max().item(), (named - none).abs().max().item())
assert written["architectures"] == ["MistralForCausalLM"] and not torch.allclose(window, none, atol=0.1)
assert torch.allclose(automatic, none, atol=1e-4) and torch.allclose(named, window, atol=1e-4)
AutoModelForCausalLM.from_pretrained("model").save_pretrained("again")
assert json.loads(pathlib.Path("again/config.json").read_text())["model_type"] == "ministral"
PYTHON
