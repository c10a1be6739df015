"""The tokenizer of a Hugging Face folder, read by the `tokenizers` library."""

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tvjax.errors import UserError


class Tokenizer:
    """Text to token ids and back, by a folder's tokenizer.json. Raises `UserError` where it is missing or not whole.

    described: what a tokenizer.json would hold, where `path` is no folder but says only where that is from.
    """

    def __init__(self, path: str | Path, described: bytes | None = None) -> None:
        import tokenizers

        path = self.path = Path(path) / "tokenizer.json" if described is None else Path(path)
        if described is None and not path.is_file():
            raise UserError(f"{path}: no such file; accepted: a folder with a tokenizer.json, or token ids as prompts")
        try:
            read = tokenizers.Tokenizer
            self._tokenizer = read.from_file(str(path)) if described is None else read.from_buffer(described)
        except Exception as error:  # the library raises bare Exceptions
            raise UserError(f"{path}: not a whole tokenizer ({' '.join(str(error).split())})") from None
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    @property
    def size(self) -> int:
        """How many tokens there are."""
        return int(self._tokenizer.get_vocab_size())

    def encode(self, texts: Sequence[str], *, special: bool = True) -> list[list[int]]:
        """The ids of each text; with `special`, what the model puts around every text (often a first token) too."""
        return [list(e.ids) for e in self._tokenizer.encode_batch(list(texts), add_special_tokens=special)]

    def check_open(self) -> None:
        """Raise `UserError` where it puts tokens behind every text: an answer could not stand there."""
        put = self._tokenizer.encode("a").special_tokens_mask
        if 0 in put and put[-1]:
            raise UserError(
                f"{self.path}: its post_processor puts tokens behind every text, where an answer should stand; "
                "accepted: one that puts them before it"
            )

    def encode_with_spans(self, texts: Sequence[str]) -> list[list[tuple[int, tuple[int, int]]]]:
        """The ids of `encode`, each with the characters that it stands for; (-1, -1) for what is put around a text."""
        return [
            [(i, (-1, -1) if s else span) for i, span, s in zip(e.ids, e.offsets, e.special_tokens_mask, strict=True)]
            for e in self._untrimmed.encode_batch(list(texts))
        ]

    @functools.cached_property
    def _untrimmed(self) -> Any:
        """The tokenizer with spans that begin where a token does: some leave out the space that a token begins with."""
        import tokenizers

        described = json.loads(self._tokenizer.to_str())
        behind = described["post_processor"] or {}
        for part in (behind, *behind.get("processors", ())):
            if "trim_offsets" in part:
                part["trim_offsets"] = False
        return tokenizers.Tokenizer.from_str(json.dumps(described))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, without special tokens."""
        return str(self._tokenizer.decode([int(i) for i in ids]))

    def token(self, number: int) -> str:
        """How the vocabulary spells one token."""
        return str(self._tokenizer.id_to_token(int(number)))


def train_tokenizer(texts: Sequence[str], size: int) -> str:
    """The tokenizer.json of a byte-level BPE (Sennrich et al. 2016; Radford et al. 2019) trained on `texts`.

    It spells any text: what it has no word for, it spells in bytes.
    """
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return str(tokenizer.to_str())
