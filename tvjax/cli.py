"""The command line: flags are read here, and every way to end has an exit code and one line."""

import ast
import dataclasses
import errno
import inspect
import io
import os
import re
import signal
import sys
import threading
import traceback
import types
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tvjax import plugins, remote
from tvjax.errors import RunError, UserError, near, reject
from tvjax.experiments.identity import check_same
from tvjax.files import nearest_beside, read_json, user_path
from tvjax.parallel import processes

MODES = ("train", "eval", "report", "plan")
MODE = ("mode", "train")
READING = ("eval", "report")
"""Modes that need an existing run."""
NAMES = {
    "config": "a config file, e.g. --config=configs/tvp_synthetic.py",
    "workdir": "a folder, of a run or for one",
    "plugins": "modules with commas between, e.g. my_method,my_package.my_task",
    "mode": ", ".join(MODES),
    "sweep": "fields with values, e.g. 'tvp_weight=0,0.3,1 model.width=32,64 seed=0:4'",
}
"""The flags other than fields, and what each takes."""
SWEEP = "sweep."
VALUES = "values with commas between, such as 0,0.3,1, or a range of ints, such as 0:4 for 0,1,2,3"
"""What a field of a sweep takes."""
FLAGS = (
    "flags only: --config=FILE[:ARG], --config.FIELD=VALUE, --sweep.FIELD=VALUES, --workdir=DIR, --plugins=MODULES,"
    + " --profile=FIRST:LAST, --mode="
    + "|".join(MODES)
)
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
WRONG_KIND = (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP)
NO_ACCESS = (errno.EACCES, errno.EPERM, errno.EROFS, *WRONG_KIND)
"""A path that a user named, or a path inside it, is not what it should be."""


def read_flags(argv: list[str]) -> tuple[dict[str, Any], str, str, str]:
    """The config as plain values, its name, the workdir ("" if none is given) and the mode.

    For a plan the config has one group more, `plan`, which is no part of a run.

    Raises `UserError` for a wrong flag, config file, argument of a config file or field. Raises it also if there is no
    run to measure or to report, and if the config of a report differs from that of its run.
    """
    from ml_collections import ConfigDict

    flags = _split(argv[1:])
    source, workdir, mode = (str(flags.pop(name, usual)) for name, usual in (("config", ""), ("workdir", ""), MODE))
    if mode not in MODES:
        raise reject("--mode", mode, ", ".join(MODES))
    plugins.load(str(flags.pop("plugins", "")))
    swept = [(name, str(flags.pop(name))) for name in list(flags) if name.startswith(SWEEP)]
    swept += _swept_together(str(flags.pop("sweep", "")))
    run = _config_of_run(workdir, mode) if mode in READING or not source else {}
    file, *argument = source.split(":", 1) if source else [""]
    if source:
        processes.start()  # a config file imports what imports jax: what jax refuses is said of jax, not of the file
    config = _load(file, *argument) if source else _unlocked(run, workdir)
    if mode == "plan":
        processes.start()
        from tvjax.experiments.base import PlanConfig

        with config.unlocked():
            config.plan = ConfigDict(dataclasses.asdict(PlanConfig()))
    values = _override(config, flags)
    if swept:
        values = _swept(values, swept)
    if mode == "report" and (source or flags or swept):
        processes.start()
        check_same(remote.path_of(workdir), values, free=())
    name = "-".join([Path(file).stem, *argument, *(["sweep"] if swept else [])]) if source else Path(workdir).name
    return values, re.sub(r"[^\w.-]+", "-", name), workdir, mode


def read_profile(argv: list[str]) -> tuple[list[str], tuple[int, int] | None]:
    """The command line without ``--profile=FIRST:LAST``, and those two steps. Raises `UserError` for other values."""
    argv = list(argv)
    for index, word in enumerate(argv[:-1]):
        if re.fullmatch("--?profile", word) and not argv[index + 1].startswith("-"):
            argv[index : index + 2] = [f"--profile={argv[index + 1]}"]
            break
    flags = [word for word in argv if re.match(r"--?profile(=|$)", word)]
    if not flags:
        return argv, None
    value = " ".join(word.partition("=")[2] for word in flags)
    steps = re.fullmatch("([0-9]{1,18}):([0-9]{1,18})", value)
    if steps is None or not 1 <= int(steps[1]) <= int(steps[2]):
        raise reject("--profile", value, "FIRST:LAST, two steps in this order, the first of training being 1")
    return [word for word in argv if word not in flags], (int(steps[1]), int(steps[2]))


def _split(words: list[str]) -> dict[str, str | bool]:
    """The flags as ``{name: value}``. A field without a value is True, ``--noconfig.FIELD`` is False.

    Raises `UserError` for a word that is no flag of `FLAGS`, a flag that is there twice, and a flag without a value.
    """
    flags: dict[str, str | bool] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        flag = re.fullmatch(r"--?([^-=][^=]*)(?:=(.*))?", word, re.DOTALL)
        if "\0" in word or re.search("[\ud800-\udfff]", word):
            raise reject("command line", word, "text of UTF-8, without NUL")
        if flag is None:
            raise reject("command line", word, FLAGS)
        name, value = flag.groups()
        if value is None and name.startswith("noconfig."):
            name, value = name.removeprefix("no"), False
        elif value is None and rest and not re.match("--?[A-Za-z]", rest[0]):
            value = rest.pop(0)
        if name not in NAMES and not name.startswith(("config.", SWEEP)):
            known = near(f"--{name}", [f"--{known}" for known in (*NAMES, "profile", "help")])
            known = f"; did you mean {f'--config.{name}'!r}?" if "." in name else known
            raise UserError(f"--{name}: given {value or ''!r}; accepted: {FLAGS}{known}")
        if name in flags:
            raise UserError(f"--{name}: given twice, {flags[name]!r} and {value!r}; accepted: one value")
        if not value and (name in NAMES or name.startswith(SWEEP)):
            raise reject(f"--{name}", value or "", NAMES.get(name, VALUES))
        flags[name] = True if value is None else value
    return flags


def _config_of_run(workdir: str, mode: str) -> dict[str, Any]:
    """The config of the run in `workdir`. Raises `UserError` if there is no run."""
    from etils import epath

    path = epath.Path(remote.path_of(workdir)) / "config.json" if workdir else None
    try:
        exists = path is not None and path.exists()
    except OSError:  # no folder has such a name, or it may not be read
        exists = False
    if path is not None and exists:
        values = read_json(path, "accepted: the workdir of a run")
        if "experiment" not in values:
            raise UserError(f"{path}: no experiment in it; accepted: the workdir of a run")
        return values
    beside = nearest_beside(remote.path_of(workdir)) if workdir and "://" not in workdir else ""
    if mode in READING:
        accepted = f"for --mode={mode} the folder of a run, which --mode=train makes (config.json is missing there)"
        raise UserError(f"--workdir: given {workdir!r}; accepted: {accepted}{beside}")
    accepted = f"{NAMES['config']}, or the --workdir of a run"
    there = f"; {workdir} is none{beside}" if workdir else ""
    raise UserError(f"--config: given None; accepted: {accepted}{there}")


def _unlocked(values: dict[str, Any], workdir: str) -> Any:
    """The values of a run's config.json as from a config file, with tuples for lists."""
    from ml_collections import ConfigDict

    def with_tuples(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: with_tuples(inner) for name, inner in value.items()}
        return tuple(map(with_tuples, value)) if isinstance(value, list) else value

    try:
        return ConfigDict(with_tuples(values))
    except Exception as error:
        raise UserError(f"{workdir}/config.json: {error}; accepted: the config of a run") from None


def _load(source: str, *argument: str) -> Any:
    """The config of the file's `get_config`. Raises `UserError` if it is missing, fails or makes no config."""
    from ml_collections import ConfigDict

    file = user_path(source, "--config")
    if not os.path.isfile(file):
        accepted = "a config file that exists, e.g. configs/tvp_synthetic.py"
        raise UserError(f"--config: given {source!r}; accepted: {accepted}{nearest_beside(file)}")
    path = str(file)
    module = types.ModuleType("tvjax_config")
    module.__file__ = path
    accepted = "a Python file with get_config(), which takes the argument after ':' and makes a ConfigDict"
    beside, before = str(file.resolve().parent), set(sys.modules)
    sys.path.insert(0, beside)  # so that it can import the files beside it
    try:
        exec(compile(file.read_bytes(), path, "exec"), vars(module))
        config = module.get_config(*argument)
    except UserError:
        raise
    except SyntaxError as error:
        line = f"{error.filename or path}:{error.lineno or 1}"
        raise UserError(f"{line}: not Python ({error.msg}); accepted: {accepted}") from None
    except (Exception, SystemExit) as error:
        raise UserError(f"{path}: it raised {type(error).__name__} ({error}); accepted: {accepted}") from None
    finally:
        sys.path.remove(beside)
        for imported in set(sys.modules) - before:  # another folder's may have the same names
            if os.path.dirname(getattr(sys.modules[imported], "__file__", None) or "") == beside:
                del sys.modules[imported]
    if not isinstance(config, ConfigDict):
        raise UserError(f"{path}: get_config() made a {type(config).__name__}; accepted: {accepted}")
    return config


def _override(config: Any, fields: Mapping[str, str | bool]) -> dict[str, Any]:
    """The values of `config`, with the values of `fields` set.

    Raises `UserError` for a field or a value that `config` does not take, and for a missing field that it needs.
    """
    from absl import flags
    from ml_collections import config_flags

    words = ["main"]
    for name, value in fields.items():
        kind = _kind(name, value, config)
        if isinstance(value, bool) and kind is not bool:
            raise reject(name, "" if value else "no", _taken(kind))
        if kind is type(None):  # of no type yet: what the text says as Python, or the text
            _set(config, name, str(value))
        else:
            words.append(f"--{name}={value}")
    values = flags.FlagValues()
    try:
        if len(words) > 1:
            config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=words)
            values(words)
            config = values.config
        return dict(config.to_dict())
    except Exception as error:
        raise _misfit(error, config) from None


def _swept_together(text: str) -> list[tuple[str, str]]:
    """The fields of ``--sweep='FIELD=VALUES ..'`` as flags of their own. Raises `UserError` for other text."""
    words = [word.partition("=") for word in text.split()]
    for name, _, values in words:
        if not name or not values:
            raise reject("--sweep", text, NAMES["sweep"])
    return [(f"{SWEEP}{name}", values) for name, _, values in words]


def _swept(values: dict[str, Any], fields: list[tuple[str, str]]) -> dict[str, Any]:
    """The config of a sweep of the run that `values` describe, or that sweep with other values, if it is one.

    A field of config.population may be named without its group. Raises `UserError` for a field that is there twice, and
    for a field of the sweep that is a group and a field at once.
    """
    if values.get("experiment") != "sweep":
        from tvjax.experiments.sweep.settings import CutConfig
        from tvjax.settings import defaults

        values = {"experiment": "sweep", "base": values, "sweep": {}, "cut": defaults(CutConfig)}
    seen: dict[tuple[str, ...], str] = {}
    for flag, value in fields:
        *groups, last = flag.removeprefix(SWEEP).split(".")
        if not groups and last in values["base"].get("population", {}):
            groups = ["population"]
        path = (*groups, last)
        if path in seen:
            raise UserError(
                f"--{flag}: given twice, {seen[path]!r} and {value!r}; accepted: the values of a field once"
            )
        seen[path] = value
        group = values["sweep"]
        for inner in groups:
            group = group.setdefault(inner, {})
            if not isinstance(group, dict):
                raise reject(f"--{flag}", value, f"a field: {inner} has values of its own")
        group[last] = _values(value)
    return values


def _values(text: str) -> tuple[Any, ...]:
    """``0,0.3,1`` as numbers, ``0:4`` as 0, 1, 2, 3, and what is not Python as words."""
    ends = re.fullmatch(r"(-?\d{1,9}):(-?\d{1,9})", text.strip())
    if ends:
        return tuple(range(int(ends[1]), int(ends[2])))
    try:
        return tuple(ast.literal_eval(f"({text.strip().rstrip(',')},)"))
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return tuple(word.strip() for word in text.split(","))


def _kind(path: str, value: object, config: Any) -> type:
    """The type of the field at `path`.

    Raises `UserError`, with the fields that there are, if there is no such field.
    """
    group, parent, kind = config, "config", type(config)
    for name in path.split(".")[1:]:
        if not hasattr(group, "keys") or name not in group:
            fields = f"the fields of {parent} are {', '.join(group)}" if hasattr(group, "keys") else "it is no group"
            raise reject(f"{parent}.{name}", value, f"no such field; {fields}")
        try:
            kind = group.get_type(name)
        except Exception:  # a placeholder for what must be given
            kind = type(None)
        parent = f"{parent}.{name}"
        group = group[name] if hasattr(kind, "keys") else None
    return kind


def _set(config: Any, path: str, value: str) -> None:
    *groups, last = path.split(".")[1:]
    for name in groups:
        config = config[name]
    with config.ignore_type():
        try:
            config[last] = ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            config[last] = value


def _taken(kind: type) -> str:
    """The values that a field of this type takes, in words."""
    return "no value: it is a group of fields" if hasattr(kind, "keys") else f"a value of type {kind.__name__}"


def _misfit(error: Exception, config: Any) -> UserError:
    """The error for a value that the flag parser or the config refused."""
    text = " ".join(str(error).split()) or type(error).__name__
    refused = re.match(r"flag --(config\.[\w.]+)=(.*?): ", text)
    if refused is None:
        return UserError(f"config: {text}; accepted: a value for each field, as --config.FIELD=VALUE")
    name, value = refused.groups()
    return reject(name, value, _taken(_kind(name, value, config)))


def exit_cleanly(main: Callable[[list[str]], None], argv: list[str]) -> int:
    """Run `main` and turn the ways to end into an exit code, with one line on stderr if something is wrong."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    sys.unraisablehook = lambda echo: None if _is_echo(echo) else sys.__unraisablehook__(echo)
    threading.excepthook = lambda echo: None if _is_echo(echo) else threading.__excepthook__(echo)
    warnings.filterwarnings("ignore", r"coroutine .* was never awaited")
    warnings.formatwarning = lambda message, *rest: f"tvjax: warning: {' '.join(str(message).split())}\n"
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal that lacks a letter shows its number
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        main(argv)
    except (UserError, RunError) as error:
        return _end(error.exit_code, str(error))
    except KeyboardInterrupt:
        return _end(130, "interrupted; the same command with this --workdir goes on from the last checkpoint")
    except OSError as error:
        if error.errno in NO_ACCESS and error.filename:
            return _end(
                2, f"{error.filename}: {error.strerror}; accepted: what can be read, and written to where a run is"
            )
        if error.errno not in DISK_FULL:
            raise
        where = f" at {error.filename}" if error.filename else ""
        return _end(
            3, f"the disk is full{where}; checkpoints are kept; free some space and start the same command again"
        )
    except Exception as error:
        if processes.is_loss(error):
            what = str(error).strip().splitlines()[0][:160]
            return _end(processes.LOST, f"process {processes.index()}: another one was lost ({what})")
        if isinstance(error, MemoryError) or re.search("RESOURCE_EXHAUSTED|Out of memory", str(error)):
            what = " ".join(str(error).split())[:160] or "no memory is left"
            return _end(3, f"it does not fit in memory ({what}); checkpoints are kept; --mode=plan says what it takes")
        if processes.count() > 1:  # at a usual end jax would wait for the others, which wait for this one
            traceback.print_exc()
            processes.leave(1)
        raise
    return 0


def _is_echo(report: Any) -> bool:
    """Whether an uncaught error comes of a failed save or restore, or of a full disk, which one line already reports.

    orbax leaves coroutines and threads of a closed event loop behind, tensorboardX a thread and an exit handler.
    """
    error, source = report.exc_value, getattr(report, "object", None)
    full = isinstance(error, OSError) and error.errno in DISK_FULL
    return full or str(error) in ("Event loop is closed", "handle is closed") or inspect.iscoroutine(source)


def _end(code: int, line: str) -> int:
    sys.stdout.flush()
    print("tvjax: " + " ".join(line.split()), file=sys.stderr, flush=True)
    if code == 3:
        os.sync()
    processes.leave(code)
    return code
