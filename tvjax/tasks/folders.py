"""Text tasks in files of the user's: JSON, JSON lines, CSV, parquet, and folders that the library datasets saves.

The records of all of them go through one check. No file is read that is not in the folder that the user names.
"""

import csv
import dataclasses
import functools
import importlib.util
import io
import itertools
import json
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tvjax.errors import UserError, reject, warn
from tvjax.files import inside, read_json, user_path
from tvjax.settings import Checked, setting
from tvjax.tasks.text import Pair, TextTask, answers_of, without_repetition

Record = tuple[str, Any]
"""The words for a record's file and place, and what stands there."""
STATE, INFO, SPLITS = "state.json", "dataset_info.json", "dataset_dict.json"
SAVED = "accepted: a folder that save_to_disk of datasets wrote"
END = b"\xff\xff\xff\xff\0\0\0\0"
"""How a stream of arrow ends. Without it a file that was cut off would read as a shorter one."""
TEXT = "a text that is not blank; a number stands in quotes, each of several right answers in a record of its own"
UNLABELLED = object()
"""The value of a class label that is missing (-1)."""


def pieces(form: str, field: str) -> tuple[tuple[str, str | None], ...]:
    """A text with names in braces, ``"{premise} / {hypothesis}"``, as pairs of a text and the name behind it.

    field: the field of the config that has the text, for errors.

    Raises `UserError` for a text that does not parse, and for a name with a format behind it.
    """
    try:
        parts = list(string.Formatter().parse(form))
    except ValueError as error:
        raise reject(field, form, f"a format string ({error})") from None
    for _, name, style, conversion in parts:
        if name == "" or style or conversion:
            raise reject(field, form, f"{{{name or 'NAME'}}} alone, without a format")
    return tuple((text, name) for text, name, _, _ in parts)


@dataclasses.dataclass(frozen=True)
class Fields(Checked):
    """Which fields of a record, or columns of a table, are the input, the answer and the possible answers."""

    input: str = setting("input", "the field of the input, or a text with fields in braces: '{premise} / {hypothesis}'")
    output: str = setting("output", "the field of the answer, or a text with fields in braces")
    options: tuple[str, ...] = setting(
        (), "the field that lists the possible answers, or one field for each; the output says which; (): none"
    )

    def check(self, path: str) -> None:
        """Raise `UserError` for a text without a field."""
        for field in ("input", "output"):
            if not [name for _, name in self.form(field, path) if name]:
                raise reject(f"{path}.{field}", getattr(self, field), "a field, or a text with fields in braces")
        if len(set(self.options)) < len(self.options) or not all(self.options):
            raise reject(f"{path}.options", self.options, "names of different fields")
        if self.options and len(self.used["output"]) > 1:
            raise reject(f"{path}.output", self.output, "one field, since config.data.fields.options is given")

    def form(self, field: str, path: str = "config.data.fields") -> tuple[tuple[str, str | None], ...]:
        """The texts and the names of "input" or "output": `pieces`, or the name alone where there are no braces."""
        value = getattr(self, field)
        return pieces(value, f"{path}.{field}") if {"{", "}"} & set(value) else (("", value),)

    @functools.cached_property
    def used(self) -> dict[str, tuple[str, ...]]:
        """The names of the record's fields that make the input, the output and the options."""
        named = {field: tuple(name for _, name in self.form(field) if name) for field in ("input", "output")}
        return {**named, "options": self.options}

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """All of `used`, each once."""
        return tuple(dict.fromkeys(itertools.chain(*self.used.values())))

    def said(self) -> str:
        """What a record has to be."""
        return (
            "{" + ", ".join(f"{name!r}: {'options' if name in self.options else 'text'}" for name in self.names) + "}"
        )

    def check_columns(self, path: Path, columns: Sequence[str]) -> None:
        """Raise `UserError` for a table that has a name twice, or lacks a column."""
        if len(set(columns)) < len(columns):
            raise reject(f"{path}, columns", list(columns), "different names")
        for field, names in self.used.items():
            for name in names:
                if name not in columns:
                    raise reject(f"config.data.fields.{field}", name, f"the columns of {path}: {', '.join(columns)}")


def read_folder(
    folder: str | Path, names: Sequence[str] = (), fields: Fields | None = None, *, most: int = 0
) -> dict[str, TextTask]:
    """The tasks of a folder, or of one file of a task: those called `names`, or all.

    folder: of NAME.json (a list of records), NAME.jsonl (one record a line), NAME.csv (with a header), NAME.parquet,
        and folders NAME that save_to_disk of datasets wrote; or one of these itself.
    fields: which fields of a record are input and output; None: those called so.
    most: how many inputs are taken, each with all its answers; 0: all.

    Texts are read without the blanks around them. If an input is in several records, every output is right. A class
    label is its name; records without one (-1) are left out, with a warning that counts them.

    Raises `UserError` for a folder or a task that is not there, for a link out of the folder, and, with the record, for
    anything but texts: a number could be spelled in several ways.
    """
    folder, fields = user_path(folder), fields or Fields()
    files = _files(folder)
    if not files:
        raise UserError(f"{folder}: no task in it; accepted: a folder of {FORMS}")
    for name in names:
        if name not in files:
            raise reject("tasks", name, f"those of {folder}: {', '.join(files)}")
    return {name: TextTask(name, _pairs(_one(files[name], folder), fields, most)) for name in names or files}


def _files(folder: Path) -> dict[str, list[Path]]:
    """The files and folders of each task."""
    if folder.is_file():
        if folder.suffix not in READERS:
            raise UserError(f"{folder}: a file of another kind; accepted: {FORMS}")
        return {folder.stem: [folder]}
    if _saved(folder):
        return {folder.resolve().name: [folder]}
    files: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        whole = path.is_dir()
        if not path.name.startswith(".") and (_saved(path) if whole else path.suffix in READERS):
            files.setdefault(path.name if whole else path.stem, []).append(path)
    return files


def _saved(folder: Path) -> bool:
    return (folder / STATE).is_file() or (folder / SPLITS).is_file()


def _one(paths: Sequence[Path], folder: Path) -> Path:
    """The file or folder of a task, which has to be one and in `folder`."""
    if len(paths) > 1:
        raise UserError(f"{folder}: {' and '.join(path.name for path in paths)} are one task; accepted: one of them")
    return paths[0] if paths[0] == folder else inside(folder, paths[0].name)


def _pairs(path: Path, fields: Fields, most: int) -> tuple[Pair, ...]:
    pairs, unlabelled = [], 0
    what, reader = ("data set", _saved_records) if path.is_dir() else READERS[path.suffix]
    try:
        for where, record in reader(path, fields):
            pair = _pair(record, fields, where)
            unlabelled += pair is None
            pairs += [pair] if pair else []
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        raise UserError(f"{path}: not whole {what} ({' '.join(str(error).split())[:200]})") from None
    if unlabelled:
        warn(f"{path}: {unlabelled} records have no label: they are left out")
    if not pairs:
        raise UserError(f"{path}: holds no list of pairs; accepted: records of {fields.said()}")
    chosen = set(itertools.islice(answers_of(pairs), most or None))
    return tuple(pair for pair in without_repetition(pairs) if pair[0] in chosen)


def _pair(record: Any, fields: Fields, where: str) -> Pair | None:
    """The input and the output of a record; None: it has no label. Raises `UserError` for any other record."""
    if not isinstance(record, Mapping):
        raise reject(where, record, fields.said())
    for name in fields.names:
        if name not in record:
            raise reject(where, record, f"{fields.said()}, as config.data.fields has it")
    if any(record[name] is UNLABELLED for name in fields.names):
        return None
    y = _option(record, fields, where) if fields.options else _filled("output", record, fields, where)
    return _filled("input", record, fields, where), y


def _filled(field: str, record: Mapping[str, Any], fields: Fields, where: str) -> str:
    return "".join(
        text + (_text(record[name], f"{where}, {name!r}") if name else "") for text, name in fields.form(field)
    ).strip()


def _text(value: Any, where: str) -> str:
    """A text without the blanks around it. Raises `UserError` for a blank one, and for half of a character."""
    if not (isinstance(value, str) and value.strip() and value.encode(errors="ignore").decode() == value):
        raise reject(where, value, TEXT)
    return value.strip()


def _option(record: Mapping[str, Any], fields: Fields, where: str) -> str:
    """The option that the output says: by its place from 0, by its label, or by its text."""
    listed = record[fields.options[0]]
    labels: Any = fields.options
    if len(fields.options) > 1:
        texts: Any = [record[name] for name in labels]
    elif isinstance(listed, Mapping):
        labels, texts = listed.get("label"), listed.get("text")
    else:
        labels, texts = (), listed
    place = f"{where}, {fields.options[0]!r}"
    lists = isinstance(texts, list) and isinstance(labels, list | tuple) and len(labels) in (0, len(texts))
    if not (lists and texts and all(isinstance(label, str) for label in labels)):
        raise reject(place, listed, "a list of texts, or {'label': labels, 'text': texts}")
    texts = [_text(text, place) for text in texts]
    (name,) = fields.used["output"]
    value = record[name]
    if type(value) is int:
        chosen = set(texts[value : value + 1] if value >= 0 else ())
    else:
        value = _text(value, f"{where}, {name!r}")
        chosen = {text for label, text in itertools.zip_longest(labels, texts) if value in (label, text)}
    if len(chosen) != 1:
        said = f"one of the options, its label or its place from 0: {', '.join(map(repr, texts))}"
        raise reject(f"{where}, {name!r}", value, said)
    return chosen.pop()


def _content(path: Path) -> str:
    return path.read_text(encoding="utf-8-sig")


def _once(items: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose names are all different. JSON itself would keep the last value of a name that stands twice."""
    known = dict(items)
    if len(known) < len(items):
        raise ValueError(f"a name stands twice in an object of the names {[name for name, _ in items][:5]}")
    return known


def _json(path: Path, fields: Fields) -> Iterator[Record]:
    items = json.loads(_content(path), object_pairs_hook=_once)
    if not isinstance(items, list) or not items:
        raise UserError(f"{path}: holds no list of pairs; accepted: a list of {fields.said()}")
    for number, item in enumerate(items):
        yield f"{path}: record {number}", item


def _json_lines(path: Path, fields: Fields) -> Iterator[Record]:
    lines = _content(path).split("\n")  # other ends of lines may stand in a text
    for number, (line, text) in enumerate((n, text) for n, text in enumerate(lines, 1) if text.strip()):
        try:
            item = json.loads(text, object_pairs_hook=_once)
        except ValueError as error:
            raise ValueError(f"line {line}: {error}") from None
        yield f"{path}: record {number} (line {line})", item


def _csv(path: Path, fields: Fields) -> Iterator[Record]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(file, strict=True)
        try:
            header = next(rows, [])
            fields.check_columns(path, header)
            for number, row in enumerate(filter(None, rows)):
                where = f"{path}: record {number} (line {rows.line_num})"
                if len(row) != len(header):
                    raise reject(where, row, f"{len(header)} cells, as in the header")
                yield where, dict(zip(header, row, strict=True))
        except csv.Error as error:
            raise ValueError(f"line {rows.line_num}: {error}") from None


def _pyarrow(path: Path) -> Any:
    if importlib.util.find_spec("pyarrow") is None:
        raise UserError(f"{path}: is read by pyarrow, which is not installed; accepted: pip install 'tvjax[data]'")
    import pyarrow.parquet  # and with it pyarrow.ipc

    return pyarrow


def _table(path: Path, batches: Any, features: Any, fields: Fields) -> Iterator[Record]:
    """The records of a table, with the names of class labels in place of their numbers.

    features: what datasets says of the columns. Where there are options, the number of an output is its option's.
    """
    classes = {
        name: feature.get("names")
        for name, feature in (features.items() if isinstance(features, Mapping) else ())
        if isinstance(feature, Mapping) and feature.get("_type") == "ClassLabel"
    }
    for name in fields.used["output"] if fields.options else ():
        classes.pop(name, None)
    number = 0
    for batch in batches:
        for record in batch.to_pylist():
            where = f"{path}: record {number}"
            yield (
                where,
                {name: _label(value, classes.get(name), f"{where}, {name!r}") for name, value in record.items()},
            )
            number += 1


def _label(value: Any, names: Any, where: str) -> Any:
    if names is None:
        return value
    if value == -1:
        return UNLABELLED
    if type(value) is not int or not isinstance(names, list) or not 0 <= value < len(names):
        raise reject(where, value, f"the number of a class label, of {names!r}, or -1")
    return names[value]


def _parquet(path: Path, fields: Fields) -> Iterator[Record]:
    arrow = _pyarrow(path)
    try:
        with arrow.parquet.ParquetFile(path) as file:
            fields.check_columns(path, file.schema_arrow.names)
            batches = file.iter_batches(columns=list(fields.names))
            yield from _table(path, batches, _features(file.schema_arrow.metadata), fields)
    except arrow.ArrowException as error:
        raise ValueError(error) from None


def _features(metadata: Mapping[bytes, bytes] | None) -> Any:
    """What datasets wrote of the columns of a file, or None."""
    about = json.loads((metadata or {}).get(b"huggingface", b"{}"))
    info = about.get("info") if isinstance(about, Mapping) else None
    return info.get("features") if isinstance(info, Mapping) else None


def _arrow(path: Path, features: Any, fields: Fields) -> Iterator[Record]:
    arrow = _pyarrow(path)
    with path.open("rb") as file:
        file.seek(-min(len(END), path.stat().st_size), io.SEEK_END)
        if file.read() != END:
            raise ValueError(f"{path.name} is cut off")
    try:
        with arrow.memory_map(str(path)) as source, arrow.ipc.open_stream(source) as stream:
            fields.check_columns(path, stream.schema.names)
            yield from _table(path, (batch.select(fields.names) for batch in stream), features, fields)
    except arrow.ArrowException as error:
        raise ValueError(error) from None


def _saved_records(folder: Path, fields: Fields) -> Iterator[Record]:
    """The records of all splits, in the order of the splits."""
    if not (folder / SPLITS).is_file():
        yield from _saved_split(folder, fields)
        return
    splits = read_json(inside(folder, SPLITS), SAVED).get("splits")
    if not isinstance(splits, list) or not all(isinstance(split, str) for split in splits):
        raise reject(f"{folder / SPLITS}, splits", splits, "names of folders")
    for split in splits:
        yield from _saved_split(inside(folder, split), fields)


def _saved_split(folder: Path, fields: Fields) -> Iterator[Record]:
    state, info = (read_json(inside(folder, name), SAVED) for name in (STATE, INFO))
    files = state.get("_data_files")
    named = [file.get("filename") for file in files if isinstance(file, Mapping)] if isinstance(files, list) else [None]
    names = [name for name in named if isinstance(name, str)]
    if len(names) < len(named) or len(named) < len(files or ()):
        raise reject(f"{folder / STATE}, _data_files", files, "a list of {'filename': text}")
    if state.get("_indices_data_files"):
        raise UserError(
            f"{folder / STATE}: _indices_data_files chooses rows; accepted: rows as they are (flatten_indices)"
        )
    for name in names:
        yield from _arrow(inside(folder, name), info.get("features"), fields)


Reader = Callable[[Path, Fields], Iterator[Record]]
READERS: Mapping[str, tuple[str, Reader]] = {
    ".json": ("JSON", _json),
    ".jsonl": ("JSON lines", _json_lines),
    ".csv": ("CSV", _csv),
    ".parquet": ("parquet", _parquet),
}
FORMS = f"{', '.join(f'NAME{suffix}' for suffix in READERS)}, or what save_to_disk of datasets wrote"
