"""Which text tasks a run is about, and the copy of them that it keeps."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tvjax.errors import reject
from tvjax.files import user_path
from tvjax.parallel import processes
from tvjax.settings import setting
from tvjax.tasks import records
from tvjax.tasks.folders import Fields, read_folder
from tvjax.tasks.suite import both_ways, suite
from tvjax.tasks.text import TextTask

KEPT = "data"
"""The folder of a run that holds its tasks."""


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which tasks: those of a folder, or data sets of tensorflow-datasets, or else the built-in suite."""

    path: str = setting(
        "", "a folder of NAME.json, .jsonl, .csv, .parquet or of saved datasets; '': the built-in suite"
    )
    tasks: tuple[str, ...] = setting(
        (), "names of tasks of the folder or the suite (with those asked both ways); (): all"
    )
    tfds: tuple[tuple[str, str, str], ...] = setting(
        (), "or data sets: (name, input, output), e.g. (('glue/sst2', '{sentence}', '{label}'),)"
    )
    tfds_dir: str = setting("", "where they are prepared, as array_record; '': where tensorflow-datasets has them")
    most: int = setting(0, "inputs that are taken of a file or data set, with all their answers; 0: all", least=0)
    fields: Fields = dataclasses.field(default_factory=Fields)

    def read(self) -> dict[str, TextTask]:
        """The tasks by name. Raises `UserError` for a folder, a data set or a task that is not there."""
        if self.tfds and (self.path or self.tasks):
            raise reject("config.data.tfds", self.tfds, "() where config.data.path or config.data.tasks is given")
        if self.fields != Fields() and not self.path:
            raise reject("config.data.fields", self.fields, "other names only where config.data.path is given")
        if self.tfds:
            folder = str(user_path(self.tfds_dir, "config.data.tfds_dir")) if self.tfds_dir else ""
            tasks = [records.read_dataset(*row, data_dir=folder, most=self.most) for row in self.tfds]
            names = [task.name for task in tasks]
            if len(set(names)) < len(names):
                raise reject("config.data.tfds", names, "data sets of different names")
            return {task.name: task for task in tasks}
        if len(set(self.tasks)) < len(self.tasks):
            raise reject("config.data.tasks", self.tasks, "each name once")
        if self.path:
            return read_folder(user_path(self.path, "config.data.path"), self.tasks, self.fields, most=self.most)
        known = suite() | (both_ways() if self.tasks else {})
        for name in self.tasks:
            if name not in known:
                raise reject("config.data.tasks", name, f"those of the built-in suite: {', '.join(known)}")
        return {name: known[name] for name in self.tasks or known}

    def of_run(self, folder: Path) -> dict[str, TextTask]:
        """The tasks that the run in `folder` keeps, so that it goes on as it began; else those of `read`."""
        return records.kept(folder / KEPT) or self.read()

    def of_groups(self, folder: Path, groups: Mapping[str, Sequence[str]]) -> dict[str, TextTask]:
        """The tasks of the run in `folder` that config.tasks names, in the order of its groups.

        Raises `UserError` for a task that is not there, and as `read` does.
        """
        known = self.of_run(folder)
        for group, names in groups.items():
            for name in names:
                if name not in known:
                    raise reject(f"config.tasks.{group}", name, f"tasks of config.data: {', '.join(known)}")
        return {name: known[name] for names in groups.values() for name in names}


def keep_tasks(tasks: Mapping[str, TextTask], folder: Path, say: Callable[[str], None]) -> None:
    """Keep `tasks` in the run in `folder`, as array_record, unless they are."""
    if not records.available():
        say("tensorflow-datasets is not installed: the run keeps no copy of its tasks")
        return

    def keep() -> None:
        if records.kept(folder / KEPT) is None:
            records.keep(tasks, folder / KEPT)

    processes.on_first(keep)
