#!/usr/bin/env bash
# transformers 5.24.0: rope_theta in the config.json of a GPT-NeoX (Pythia's family).
#
# A guess: it is the base of the rotary embedding, as in Llama and as the library's own name for it says.
# What happens: at the top level this family knows the base as rotary_emb_base alone. With rope_theta the logits do not
# change in one bit, although config.rope_theta then says the number that was asked for. In a Llama rope_theta counts,
# and rotary_emb_base is what does nothing. The share of rotated entries goes the same way: rotary_pct counts,
# partial_rotary_factor does not. Nothing is said.
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
from transformers import AutoModelForCausalLM, GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
sizes = {"vocab_size": 16, "hidden_size": 64, "intermediate_size": 16, "num_hidden_layers": 2}
heads = {"num_attention_heads": 2, "initializer_range": 0.5}
GPTNeoXForCausalLM(GPTNeoXConfig(**sizes, **heads)).save_pretrained("gpt_neox")
LlamaForCausalLM(LlamaConfig(**sizes, **heads)).save_pretrained("llama")


def read(family, keys):
    """The config and the logits of a folder whose config.json has those keys in place of rope_parameters."""
    path = pathlib.Path(family, "config.json")
    config = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in config.items() if k != "rope_parameters"} | keys))
    model = AutoModelForCausalLM.from_pretrained(family)
    path.write_text(json.dumps(config))
    return model.config, model(torch.arange(3, 11)[None]).logits


for family, counts in {
    "gpt_neox": {"rope_theta": False, "rotary_emb_base": True, "partial_rotary_factor": False, "rotary_pct": True},
    "llama": {"rope_theta": True, "rotary_emb_base": False},
}.items():
    _, plain = read(family, {})
    for key, expected in counts.items():
        value = 0.5 if key in ("partial_rotary_factor", "rotary_pct") else 100.0
        config, logits = read(family, {key: value})
        change = (logits - plain).abs().max().item()
        print(f"{family}, {key} {value}: config.{key} {getattr(config, key, None)}, logits change by {change:.2f}")
        assert change > 0.01 if expected else change == 0
assert read("gpt_neox", {"rope_theta": 100.0})[0].rope_theta == 100
PYTHON
