"""Text tasks and tensorflow-datasets, without TensorFlow: data sets by name, and tasks kept as array_record."""

import contextlib
import functools
import io
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tvjax.errors import UserError, reject, warn
from tvjax.tasks.folders import pieces
from tvjax.tasks.text import SPLITS, Answers, Pair, TextTask, answers_of, split_of

NAME, VERSION = "text_tasks", "1.0.0"


def available() -> bool:
    """Whether tensorflow-datasets is installed. Only tasks that are kept, and data sets by name, need it."""
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
    """The class that writes tasks. It is made once, since the library keeps a register of its classes."""
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
    """Write `tasks` under `folder` as a data set of tensorflow-datasets, with the splits of `split_of`.

    The data set is whole or absent. An example is ``{"number", "task", "input", "output"}``, numbered over all tasks in
    order.
    """
    config = _library().download.DownloadConfig(try_download_gcs=False)
    with contextlib.redirect_stdout(io.StringIO()):  # it tells of a download that there is not
        _builder()(tasks, folder).download_and_prepare(download_config=config)


def kept(folder: Path) -> dict[str, TextTask] | None:
    """The tasks that `keep` wrote under `folder`, in their order; None: there are none."""
    path = folder / NAME / VERSION
    if not (path / "dataset_info.json").is_file():
        return None
    tfds = _library()
    try:
        sources = tfds.builder_from_directory(str(path)).as_data_source()
        rows = sorted(
            (int(e["number"]), _text(e["task"]), _text(e["input"]), _text(e["output"]))
            for source in sources.values()
            for e in source
        )
    except Exception as error:  # the library and its readers raise what they like
        raise UserError(f"{path}: not a whole data set ({_line(error)}); accepted: one that was kept here") from None
    pairs: dict[str, list[Pair]] = {}
    for _, name, x, y in rows:
        pairs.setdefault(name, []).append((x, y))
    return {name: TextTask(name, tuple(own)) for name, own in pairs.items()}


def read_dataset(name: str, input_form: str, output_form: str, *, data_dir: str = "", most: int = 0) -> TextTask:
    """The data set `name` (as tensorflow-datasets names it) as a task: inputs and outputs by format strings.

    input_form: a format string of the features of an input, e.g. ``"{premise} {hypothesis}"``.
    output_form: a format string of the features of an output, e.g. ``"{label}"``.
    data_dir: the folder of the data set; "": the library's own.
    most: how many inputs are taken, each with all its answers; 0: all.

    A class label is its name, a number the shortest decimal that is stored as the same number (3.8, 5.0, 7), a truth
    value True or False. Each text or label of a list in `output_form` is a right answer. All splits are read. Examples
    without a label (-1) are left out, with a warning that counts them.

    Raises `UserError` for a data set or a feature that is not there. Raises it also, with the record and the split, for
    a value of another kind, an empty text and a number that is not finite.
    """
    tfds = _library()
    try:
        sources = tfds.data_source(name, data_dir=data_dir or None)
    except Exception as error:
        raise reject("config.data.tfds", name, f"a data set that can be read ({_line(error)})") from None
    pairs: list[Pair] = []
    unlabelled = 0
    for split in sorted(sources):
        features = sources[split].dataset_info.features
        inputs, outputs = (_fields(text, features, name) for text in (input_form, output_form))
        for example, where in _examples(sources[split], f"of split {split} of {name}"):
            values = {
                f: _texts(f, features[f], example[f], where, several=f not in inputs) for f in (*inputs, *outputs)
            }
            unlabelled += not all(values.values())
            for chosen in itertools.product(*values.values()):
                one = dict(zip(values, chosen, strict=True))
                pairs.append((input_form.format_map(one).strip(), output_form.format_map(one).strip()))
    if unlabelled:
        warn(f"config.data.tfds: {name}: {unlabelled} examples have no label: they are left out")
    answers = answers_of(pairs)
    if not answers:
        raise reject("config.data.tfds", name, "a data set with examples that have an input and an output")
    taken = itertools.islice(answers.items(), most or None)
    return TextTask(task_name(name), tuple((x, y) for x, ys in taken for y in ys))


def _examples(source: Any, where: str) -> Iterator[tuple[Mapping[str, Any], str]]:
    """The examples of a split, each with the words for its record and split."""
    for number in range(len(source)):
        try:
            example = source[number]
        except Exception as error:
            raise reject("config.data.tfds", f"record {number} {where}", f"one that reads ({_line(error)})") from None
        yield example, f"record {number} {where}"


def task_name(name: str) -> str:
    """A data set's name as the name of a task, and of a file: ``glue/sst2:2.0.0`` is ``glue_sst2``."""
    return name.partition(":")[0].replace("/", "_")


def _fields(text: str, features: Mapping[str, Any], name: str) -> Sequence[str]:
    """The features that a format string names."""
    named = [field for _, field in pieces(text, "config.data.tfds") if field is not None]
    for field in named:
        if field not in features:
            raise reject("config.data.tfds", text, f"features of {name} in braces: {', '.join(features)}")
    if not named:
        raise reject("config.data.tfds", text, f"at least one feature of {name} in braces: {', '.join(features)}")
    return named


def _texts(field: str, feature: Any, value: Any, where: str, *, several: bool) -> Answers:
    """A feature's value in words. Several words if `several` and the value is a list; none if a label is missing."""
    if hasattr(feature, "int2str") and (several or np.ndim(value) == 0):
        return tuple(str(feature.int2str(int(one))) for one in np.ravel(value) if one >= 0)
    try:
        texts = [_word(one, feature) for one in value] if several and _texts_alone(value) else [_word(value, feature)]
    except ValueError:
        texts = []
    if not texts or not all(text.strip() for text in texts):
        accepted = f"a text, a number or a label{', or a list of texts' if several else ''}, and none that is missing"
        raise reject("config.data.tfds", f"{{{field}}} = {_line(repr(value))} in {where}", accepted)
    return tuple(texts)


def _texts_alone(value: Any) -> bool:
    return isinstance(value, list | np.ndarray) and all(isinstance(one, bytes | str) for one in np.ravel(value))


def _word(value: Any, feature: Any) -> str:
    """A text, a number or a truth value in words. Raises `ValueError` for anything else, and for inf or NaN."""
    if isinstance(value, bytes | str):
        return _text(value)
    if isinstance(value, bool | int | np.bool_ | np.integer):
        return str(value)
    if not isinstance(value, float | np.floating) or not np.isfinite(value):
        raise ValueError(value)
    return _decimal(float(value), np.dtype(feature.np_dtype))


def _decimal(value: float, dtype: np.dtype) -> str:
    """The shortest decimal that is `value` in the precision of its feature.

    The library stores float64 with no more digits than float32 holds, unless it stores bytes.
    """
    single = np.float32 if dtype.itemsize > 4 else dtype.type
    if float(single(value)) != value:
        return repr(value)
    shorter = (f"{value:.{digits}g}" for digits in range(1, 18))
    return repr(next(float(text) for text in shorter if float(single(float(text))) == value))


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _line(what: Exception | str) -> str:
    return " ".join(str(what).split())[:200] or type(what).__name__
