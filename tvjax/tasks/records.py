"""Text tasks and tensorflow-datasets, without TensorFlow: data sets by name, and tasks kept as array_record."""

import contextlib
import functools
import io
import string
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tvjax.errors import UserError, reject
from tvjax.tasks.text import SPLITS, TextTask, split_of, without_repetition

NAME, VERSION = "text_tasks", "1.0.0"


def available() -> bool:
    """Whether tensorflow-datasets is installed: what is kept and what is named needs it, nothing else does."""
    try:
        import tensorflow_datasets  # noqa: F401
    except ImportError:
        return False
    return True


def _library() -> Any:
    if not available():
        raise UserError("tensorflow-datasets: not installed; accepted: pip install tensorflow-datasets array_record")
    import tensorflow_datasets

    tensorflow_datasets.disable_progress_bar()
    return tensorflow_datasets


@functools.cache
def _builder() -> Any:
    """The class that writes tasks: made once, since the library keeps a register of such classes."""
    tfds = _library()

    class TextTasks(tfds.core.GeneratorBasedBuilder):  # type: ignore[name-defined]
        """Pairs of inputs and outputs of named tasks."""

        name = NAME
        VERSION = tfds.core.Version(VERSION)

        def __init__(self, tasks: Mapping[str, TextTask], folder: Path) -> None:
            self.tasks = tasks
            super().__init__(data_dir=str(folder), file_format="array_record")

        def _info(self) -> Any:
            text, number = tfds.features.Text(), tfds.features.Scalar(np.int64)
            features = {"number": number, "task": text, "input": text, "output": text}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, manager: Any) -> dict[str, Any]:
            held = {split for task in self.tasks.values() for split in SPLITS if task.split(split)}
            return {split: self._generate_examples(split) for split in SPLITS if split in held}

        def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
            pairs = [(name, *pair) for name, task in self.tasks.items() for pair in task.pairs]
            for number, (name, x, y) in enumerate(pairs):
                if split_of(x) == split:
                    yield number, {"number": number, "task": name, "input": x, "output": y}

    return TextTasks


def keep(tasks: Mapping[str, TextTask], folder: Path) -> None:
    """Write `tasks` under `folder` as a data set of tensorflow-datasets, its splits those of `split_of`.

    It is whole or absent. An example is ``{"number", "task", "input", "output"}``, numbered over all tasks in order.
    """
    config = _library().download.DownloadConfig(try_download_gcs=False)
    with contextlib.redirect_stdout(io.StringIO()):  # it tells of a download that there is not
        _builder()(tasks, folder).download_and_prepare(download_config=config)


def kept(folder: Path) -> dict[str, TextTask] | None:
    """The tasks that `keep` wrote under `folder`, in their order; None where there are none."""
    place = folder / NAME / VERSION
    if not (place / "dataset_info.json").is_file():
        return None
    tfds = _library()
    try:
        sources = tfds.builder_from_directory(str(place)).as_data_source()
        rows = sorted(
            (int(e["number"]), _text(e["task"]), _text(e["input"]), _text(e["output"]))
            for source in sources.values()
            for e in source
        )
    except Exception as error:  # the library and its readers raise what they like
        raise UserError(f"{place}: not a whole data set ({_line(error)}); accepted: one that was kept here") from None
    pairs: dict[str, list[tuple[str, str]]] = {}
    for _, name, x, y in rows:
        pairs.setdefault(name, []).append((x, y))
    return {name: TextTask(name, tuple(found)) for name, found in pairs.items()}


def read_dataset(name: str, shown: str, said: str, *, data_dir: str = "", most: int = 0) -> TextTask:
    """The data set `name` (as tensorflow-datasets names it) as a task: inputs and outputs by format strings.

    shown, said: of its features, e.g. ``"{premise} {hypothesis}"`` and ``"{label}"``; a class label is its name. All
    its splits are read, an example without a label is left out; `most`: pairs that are taken (0: all). Raises
    `UserError` for a data set or a feature that is not there.
    """
    tfds = _library()
    try:
        sources = tfds.data_source(name, data_dir=data_dir or None)
    except Exception as error:
        raise reject("config.data.tfds", name, f"a data set that can be read ({_line(error)})") from None
    pairs: list[tuple[str, str]] = []
    for split in sorted(sources):
        features = sources[split].dataset_info.features
        wanted = [_fields(text, features, name) for text in (shown, said)]
        for example in sources[split]:
            values = {f: _shown(features[f], example[f]) for fields in wanted for f in fields}
            if all(value is not None and value.strip() for value in values.values()):
                pairs.append((shown.format_map(values).strip(), said.format_map(values).strip()))
    unique = without_repetition(pairs)
    if not unique:
        raise reject("config.data.tfds", name, "a data set with examples that have an input and an output")
    return TextTask(task_name(name), unique[: most or None])


def task_name(name: str) -> str:
    """A data set's name as the name of a task, and of a file: ``glue/sst2:2.0.0`` is ``glue_sst2``."""
    return name.partition(":")[0].replace("/", "_")


def _fields(text: str, features: Mapping[str, Any], name: str) -> Sequence[str]:
    """The features that a format string names."""
    try:
        fields = [field for _, field, _, _ in string.Formatter().parse(text) if field is not None]
    except ValueError as error:
        raise reject("config.data.tfds", text, f"a format string ({error})") from None
    for field in fields:
        if field not in features:
            raise reject("config.data.tfds", text, f"features of {name} in braces: {', '.join(features)}")
    if not fields:
        raise reject("config.data.tfds", text, f"at least one feature of {name} in braces: {', '.join(features)}")
    return fields


def _shown(feature: Any, value: Any) -> str | None:
    """A feature's value in words; None for a label that is not told."""
    if hasattr(feature, "int2str"):
        return str(feature.int2str(int(value))) if int(value) >= 0 else None
    return _text(value)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
