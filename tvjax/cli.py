"""The door of the command line: flags are read here, and every way to end has its exit code and one line."""

import dataclasses
import errno
import inspect
import os
import re
import signal
import sys
import threading
import traceback
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tvjax.errors import RunError, UserError, reject
from tvjax.files import read_json
from tvjax.parallel import processes

MODES = ("train", "eval", "report", "plan")
FLAGS = (
    "flags only: --config=FILE[:ARG], --config.FIELD=VALUE, --workdir=DIR, --profile=FIRST:LAST, --mode="
    + "|".join(MODES)
)
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def read_flags(argv: list[str]) -> tuple[dict[str, Any], str, str, str]:
    """The config as plain values, its name, the workdir ("" where none is given) and the mode.

    To plan, it has a group `plan` more, which is no part of a run.

    Raises `UserError` for a flag, a config file, an argument of it or a field that is wrong.
    """
    from absl import flags
    from ml_collections import ConfigDict, config_flags

    source, others = _split_config(argv)
    config = _load(*source) if source else _config_of_run(others)
    if re.search(r"(^| )--?mode[= ]plan( |$)", " ".join(others)):
        from tvjax.experiments.planned import PlanConfig

        with config.unlocked():
            config.plan = ConfigDict(dataclasses.asdict(PlanConfig()))
    _check_fields(others, config)
    values = flags.FlagValues()
    config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=others)
    flags.DEFINE_string("workdir", "", "the run directory", flag_values=values)
    flags.DEFINE_string("mode", "train", "what to do", flag_values=values)
    try:
        rest = values(others)
    except flags.UnrecognizedFlagError as error:
        raise reject(f"--{error.flagname}", error.flagvalue.partition("=")[2], FLAGS) from None
    except Exception as error:
        raise _misfit(error, config) from None
    if len(rest) > 1:
        raise reject("command line", rest[1], FLAGS)
    if values.mode not in MODES:
        raise reject("--mode", values.mode, ", ".join(MODES))
    name = "-".join([Path(source[0]).stem, *source[1:]]) if source else Path(values.workdir).name
    name = re.sub(r"[^\w.-]+", "-", name)
    return values.config.to_dict(), name, values.workdir, values.mode


def read_profile(argv: list[str]) -> tuple[list[str], tuple[int, int] | None]:
    """The command line without ``--profile=FIRST:LAST``, and those two steps. Raises `UserError` for other values."""
    given = [word for word in argv if re.match(r"--?profile(=|$)", word)]
    if not given:
        return argv, None
    value = given[-1].partition("=")[2]
    steps = re.fullmatch(r"(\d+):(\d+)", value)
    if steps is None or not 1 <= int(steps[1]) <= int(steps[2]):
        raise reject("--profile", value, "FIRST:LAST, two steps in this order, the first of training being 1")
    return [word for word in argv if word not in given], (int(steps[1]), int(steps[2]))


def _split_config(argv: list[str]) -> tuple[list[str], list[str]]:
    """The config's file and, where there is one, its argument; and the rest of the command line."""
    given, others = None, []
    words = iter(argv)
    for word in words:
        if word in ("--config", "-config"):
            given = next(words, None)
        elif re.match(r"--?config=", word):
            given = word.split("=", 1)[1]
        else:
            others.append(word)
    return given.split(":", 1) if given else [], others


def _config_of_run(words: list[str]) -> Any:
    """The config of the run in --workdir: it need not be named again. Raises `UserError` where there is none."""
    from etils import epath
    from ml_collections import ConfigDict

    folders = [word.split("=", 1)[1] for word in words if re.match(r"--?workdir=", word)]
    path = epath.Path(folders[-1]) / "config.json" if folders else None
    if path is None or not path.exists():
        raise reject(
            "--config", None, "a config file, e.g. --config=configs/tvp_synthetic.py, or the --workdir of a run"
        )
    return ConfigDict(read_json(path, "accepted: the workdir of a run"))


def _load(path: str, *argument: str) -> Any:
    """What the file's `get_config` makes. Raises `UserError` where it is missing, fails or makes another thing."""
    from ml_collections import ConfigDict

    if not Path(path).is_file():
        raise reject("--config", path, "a config file that exists, e.g. configs/tvp_synthetic.py")
    module = types.ModuleType("tvjax_config")
    module.__file__ = path
    accepted = "a Python file with get_config(), which takes the argument after ':' and makes a ConfigDict"
    try:
        exec(compile(Path(path).read_bytes(), path, "exec"), vars(module))
        config = module.get_config(*argument)
    except UserError:
        raise
    except SyntaxError as error:
        place = f"{error.filename or path}:{error.lineno or 1}"
        raise UserError(f"{place}: not Python ({error.msg}); accepted: {accepted}") from None
    except (Exception, SystemExit) as error:
        raise UserError(f"{path}: it raised {type(error).__name__} ({error}); accepted: {accepted}") from None
    if not isinstance(config, ConfigDict):
        raise UserError(f"{path}: get_config() made a {type(config).__name__}; accepted: {accepted}")
    return config


def _check_fields(words: list[str], config: Any) -> None:
    """Raise `UserError` for the first ``--config.FIELD`` that the config does not have, with those that it has."""
    for word in words:
        override = re.match(r"--?config\.([\w.]+)(.*)", word)
        if override is None:
            continue
        group, place = config, "config"
        for name in override.group(1).split("."):
            if not hasattr(group, "keys") or name not in group:
                fields = f"the fields of {place} are {', '.join(group)}" if hasattr(group, "keys") else "it is no group"
                raise reject(f"{place}.{name}", override.group(2).removeprefix("="), f"no such field; {fields}")
            group, place = group[name], f"{place}.{name}"


def _misfit(error: Exception, config: Any) -> UserError:
    """The line for a value that the flag parser refused."""
    text = " ".join(str(error).split())
    refused = re.match(r"flag --config\.([\w.]+)=(.*?): ", text)
    if refused is None:
        return UserError(f"command line: {text or type(error).__name__}; accepted: {FLAGS}")
    field, value = refused.groups()
    for name in field.split("."):
        config = config[name]
    is_group = hasattr(config, "keys")
    accepted = "no value: it is a group of fields" if is_group else f"a value of type {type(config).__name__}"
    return reject(f"config.{field}", value, accepted)


def exit_cleanly(main: Callable[[list[str]], None], argv: list[str]) -> int:
    """Run `main` and turn the ways it may end into an exit code, with one line on stderr where something is wrong."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    sys.unraisablehook = lambda echo: None if _is_echo(echo) else sys.__unraisablehook__(echo)
    threading.excepthook = lambda echo: None if _is_echo(echo) else threading.__excepthook__(echo)
    warnings.filterwarnings("ignore", r"coroutine .* was never awaited")
    try:
        main(argv)
    except (UserError, RunError) as error:
        return _end(error.exit_code, str(error))
    except KeyboardInterrupt:
        return _end(130, "interrupted; the same command with this --workdir goes on from the last checkpoint")
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        place = f" at {error.filename}" if error.filename else ""
        return _end(
            3, f"the disk is full{place}; checkpoints are kept; free some space and start the same command again"
        )
    except Exception as error:
        if processes.is_loss(error):
            what = str(error).strip().splitlines()[0][:160]
            return _end(processes.LOST, f"process {processes.index()}: another one was lost ({what})")
        if processes.count() > 1:  # at a usual end jax would wait for the others, which wait for this one
            traceback.print_exc()
            processes.leave(1)
        raise
    return 0


def _is_echo(report: Any) -> bool:
    """Whether what nobody could catch comes of a failed save or restore, or of a full disk: one line says that already.

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
