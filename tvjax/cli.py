"""The door of the command line: flags are read here, and every way to end has its exit code and one line."""

import errno
import itertools
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tvjax.errors import RunError, UserError, reject

MODES = ("train", "eval", "report")
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def read_flags(argv: list[str]) -> tuple[dict[str, Any], str, str, str]:
    """The config as plain values, its name, the workdir ("" where none is given) and the mode.

    Raises `UserError` for a flag, a config file, an argument of it or a field that is wrong.
    """
    from absl import flags
    from ml_collections import config_flags

    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "what to run", flag_values=values)
    flags.DEFINE_string("workdir", "", "the run directory", flag_values=values)
    flags.DEFINE_string("mode", "train", "what to do", flag_values=values)
    source = _config_source(argv)
    try:
        rest = values(argv)
    except UserError:
        raise
    except SyntaxError as error:
        raise UserError(f"{error.filename}:{error.lineno}: not Python ({error.msg}); accepted: a config file") from None
    except Exception as error:
        raise UserError(_explain(error, argv)) from None
    if len(rest) > 1:
        raise reject("command line", rest[1], "flags only: --config, --config.FIELD, --workdir, --mode")
    if values.mode not in MODES:
        raise reject("--mode", values.mode, ", ".join(MODES))
    name = re.sub(r"[^\w.-]+", "-", "-".join([Path(source[0]).stem, *source[1:]]))
    return values.config.to_dict(), name, values.workdir, values.mode


def _config_source(argv: list[str]) -> list[str]:
    """The config's file and, where there is one, its argument; the file is known to be there."""
    given = [a.split("=", 1)[1] for a in argv if re.match(r"--?config=", a)]
    given += [b for a, b in itertools.pairwise(argv) if a in ("--config", "-config")]
    if not given:
        raise reject("--config", None, "a config file, e.g. --config=configs/tvp_synthetic.py")
    source = given[-1].split(":", 1)
    if not Path(source[0]).is_file():
        raise reject("--config", source[0], "a config file that exists, e.g. configs/tvp_synthetic.py")
    return source


def _explain(error: Exception, argv: list[str]) -> str:
    """One line for what the flag parser, or the config file itself, raised."""
    text = " ".join(str(error).split())
    field = re.search(r"config\.[\w.\[\]]+", text) or re.search(r"--?(config\.[\w.]+)", " ".join(argv))
    where = "" if text.startswith("config.") or field is None else f"{field.group(0).lstrip('-')}: "
    return f"{where}{text or type(error).__name__}"


def exit_cleanly(main: Callable[[list[str]], None], argv: list[str]) -> int:
    """Run `main` and turn the ways it may end into an exit code, with one line on stderr where something is wrong."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
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
    return 0


def _end(code: int, line: str) -> int:
    sys.stdout.flush()
    print("tvjax: " + " ".join(line.split()), file=sys.stderr, flush=True)
    if code == 3:
        os.sync()
    return code
