"""Train, evaluate and report an experiment: python -m tvjax.main --config=configs/NAME.py[:ARG] [options]

  --config=FILE[:ARG]      what to run, e.g. configs/tvp_synthetic.py or configs/tvp_synthetic.py:sinusoid
                           (may be left out where --workdir holds a run: it is that of the run)
  --config.FIELD=VALUE     change one field, e.g. --config.train.steps=200 or --config.population.seed="(0,1)"
  --workdir=DIR            the run directory; what it holds is gone on with (default: a new one, runs/NAME-DATE)
  --mode=train|eval|report train, evaluate and report; or only from the second, or the third, on (default: train)
  --mode=plan              compile for --config.plan.devices=N of --config.plan.hardware=NAME and say what it would take

Exit codes: 0 done; 2 the input is wrong; 3 the run cannot go on; 143 stopped by SIGTERM, with a checkpoint saved.
"""

import json
import sys
import time
from pathlib import Path

from tvjax.cli import exit_cleanly, read_flags


def main(argv: list[str]) -> None:
    """Do what the command line asks for. Raises `UserError`, `RunError`, or SystemExit with the exit code."""
    if "--help" in argv or "-h" in argv:
        print(__doc__.strip())
        return
    config, name, workdir, mode = read_flags(argv)
    folder = Path(workdir or f"runs/{name}-{time.strftime('%Y%m%d-%H%M%S')}")
    print(f"{mode}: {name} in {folder}", flush=True)
    if mode == "plan":
        from tvjax.experiments.planned import plan

        plan(config, folder)
        return
    if mode != "report":
        from tvjax.experiments import EXPERIMENTS, experiment_of

        EXPERIMENTS[experiment_of(config)](config, folder, mode)
    from tvjax.report import summary_table, write_report

    page = write_report(folder)
    print(summary_table(json.loads((folder / "eval" / "summary.json").read_text())))
    print(f"report: {page}")


if __name__ == "__main__":
    sys.exit(exit_cleanly(main, sys.argv))
