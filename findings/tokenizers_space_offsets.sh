#!/usr/bin/env bash
# tokenizers 0.23.3: offsets of tokens that are spaces alone, from GPT-2's kind of tokenizer with its post-processor.
#
# A guess: the tokens' spans cover the text, or leave out the one space that a word begins with.
# What happens: trim_offsets, which is on by default, takes spaces off a token until nothing is left. A token of spaces
# has an empty span behind them, whatever its length, and no character of an indentation belongs to any token:
# char_to_token is None there. A line break, white space as well, keeps its span.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/env"
"$place/env/bin/pip" install --quiet --disable-pip-version-check tokenizers==0.23.3
"$place/env/bin/python" - <<'PYTHON'
from tokenizers import Tokenizer, models, pre_tokenizers, processors

merges = [("Ġ", "Ġ"), ("Ġ", "b")]
tokens = sorted(pre_tokenizers.ByteLevel.alphabet()) + ["".join(pair) for pair in merges]
tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
text = "a   b\n  \nb"
for processor, trimmed in (
    (processors.ByteLevel(), True),
    (processors.ByteLevel(trim_offsets=True), True),
    (processors.ByteLevel(trim_offsets=False), False),
):
    tokenizer.post_processor = processor
    encoding = tokenizer.encode(text)
    spans = list(zip(encoding.tokens, encoding.offsets, strict=True))
    lost = [i for i in range(len(text)) if encoding.char_to_token(i) is None]
    print(f"{text!r}: {spans}, characters of no token {lost}")
    assert encoding.tokens == ["a", "ĠĠ", "Ġb", "Ċ", "ĠĠ", "Ċ", "b"]
    assert encoding.offsets[1] == ((3, 3) if trimmed else (1, 3)) and encoding.offsets[3] == (5, 6)
    assert encoding.offsets[4] == ((8, 8) if trimmed else (6, 8))
    assert lost == ([1, 2, 3, 6, 7] if trimmed else [])
PYTHON
