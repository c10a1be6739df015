#!/usr/bin/env bash
# transformers 5.24.0: "is_causal": false in the config.json of a Llama.
#
# A guess: Llama is a decoder, its configuration has no such field, and the key does nothing, as is_decoder does.
# What happens: the causal mask is gone. The logits of the first position change with the last token of the prompt: a
# loss over a sequence is that of a model which sees the answers. The class is the same, and nothing is said. Greedy
# decoding gives other tokens with a cache than without one, since cached states have not seen what came later.
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
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
sizes = {"vocab_size": 16, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
heads = {"num_attention_heads": 2, "initializer_range": 0.5, "bos_token_id": 1, "eos_token_id": None}
LlamaForCausalLM(LlamaConfig(**sizes, **heads)).save_pretrained("model")
path = pathlib.Path("model/config.json")
written = json.loads(path.read_text())
prompt, other = torch.tensor([[3, 4, 5, 6, 7, 8]]), torch.tensor([[3, 4, 5, 6, 7, 9]])
for keys, causal in (({}, True), ({"is_decoder": False}, True), ({"is_causal": False}, False)):
    path.write_text(json.dumps(written | keys))
    model = AutoModelForCausalLM.from_pretrained("model")
    change = (model(prompt).logits - model(other).logits)[0, 0].abs().max().item()
    cached, anew = (
        model.generate(
            prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=8, use_cache=use_cache
        )[0, 6:].tolist()
        for use_cache in (True, False)
    )
    print(f"{keys}: the last token moves the first logits by {change:.2f}; with a cache {cached}, without {anew}")
    assert isinstance(model, LlamaForCausalLM)
    assert (change == 0 and cached == anew) if causal else (change > 0.1 and cached != anew)
PYTHON
