"""The tokenizer in the metadata of a GGUF file, as the files that a Hugging Face folder has for it."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tvjax.errors import UserError
from tvjax.nn.pretrained.gguf_file import Metadata

KEY = "tokenizer.ggml."
# What a token is (`token_type`).
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
TAKEN_WHOLE = (UNKNOWN, CONTROL, USER_DEFINED)
"""Those that are found in a text before it is cut into words, as in llama.cpp. The last ones are text."""

_BY_WORD = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True}
_BYTES = _BY_WORD | {"use_regex": False}


def _split_by(pattern: str) -> dict[str, Any]:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [split, _BYTES]}


def _words(digits: str) -> str:
    """How Llama 3 and Qwen 2 cut texts into words by their published tokenizer.json; `digits`: of one number."""
    return (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
        + digits
        + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


# For each name of a pre-tokenizer what the `tokenizers` library has for it.
PRE_TOKENIZERS: Mapping[str, dict[str, Any]] = {
    **dict.fromkeys(("gpt-2", "olmo", "mpt"), _BY_WORD),
    "smollm": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, _BY_WORD]},
    "llama-bpe": _split_by(_words("{1,3}")),
    "qwen2": _split_by(_words("")),
}
WHOLE_WORDS = ("llama-bpe",)
"""Pre-tokenizers beside which a word that is a token is not merged from its parts, and a BOS is put by default."""
COMPOSED = ("qwen2",)
"""Pre-tokenizers before which a letter and its accents are made one character."""


def tokenizer_files(m: Metadata, vocab_size: int) -> dict[str, bytes]:
    """tokenizer.json, tokenizer_config.json and generation_config.json of a GGUF file; empty where it has no tokenizer.

    Raises `UserError` for one that is not understood.
    """
    kind = m.get(f"{KEY}model", str, "none")
    if kind in ("none", "no_vocab"):
        return {}
    if kind not in ("gpt2", "llama"):
        raise m.reject(f"{KEY}model", "gpt2 or llama", kind)
    for key in ("precompiled_charsmap", "add_sep_token"):
        if m.get(f"{KEY}{key}", list if "map" in key else bool, None):
            raise UserError(f"{m.path}: {KEY}{key}: is not implemented; accepted: a tokenizer without")
    tokens, kinds = _tokens(m, vocab_size)
    described = _bpe(m, tokens) if kind == "gpt2" else _sentencepiece(m, tokens, kinds)
    ids = _special_ids(m, kind, len(tokens))
    files = {
        "tokenizer.json": {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [_added(i, tokens[i], k) for i, k in enumerate(kinds) if k in TAKEN_WHOLE],
            "post_processor": _around(m, kind, tokens, ids),
            **described,
        },
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            **{f"{name}_token": tokens[i] for name, i in ids.items() if name != "eot"},
        },
        "generation_config.json": _ends(ids),
    }
    template = m.get("tokenizer.chat_template", str, None)
    if template is not None:
        files["tokenizer_config.json"]["chat_template"] = template
    return {name: (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode() for name, value in files.items()}


def _tokens(m: Metadata, vocab_size: int) -> tuple[list[str], list[int]]:
    """Each token's text and what it is."""
    tokens = m.get(f"{KEY}tokens", list)
    kinds = m.get(f"{KEY}token_type", list, [NORMAL] * len(tokens))
    if not tokens or not all(type(token) is str for token in tokens) or len(tokens) > vocab_size:
        raise UserError(f"{m.path}: {KEY}tokens: given {len(tokens)} entries; accepted: at most {vocab_size} texts")
    if len(set(tokens)) != len(tokens):
        twice = next(token for token in tokens if tokens.count(token) > 1)
        raise m.reject(f"{KEY}tokens", "each token once", twice)
    known = range(NORMAL, BYTE + 1)
    if len(kinds) != len(tokens) or not all(kind in known for kind in kinds):
        raise UserError(f"{m.path}: {KEY}token_type: accepted: {NORMAL}..{BYTE} for each of {len(tokens)} tokens")
    return tokens, kinds


def _bpe(m: Metadata, tokens: Sequence[str]) -> dict[str, Any]:
    """Byte-level BPE (Radford et al. 2019)."""
    name = m.get(f"{KEY}pre", str, "default")
    if name not in PRE_TOKENIZERS:
        raise m.reject(f"{KEY}pre", ", ".join(PRE_TOKENIZERS), name)
    merges = [merge.split(" ") if type(merge) is str else [] for merge in m.get(f"{KEY}merges", list)]
    for number, merge in enumerate(merges):
        if len(merge) != 2:
            raise m.reject(f"{KEY}merges[{number}]", "two tokens with a space between", " ".join(merge))
    return {
        "normalizer": {"type": "NFC"} if name in COMPOSED else None,
        "pre_tokenizer": PRE_TOKENIZERS[name],
        "decoder": _BY_WORD,
        "model": _model(tokens, merges, ignore_merges=name in WHOLE_WORDS),
    }


def _sentencepiece(m: Metadata, tokens: Sequence[str], kinds: Sequence[int]) -> dict[str, Any]:
    """SentencePiece's BPE (Kudo and Richardson 2018): of two neighbours those whose token scores highest are merged."""
    scores = m.get(f"{KEY}scores", list)
    if len(scores) != len(tokens):
        raise UserError(f"{m.path}: {KEY}scores: given {len(scores)} entries; accepted: one for each token")
    m.check(f"{KEY}remove_extra_whitespaces", bool, False)
    prefix = m.get(f"{KEY}add_space_prefix", bool, True)
    ids = {token: i for i, token in enumerate(tokens)}
    pairs = [
        (-scores[whole], whole, ids[token[:cut]], token[:cut], token[cut:])
        for token, whole in ids.items()
        for cut in range(1, len(token))
        if token[:cut] in ids and token[cut:] in ids
    ]
    unknown = m.get(f"{KEY}unknown_token_id", int, 0)
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    before = [{"type": "Prepend", "prepend": "▁"}] if prefix else []
    after = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    words = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*before, spaces]},
        "pre_tokenizer": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [words, {"type": "ByteFallback"}, {"type": "Fuse"}, *after],
        },
        "model": _model(
            tokens,
            [[left, right] for *_, left, right in sorted(pairs)],
            unk_token=tokens[unknown] if 0 <= unknown < len(tokens) else None,
            fuse_unk=True,
            byte_fallback=BYTE in kinds,
        ),
    }


def _model(tokens: Sequence[str], merges: Sequence[Sequence[str]], **options: Any) -> dict[str, Any]:
    vocabulary = {token: i for i, token in enumerate(tokens)}
    return {"type": "BPE", "vocab": vocabulary, "merges": [list(merge) for merge in merges], **options}


def _added(number: int, token: str, kind: int) -> dict[str, Any]:
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": token, **plain, "special": kind != USER_DEFINED}


def _special_ids(m: Metadata, kind: str, count: int) -> dict[str, int]:
    """The ids of the special tokens that the file names, by their names in `transformers`; llama.cpp's defaults."""
    names = {"bos": "bos", "eos": "eos", "eot": "eot", "unk": "unknown", "pad": "padding"}
    usual = {"bos": 1, "eos": 2, "unk": 0} if kind == "llama" else {}
    ids = {name: m.get(f"{KEY}{key}_token_id", int, usual.get(name)) for name, key in names.items()}
    for name, number in ids.items():
        if number is not None and not 0 <= number < count:
            raise m.reject(f"{KEY}{names[name]}_token_id", f"0..{count - 1}", number)
    return {name: number for name, number in ids.items() if number is not None}


def _around(m: Metadata, kind: str, tokens: Sequence[str], ids: Mapping[str, int]) -> dict[str, Any] | None:
    """What is put around every text, with llama.cpp's defaults."""
    usual = kind == "llama" or m.get(f"{KEY}pre", str, "") in WHOLE_WORDS
    put = {"bos": m.get(f"{KEY}add_bos_token", bool, usual), "eos": m.get(f"{KEY}add_eos_token", bool, False)}
    for name, wanted in put.items():
        if wanted and name not in ids:
            raise UserError(f"{m.path}: {KEY}add_{name}_token: given True; accepted: that with {KEY}{name}_token_id")
    if not any(put.values()):
        return None
    special = {name: {"SpecialToken": {"id": tokens[ids[name]], "type_id": 0}} for name in put if put[name]}

    def whole(*texts: str) -> list[dict[str, Any]]:
        inside = [{"Sequence": {"id": text, "type_id": 0}} for text in texts]
        return [*([special["bos"]] if put["bos"] else []), *inside, *([special["eos"]] if put["eos"] else [])]

    return {
        "type": "TemplateProcessing",
        "single": whole("A"),
        "pair": whole("A", "B"),
        "special_tokens": {
            tokens[ids[name]]: {"id": tokens[ids[name]], "ids": [ids[name]], "tokens": [tokens[ids[name]]]}
            for name in special
        },
    }


def _ends(ids: Mapping[str, int]) -> dict[str, Any]:
    """What begins a text, ends one, and fills up: the fields of generation_config.json."""
    ends = list(dict.fromkeys(ids[name] for name in ("eos", "eot") if name in ids))
    fields: dict[str, Any] = {f"{name}_token_id": ids[name] for name in ("bos", "pad") if name in ids}
    return fields | ({"eos_token_id": ends[0] if len(ends) == 1 else ends} if ends else {})
