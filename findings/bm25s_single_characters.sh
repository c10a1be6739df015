#!/usr/bin/env bash
# bm25s 0.3.16: demonstrations for queries of single characters, numbers and function words.
#
# A guess: BM25 finds the text that equals the query, whatever its words.
# What happens: the default tokenizer drops words of one character and English stop words before anything is counted, so
# "7 + 8", "a" and "to be or not to be" are empty queries, which all get one and the same text, with a score of 0.
# In-context tasks on letters and sums retrieve the same demonstrations for every query, without a word.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/env"
"$place/env/bin/pip" install --quiet --disable-pip-version-check bm25s==0.3.16
"$place/env/bin/python" - <<'PYTHON'
import bm25s

texts = ["birds fly south", "the cat sat", "7 + 8", "a", "to be or not to be", "12 + 15"]
retriever = bm25s.BM25()
retriever.index(bm25s.tokenize(texts, show_progress=False), show_progress=False)
unmatched = set()
for query, terms in (("7 + 8", []), ("a", []), ("to be or not to be", []), ("12 + 15", ["12", "15"])):
    words = bm25s.tokenize(query, show_progress=False, return_ids=False)
    documents, scores = retriever.retrieve(words, k=1, show_progress=False)
    best = texts[documents[0, 0]]
    print(f"{query!r}: terms {words[0]}, best match {best!r} with a score of {scores[0, 0]:.2f}")
    assert words[0] == terms and (best == query and scores[0, 0] > 0 if terms else scores[0, 0] == 0)
    unmatched |= set() if terms else {best}
assert len(unmatched) == 1
PYTHON
