"""What a study of formats is asked to do: its settings, read from a config and checked."""

import dataclasses
import re

from tvjax.errors import reject
from tvjax.experiments.models import TextSettings
from tvjax.settings import Checked, setting
from tvjax.text.bench import Position, VectorConfig
from tvjax.text.data import DataConfig


@dataclasses.dataclass(frozen=True)
class FormatConfig(Checked):
    """The formats, and how much is asked in each."""

    templates: tuple[tuple[str, str, str, str], ...] = setting(about="(name, before, between, after) of each")
    starts: tuple[tuple[str, str], ...] = setting(about="(name, text) of each text in front of the whole prompt")
    positions: tuple[Position, ...] = setting(("last", "query"), "where states are read and written: last, query")
    seeds: tuple[int, ...] = setting((0, 1, 2), "of demonstrations and queries", least=0, entries=1, distinct=True)
    demonstrations: int = setting(10, "k", least=1)
    prompts: int = setting(4, "prompts that a vector is the mean of, of each seed", least=1)
    dev: int = setting(12, "most questions of a task that choose a layer", least=1)
    questions: int = setting(12, "most questions of a task that are asked", least=1)
    memory: float = setting(1.0, "GiB that a pass may take beside the parameters; batches are made to fit", above=0)
    batch: int = setting(12, "most prompts in one pass", least=1)

    def check(self, path: str) -> None:
        """Raise `UserError` for names or texts that are there twice, or that name no file."""
        for field, rows in (("templates", self.templates), ("starts", self.starts)):
            names, texts = [row[0] for row in rows], [row[1:] for row in rows]
            if not rows or len(set(names)) < len(names) or len(set(texts)) < len(texts):
                raise reject(f"{path}.{field}", rows, "different names of different texts, at least one")
            for name in names:
                if not re.fullmatch(r"[\w-]+", name):
                    raise reject(f"{path}.{field}", name, "names of letters, digits, _ and -: they name files")
        if not self.positions or len(set(self.positions)) < len(self.positions):
            raise reject(f"{path}.positions", self.positions, "different ones of 'last' and 'query', at least one")

    def vectors(self, seed: int) -> VectorConfig:
        """The settings of the bench of one seed."""
        most = max(self.dev, self.questions)
        return VectorConfig(self.demonstrations, self.prompts, seed, self.memory, self.batch, most)


@dataclasses.dataclass(frozen=True)
class FormatSettings(TextSettings):
    """The whole experiment, checked."""

    data: DataConfig
    formats: FormatConfig
