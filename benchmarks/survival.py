"""Runs of several processes that are killed and start again by themselves: what is lost, and what comes out.

    python benchmarks/survival.py --kills=20 --kills-a-run=5 --processes=2

One run is left alone; the others are launched alike (tvjax/parallel/local.py), and a random one of their processes
gets SIGKILL at random moments, from its first second to the end of the evaluation. Prints each kill, then one JSON
object: how many steps a kill cost at most (logged, and in no whole checkpoint), and whether every run ended with the
summary, the log and the exit code of the first; 1 is its exit code where one did not.
"""

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "tvp_synthetic.py"
INTERVAL = 20
TINY = {
    "model.num_layers": 2,
    "model.width": 8,
    "prompt.demonstrations": 2,
    "population.prescribed_layer": (1,),
    "train.batch": 8,
    "train.log_every": 5,
    "train.evaluate_every": 100,
    "train.checkpoint_every": INTERVAL,
    "train.tensorboard": False,
    "evaluation.training_prompts": 8,
    "evaluation.prompts": 8,
    "evaluation.shifts": False,
    "evaluation.probes": False,
    "optimizer.warmup_steps": 4,
}
LAUNCH = """
import sys
from tvjax.parallel import local
sys.exit(local.run([sys.executable, *sys.argv[3:]], count=int(sys.argv[1]), devices=1, restarts=int(sys.argv[2])))
"""


class Launched:
    """A run of several processes, launched; what it says is kept in `said`."""

    def __init__(self, folder: Path, processes: int, steps: int, restarts: int, cache: Path, toy: bool):
        self.folder, self.said = folder, []
        if toy:
            config = {"mesh": {"data": processes}, "steps": steps, "checkpoint_every": INTERVAL, "slow": 0.1}
            words = ["-m", "tests.parallel.toy", json.dumps(config), str(folder)]
        else:
            flags = {**TINY, "train.steps": steps, "mesh.data": processes}
            fields = [f"--config.{name}={value}" for name, value in flags.items()]
            words = ["-m", "tvjax.main", f"--config={CONFIG}", f"--workdir={folder}", *fields]
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-c", LAUNCH, str(processes), str(restarts), "-u", *words],
            cwd=Path(__file__).resolve().parents[1],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.begun = time.monotonic()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        for line in self.process.stdout:
            self.said.append(line)

    def workers(self) -> list[int]:
        """The process ids of its processes, by number."""
        found = subprocess.run(["pgrep", "-P", str(self.process.pid)], capture_output=True, text=True).stdout
        return sorted(map(int, found.split()))

    def logged(self) -> list[dict]:
        """The whole lines of its log, without the clock."""
        from tvjax.train.observe import WALL_CLOCK

        path = self.folder / "metrics.jsonl"
        rows = [line for line in path.read_text().splitlines() if line.endswith("}")] if path.exists() else []
        return [{k: v for k, v in json.loads(row).items() if k not in WALL_CLOCK} for row in rows]

    def resumed(self) -> list[int]:
        """After which steps it went on, each time."""
        return [int(step) for line in self.said for step in re.findall(r"resuming after step (\d+)", line)]

    def kill(self, luck: random.Random) -> tuple[int, int] | None:
        """SIGKILL to a random process: the last step in the log, and the last of a whole checkpoint; 0 where none is.

        As they are when all processes have ended, before those that are started again have begun to train. None where
        the run is over.
        """
        workers = self.workers()
        if not workers or self.process.poll() is not None:
            return None
        os.kill(luck.choice(workers), signal.SIGKILL)
        while self.process.poll() is None and set(self.workers()) & set(workers):
            time.sleep(0.05)
        whole = (int(path.name) for path in self.folder.glob("checkpoints/*") if path.name.isdigit())
        return max((row["step"] for row in self.logged()), default=0), max(whole, default=0)

    def result(self) -> tuple[int, bytes, list[dict]]:
        """Exit code, the bytes of the summary, and the log: what two runs are compared by."""
        code = self.process.wait()
        path = self.folder / "eval" / "summary.json"
        return code, path.read_bytes() if path.exists() else b"", self.logged()


def survive(args: argparse.Namespace, folder: Path) -> dict:
    """Kill runs until there were enough kills; the tally."""
    luck, cache = random.Random(args.seed), folder / "compiled"
    job = {"processes": args.processes, "steps": args.steps, "cache": cache, "toy": args.toy}
    for name in ("first", "whole"):  # the first compiles
        alone = Launched(folder / name, restarts=0, **job)
        expected = alone.result()
        seconds = time.monotonic() - alone.begun
    if expected[0]:
        sys.exit("".join(alone.said))
    print(f"a run left alone: {seconds:.0f} s", flush=True)
    runs, kills, lost, same = 0, 0, [0], True
    while kills < args.kills:
        runs += 1
        run = Launched(folder / f"run{runs}", restarts=args.kills, **job)
        for _ in range(min(args.kills_a_run, args.kills - kills)):
            time.sleep(luck.uniform(0.0, seconds))
            found = run.kill(luck)
            if found is None:
                break
            last, whole = found
            kills += 1
            lost.append(last - whole)
            print(f"run {runs}, kill {kills}: step {last} was logged, {whole} was whole", flush=True)
        ends = zip(("exit code", "summary", "log"), run.result(), expected, strict=True)
        other = [name for name, one, first in ends if one != first]
        if other:
            print("".join(run.said[-20:]), flush=True)
        same = same and not other
        said = f"NOT the same {', '.join(other)}" if other else "the same bits"
        print(f"run {runs}: {said}, went on after {run.resumed()}", flush=True)
    return {
        "runs": runs,
        "kills": kills,
        "steps_lost_at_most": max(lost),
        "checkpoint_interval": INTERVAL,
        "bit_identical": same,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--kills-a-run", type=int, default=5)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--toy", action="store_true", help="least squares (tests/parallel/toy.py) in place of TVP")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tvjax-survival-") as folder:
        tally = survive(args, Path(folder))
    print(json.dumps(tally))
    sys.exit(not tally["bit_identical"])


if __name__ == "__main__":
    main()
