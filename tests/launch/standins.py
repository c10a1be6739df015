"""What the launchers call, played: each stand-in records what it was asked, and does the least that it must.

Run as ``standins.py TOOL ARGUMENTS`` in the place of TOOL. $STANDINS is the folder of a test: calls.jsonl is what was
asked, play.json what shall happen: `node` and `request`, the states that gcloud tells, and `ends`, one a start: an exit
code, "preempted", "until stopped", or "one hangs" (the second worker; the first sees it and ends).
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(os.environ["STANDINS"])
WORKERS = 2


def play(**changes):
    """What shall happen from now on."""
    known = json.loads((HERE / "play.json").read_text()) | changes
    (HERE / "play.json").write_text(json.dumps(known))
    return known


def next_end():
    """How the start that is made now ends: the last of `ends` ends all that come after it."""
    ends = play()["ends"]
    if len(ends) > 1:
        play(ends=ends[1:])
    return ends[0]


def value(argv, flag):
    return next((word.split("=", 1)[1] for word in argv if word.startswith(f"{flag}=")), None)


def on_workers(argv):
    """Run the command on every worker, in its own home, as ssh would; a run ends as it was to end."""
    command, logs = value(argv, "--command"), value(argv, "--output-directory")
    end = next_end() if "tpu_worker.sh run" in command else 0
    processes = []
    for number in range(WORKERS):
        home = HERE / f"worker{number}"
        home.mkdir(exist_ok=True)
        out = os.open(f"{logs}/{number}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC) if logs else None
        environment = os.environ | {"HOME": str(home), "WORKER": str(number), "END": str(end)}
        processes.append(subprocess.Popen(["bash", "-c", command], cwd=home, env=environment, stdout=out, stderr=out))
    codes = [process.wait() for process in processes]
    if end == "preempted":
        play(node="PREEMPTED", request="SUSPENDED")
        return 255
    return next((code for code in codes if code), 0)


def gcloud(argv):
    assert argv[:2] == ["compute", "tpus"], argv
    known = play()
    match argv[2:4]:
        case ["tpu-vm", "describe"]:
            print(known["node"])
            return 0 if known["node"] else 1
        case ["queued-resources", "describe"]:
            print(known["request"])
            return 0 if known["request"] else 1
        case ["queued-resources", "create"]:
            if known.get("no_slice"):
                print("quota exceeded", file=sys.stderr)
                return 1
            made = known.get("becomes", "ACTIVE")
            play(node="READY" if made == "ACTIVE" else "", request=made)
        case [_, "delete"]:
            play(node="", request="")
        case ["tpu-vm", "start"]:
            play(node="READY")
        case ["tpu-vm", "scp"]:
            for number in range(WORKERS):
                home = HERE / f"worker{number}"
                home.mkdir(exist_ok=True)
                source, place = [word for word in argv[4:] if not word.startswith("-")]
                (home / place.split(":")[1]).write_bytes(Path(source).read_bytes())
        case ["tpu-vm", "ssh"]:
            return on_workers(argv)
        case other:
            raise AssertionError(other)
    return 0


def python3(argv):
    """The Python of a worker's image, which makes one of its own by uv; and that one, which runs the main job."""
    if argv[:3] == ["-m", "uv", "venv"]:
        own = Path(argv[-1]) / "bin" / "python"
        own.parent.mkdir(parents=True)
        own.write_text(f'#!/bin/sh\nexec "{sys.executable}" -IS "{__file__}" python3 "$@"\n')
        own.chmod(0o755)
    if argv[:2] != ["-m", "tvjax.main"]:
        return 0
    return main()


def main():
    end = os.environ.get("END") or str(next_end())
    print(f"worker {os.environ.get('WORKER')} says this", flush=True)
    if end == "until stopped":
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))
        (HERE / f"running{os.environ.get('WORKER')}").write_text(str(os.getpid()))
        time.sleep(60)
    if end == "one hangs":
        if os.environ["WORKER"] == "1":
            os.kill(os.getpid(), signal.SIGSTOP)
        return 75
    return 1 if end == "preempted" else int(end)


def srun(argv):
    """The step of a Slurm job: until it is stopped, by scancel, or with its exit code."""
    end = next_end()
    if end != "until stopped":
        return int(end)
    (HERE / "step").touch()
    while (HERE / "step").exists():
        time.sleep(0.05)
    return 143


def scancel(argv):
    """A step that measures what it trained does not hear SIGTERM."""
    if not (play().get("deaf") and "--signal=TERM" in argv):
        (HERE / "step").unlink()
    return 0


def scontrol(argv):
    return 0


if __name__ == "__main__":
    tool, argv = sys.argv[1], sys.argv[2:]
    record = {"tool": tool, "argv": argv, "worker": os.environ.get("WORKER"), "cwd": os.getcwd()}
    record["processes"] = os.environ.get("TVJAX_PROCESSES")
    with (HERE / "calls.jsonl").open("a") as calls:
        calls.write(json.dumps(record) + "\n")
    sys.exit({f.__name__: f for f in (gcloud, python3, srun, scancel, scontrol)}[tool](argv))
