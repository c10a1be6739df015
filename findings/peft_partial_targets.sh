#!/usr/bin/env bash
# peft 0.21.2: a LoRA whose target_modules name two modules, of which the model has one; and one for a layer it lacks.
#
# A guess: the name that fits nothing is an error, or at least a warning, as it is if it stands alone, and as it is in
# rank_pattern.
# What happens: nothing is said. Half of the adapter that was asked for is not there, and fewer numbers train. With
# layers_to_transform the same: of layers 0 and 7 in a model of two layers, layer 0 alone is adapted.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/env"
"$place/env/bin/pip" install --quiet --disable-pip-version-check peft==0.21.2 transformers==5.24.0 torch==2.14.1
cd "$place"
HF_HUB_OFFLINE=1 env/bin/python - <<'PYTHON'
import warnings

from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

SIZES = {"vocab_size": 16, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


def adapted(**fields):
    """The modules that train, and what was said of what was asked for; None and the error if there is one."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            model = get_peft_model(LlamaForCausalLM(LlamaConfig(**SIZES)), LoraConfig(r=2, **fields))
        except ValueError as error:
            return None, [str(error)]
    names = {name.split(".lora_")[0] for name, p in model.named_parameters() if p.requires_grad}
    short = sorted(".".join(name.split(".")[-3:]) for name in names)
    return short, [str(w.message) for w in said if "v_porj" in str(w.message) or "layers_to" in str(w.message)]


for fields, there, lines in (
    ({"target_modules": ["v_porj"]}, None, 1),
    ({"target_modules": ["q_proj", "v_porj"]}, ["0.self_attn.q_proj", "1.self_attn.q_proj"], 0),
    ({"target_modules": ["q_proj"], "rank_pattern": {"v_porj": 4}}, ["0.self_attn.q_proj", "1.self_attn.q_proj"], 1),
    ({"target_modules": ["q_proj"], "layers_to_transform": [0, 7]}, ["0.self_attn.q_proj"], 0),
):
    found, said = adapted(**fields)
    print(f"{fields}: adapted {found}; said: {said}")
    assert (found, len(said)) == (there, lines)
PYTHON
