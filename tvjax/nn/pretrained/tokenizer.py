"""The tokenizer of a Hugging Face folder, read by the `tokenizers` library."""

from collections.abc import Sequence
from pathlib import Path

from tvjax.errors import UserError


class Tokenizer:
    """Text to token ids and back, by a folder's tokenizer.json. Raises `UserError` where it is missing or not whole."""

    def __init__(self, folder: str | Path) -> None:
        import tokenizers

        path = Path(folder) / "tokenizer.json"
        if not path.is_file():
            raise UserError(f"{path}: no such file; accepted: a folder with a tokenizer.json, or token ids as prompts")
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
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
