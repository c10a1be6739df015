#!/usr/bin/env bash
# transformers 5.24.0: the tokenizer of a GGUF file that names another pre-tokenizer than GPT-2's.
#
# A guess: AutoTokenizer.from_pretrained(folder, gguf_file=...) cuts texts as the file says (tokenizer.ggml.pre), so that
# its ids are those that the model was trained with, and those of llama.cpp.
# What happens: the key is not looked at. Llama's architecture gets GPT-2's way for any file with merges: "smollm", which
# takes digits apart before anything else, and "gpt-2" give the same ids. Two spaces before a number are two tokens
# where the model has seen one, and "12" is one where it has seen two. Nothing is said.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/env"
"$place/env/bin/pip" install --quiet --disable-pip-version-check \
  transformers==5.24.0 gguf==0.19.0 torch==2.14.1 tokenizers==0.23.3
cd "$place"
HF_HUB_OFFLINE=1 env/bin/python - <<'PYTHON'
import gguf
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer

letters = pre_tokenizers.ByteLevel.alphabet()
merges = [("1", "2"), ("Ġ", "Ġ"), ("Ġ", "1")]
tokens = sorted(letters) + ["".join(pair) for pair in merges]


def write(pre):
    writer = gguf.GGUFWriter(f"{pre}.gguf", "llama")
    for key in ("context_length", "embedding_length", "block_count", "feed_forward_length", "attention.head_count"):
        writer.add_uint32(f"llama.{key}", 32)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([1] * len(tokens))
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


text = "a  12"
vocabulary = {token: i for i, token in enumerate(tokens)}
by_word = pre_tokenizers.ByteLevel(add_prefix_space=False)
expected = {
    "gpt-2": by_word,
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), by_word]),
}
for pre, cut in expected.items():
    write(pre)
    meant = Tokenizer(models.BPE(vocabulary, merges))
    meant.pre_tokenizer = cut
    wanted = meant.encode(text).tokens
    got = AutoTokenizer.from_pretrained(".", gguf_file=f"{pre}.gguf").tokenize(text)
    print(f"{pre}: transformers {got}, what the name means {wanted}")
    assert (got == wanted) == (pre == "gpt-2")
PYTHON
