#!/usr/bin/env bash
# tokenizers 0.23.3: add_tokens with a token that the vocabulary has already.
#
# A guess: nothing changes, and 0 is returned: no token is new. A way to make sure that label words are single tokens.
# What happens: it returns 1, and the vocabulary stays as it is, but from then on the token is cut out of each text
# first, in the middle of words too: "know" was a token and is now "k", "no", "w", not what a model was trained with.
# add_special_tokens does the same, and decode then leaves the token out of ordinary text.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/env"
"$place/env/bin/pip" install --quiet --disable-pip-version-check tokenizers==0.23.3
"$place/env/bin/python" - <<'PYTHON'
from tokenizers import Tokenizer, decoders, models

merges = [("n", "o"), ("w", "no"), ("k", "n"), ("k", "no"), ("kno", "w")]
tokens = ["k", "n", "o", "w", *dict.fromkeys("".join(pair) for pair in merges)]


def tokenizer():
    made = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    made.decoder = decoders.Fuse()
    return made


plain, added, special = tokenizer(), tokenizer(), tokenizer()
returned = added.add_tokens(["no"]), special.add_special_tokens(["no"])
print("returned:", returned, "vocabulary:", plain.get_vocab_size(), added.get_vocab_size(), special.get_vocab_size())
for name, made, expected, text in (
    ("as it was", plain, ["know"], "know"),
    ("add_tokens", added, ["k", "no", "w"], "know"),
    ("add_special_tokens", special, ["k", "no", "w"], "kw"),
):
    encoding = made.encode("know")
    print(f"{name}: {encoding.tokens}, decoded {made.decode(encoding.ids)!r}")
    assert encoding.tokens == expected and made.decode(encoding.ids) == text
    assert made.get_vocab() == plain.get_vocab()
assert returned == (1, 1)
PYTHON
