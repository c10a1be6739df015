"""Train, evaluate and report an experiment: python -m tvjax.main --config=configs/NAME.py[:ARG] [options]

  --config=FILE[:ARG]      what to run, e.g. configs/tvp_synthetic.py or configs/tvp_synthetic.py:sinusoid
                           (may be left out if --workdir holds a run: it is that of the run)
  --config.FIELD=VALUE     change one field, e.g. --config.train.steps=200 or --config.population.seed="(0,1)"
  --sweep.FIELD=V,V,..     run all combinations of these values of fields (0:4 is 0,1,2,3), one flag a field; or all
                           in one: --sweep="tvp_weight=0,0.3,1 prescribed_layer=1,2,3 seed=0:4 model.width=32,64"
  --workdir=DIR            the run directory; what it holds is gone on with (default: a new one, runs/NAME-DATE);
                           gs://BUCKET/RUN is one too, and ~/DIR one in the home folder
  --mode=train|eval|report train, evaluate and report; or only from the second, or the third, on (default: train)
  --mode=plan              compile for --config.plan.devices=N of --config.plan.hardware=NAME and say what it would take
  --plugins=MODULE,..      modules of your own, which register methods, task families or experiments (CONTRIBUTING.md)
  --profile=FIRST:LAST     trace the dispatches that hold these steps of training, into profile/ of the run directory

Exit codes: 0 done; 2 the input is wrong; 3 the run cannot go on; 143 stopped by SIGTERM, with a checkpoint saved.
"""

import json
import re
import sys
import time
from pathlib import Path
from typing import Any

from tvjax import remote
from tvjax.cli import exit_cleanly, read_flags, read_profile
from tvjax.errors import RunError, reject
from tvjax.parallel import processes


def main(argv: list[str]) -> None:
    """Run the command line. Raises `UserError`, `RunError`, or SystemExit with the exit code."""
    if any(re.fullmatch("-h|--?help(=.*)?", word) for word in argv[1:]):
        print(__doc__.strip())
        return
    argv, steps = read_profile(argv)
    config, name, workdir, mode = read_flags(argv)
    if steps and mode != "train":
        raise reject("--mode", mode, "train, with --profile: there are no steps elsewhere")
    _join(mode, workdir)
    workdir = workdir or f"runs/{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    print(f"{mode}: {name} in {workdir}", flush=True)
    folder = remote.here(workdir)
    if mode == "plan":
        from tvjax.experiments.planned import plan

        plan(config, folder)
    elif mode != "report":
        _run(config, folder, mode, steps)
    if mode != "plan" and processes.first():
        _report(folder)
    remote.push(folder)


def _join(mode: str, workdir: str) -> None:
    """Start jax if it is needed, and join the job of several processes. Raises `UserError` if that fails."""
    if mode != "report":
        processes.start()
    processes.join()
    if mode in ("train", "eval"):
        processes.check_devices()
    if processes.count() > 1 and not workdir:
        raise reject("--workdir", workdir, "a folder: the processes share it, and go on with what it holds")


def _run(config: dict[str, Any], folder: Path, mode: str, steps: tuple[int, int] | None) -> None:
    """Train or evaluate.

    steps: the first and the last step that are traced.
    """
    from tvjax.experiments import experiment_of
    from tvjax.train.profile import Trace, tracing

    experiment = experiment_of(config)
    experiment.settings(config)
    try:
        with tracing(Trace(*steps, folder / "profile") if steps else None):
            experiment.run(config, folder, mode)
    except (RunError, SystemExit):
        remote.push(folder)
        raise


def _report(folder: Path) -> None:
    """Write the page, print the table."""
    from tvjax.experiments.pages import summary_table, write_report

    page = write_report(folder)
    print(summary_table(json.loads((folder / "eval" / "summary.json").read_text())))
    print(f"report: {page}")


if __name__ == "__main__":
    sys.exit(exit_cleanly(main, sys.argv))
