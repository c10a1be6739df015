#!/usr/bin/env bash
# transformers 5.24.0: generation from a folder whose generation_config.json has sampling settings alone.
#
# A guess: what it does not say is as config.json says, so that generation ends at config.json's eos_token_id.
# What happens: where the file is, be it {}, config.json's token does not count: nothing ends an answer, and each is as
# long as max_new_tokens allows. Without the file the same folder stops at the token. model.config.eos_token_id is there
# in both, and nothing is said. Whoever adds a file with a temperature to a model so changes the length of its answers.
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

sizes = {"vocab_size": 16, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, bos_token_id=1, eos_token_id=0))
torch.nn.init.zeros_(model.lm_head.weight)  # all logits are equal, so that greedy decoding takes token 0
model.save_pretrained("model")
path = pathlib.Path("model/generation_config.json")
prompt = torch.tensor([[3]])
for settings, expected in ((None, 1), ({"eos_token_id": 0}, 1), ({"do_sample": True, "temperature": 0.6}, 8), ({}, 8)):
    if settings is None:
        path.unlink(missing_ok=True)
    else:
        path.write_text(json.dumps(settings))
    model = AutoModelForCausalLM.from_pretrained("model")
    answer = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=8, pad_token_id=15
    )[0, 1:].tolist()
    print(f"generation_config.json {settings}: answer {answer}, config.eos_token_id {model.config.eos_token_id}")
    assert answer == [0] * expected and model.config.eos_token_id == 0
PYTHON
