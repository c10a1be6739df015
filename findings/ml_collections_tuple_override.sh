#!/usr/bin/env bash
# ml_collections 1.1.0, absl-py 2.3.1: a command line sets one value for a config field that is a tuple of several.
#
# A guess: refused, since the length differs, or since "a" is no float; fields that are numbers and lists are checked.
# What happens: the field becomes a tuple of that one value, of any length and any type. --config.rates=a makes ('a',)
# of (0.0, 1.0); --config.steps=2.5 makes (2.5,) of (100, 200), though an int field refuses 2.5. A sweep over two members
# trains one setting twice if the program spreads one entry over both.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/env"
"$place/env/bin/pip" install --quiet --disable-pip-version-check ml_collections==1.1.0 absl-py==2.3.1
"$place/env/bin/python" - <<'PYTHON'
from absl import flags
from ml_collections import ConfigDict, config_flags


def read(override):
    """The config after one override, or the name of the error."""
    config = ConfigDict({"rates": (0.0, 1.0), "steps": (100, 200), "count": 3})
    values, argv = flags.FlagValues(), ["program", override]
    config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
    try:
        values(argv)
    except flags.IllegalFlagValueError as error:
        return type(error).__name__
    return values.config.to_dict()


for override, expected in {
    "--config.rates=0.5": ("rates", (0.5,)),
    "--config.rates=a": ("rates", ("a",)),
    "--config.steps=2.5": ("steps", (2.5,)),
    "--config.steps=True": ("steps", (True,)),
    "--config.count=2.5": "IllegalFlagValueError",
}.items():
    seen = read(override)
    print(f"{override}: {seen}")
    assert (seen if isinstance(expected, str) else (expected[0], seen[expected[0]])) == expected
PYTHON
