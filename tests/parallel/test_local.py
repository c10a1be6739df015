"""The launcher of several processes on this machine, against programs that end in every way; none of them needs jax."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.runs import REPOSITORY

LAUNCH = """
import sys
from tvjax.errors import RunError
from tvjax.parallel import local
local.ENDING_SECONDS = 1.0
local.STOPPING_SECONDS = 3.0
try:
    code = local.run([sys.executable, "-c", sys.argv[1]], int(sys.argv[2]), devices=2, restarts=2)
except RunError as error:
    print(error, file=sys.stderr)
    code = error.exit_code
sys.exit(code)
"""
PROGRAM = """
import os, signal, sys, time
from pathlib import Path
me = int(os.environ["TVJAX_PROCESS_ID"])
began = sum(1 for _ in Path(".").glob(f"began-{me}-*"))
Path(f"began-{me}-{began}").touch()
def others_began():
    while not all(Path(f"began-{i}-{began}").exists() for i in range(3)):
        time.sleep(0.01)
"""
NOW = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"


def start(folder: Path, program: str, count: int = 3, **environment: str) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)} | environment
    command = [sys.executable, "-c", LAUNCH, PROGRAM + program, str(count)]
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(folder: Path, program: str, **options: Any) -> tuple[int, str, str]:
    process = start(folder, program, **options)
    stdout, stderr = process.communicate(timeout=120)
    return process.returncode, stdout, stderr


def test_every_process_is_told_the_job_and_only_the_first_is_heard(tmp_path):
    told = "print(*(os.environ[n] for n in ('TVJAX_PROCESSES', 'TVJAX_PROCESS_ID', 'JAX_NUM_CPU_DEVICES')))\n"
    told += "Path(f'told-{me}').write_text(os.environ['TVJAX_COORDINATOR'])"
    assert finish(tmp_path, told) == (0, "3 0 2\n", "")
    assert len({(tmp_path / f"told-{i}").read_text() for i in range(3)}) == 1


def test_wrong_input_is_said_once_and_the_job_is_not_started_again(tmp_path):
    all_alike = "print('tvjax: config.x: given 1', file=sys.stderr); sys.exit(2)"
    assert finish(tmp_path, all_alike) == (2, "", "tvjax: config.x: given 1\n")


def test_what_only_another_process_found_wrong_is_said(tmp_path):
    one = "others_began()\nif me == 2: print('tvjax: no file', file=sys.stderr); sys.exit(2)\ntime.sleep(60)"
    assert finish(tmp_path, one) == (2, "", "tvjax: no file\n")
    assert not (tmp_path / "began-0-1").exists()


def test_a_bug_keeps_its_traceback_and_the_job_is_not_started_again(tmp_path):
    code, _, stderr = finish(tmp_path, "others_began()\nif me == 1: 1 / 0\ntime.sleep(60)")
    assert code == 1
    assert "ZeroDivisionError" in stderr
    assert re.search(rf"tvjax: process 1 of 3 ended with code 1 at {NOW}; not started again", stderr)


KILLED = """
others_began()
if began < TIMES and me == 2:
    os.kill(os.getpid(), signal.SIGKILL)
if began < TIMES:
    time.sleep(60)
"""


def test_a_killed_process_ends_the_job_which_starts_again(tmp_path):
    begun = time.monotonic()
    code, _, stderr = finish(tmp_path, KILLED.replace("TIMES", "1"))
    assert code == 0
    assert time.monotonic() - begun < 30
    assert re.fullmatch(rf"tvjax: process 2 of 3 was ended by SIGKILL at {NOW}; starting again \(1 of 2\)\n", stderr)


def test_a_job_that_is_lost_again_and_again_is_given_up(tmp_path):
    code, _, stderr = finish(tmp_path, KILLED.replace("TIMES", "9"))
    assert code == 3
    assert "starting again (2 of 2)" in stderr
    assert "lost 3 times" in stderr and "the same command goes on" in stderr
    assert not (tmp_path / "began-0-3").exists()


@pytest.mark.parametrize("end", ["os.abort()", "sys.exit(75)"], ids=["by the runtime", "by itself"])
def test_a_process_that_hangs_is_named_by_the_others_end(tmp_path, end):
    hung = f"""
others_began()
if began == 0 and me == 1:
    os.kill(os.getpid(), signal.SIGSTOP)
if began == 0:
    print("F1127 06:07:58.674629   18972 client.h:80] Terminating process because the JAX distributed service "
          "detected fatal errors.", file=sys.stderr, flush=True)
    print("    @     0x7fbfa9eb906f  tsl::PThread::ThreadFn()", file=sys.stderr, flush=True)
    {end}
"""
    code, _, stderr = finish(tmp_path, hung)
    assert code == 0
    assert re.fullmatch(
        rf"tvjax: process 1 of 3 stopped answering, noticed at {NOW}; starting again \(1 of 2\)\n", stderr
    )


def test_a_process_that_aborts_by_itself_is_not_taken_for_one_that_lost_another(tmp_path):
    """A failed check of XLA, or of the allocator, ends it with SIGABRT too."""
    aborts = "others_began()\nif began == 0 and me == 1: os.abort()\nif began == 0: time.sleep(60)"
    code, _, stderr = finish(tmp_path, aborts)
    assert code == 0
    assert re.search(rf"tvjax: process 1 of 3 was ended by SIGABRT at {NOW}; starting again \(1 of 2\)\n", stderr)


def test_a_host_of_a_larger_job_starts_its_process_again_and_says_who_was_lost(tmp_path):
    """As jax's runtime ends a process whose job has lost another; the job's variables are the user's."""
    ended = """
print(os.environ["TVJAX_PROCESSES"], os.environ["TVJAX_PROCESS_ID"], flush=True)
if began == 0:
    print("F1127 06:07:58.674629   18972 client.h:80] Terminating process because the JAX distributed service detected "
          "fatal errors. UNAVAILABLE: The following tasks are unhealthy (stopped sending heartbeats):", file=sys.stderr)
    print("2\\nThe tasks have crashed.", file=sys.stderr, flush=True)
    os.abort()
"""
    code, stdout, stderr = finish(tmp_path, ended, count=1, TVJAX_PROCESSES="auto", TVJAX_PROCESS_ID="7")
    assert (code, stdout) == (0, "auto 7\nauto 7\n")
    assert re.search(
        rf"tvjax: process 2 of the job was lost, noticed here at {NOW}; starting again \(1 of 2\)\n", stderr
    )


def stopped(tmp_path: Path, program: str) -> tuple[int, str]:
    process = start(tmp_path, program)
    while not all((tmp_path / f"ready-{i}").exists() for i in range(3)):
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=60)
    return process.returncode, stderr


def test_sigterm_reaches_all_which_end_by_themselves(tmp_path):
    saves = """
def save(number, frame):
    time.sleep(0.3 * me)
    Path(f"saved-{me}").touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
Path(f"ready-{me}").touch()
time.sleep(60)
"""
    assert stopped(tmp_path, saves) == (143, "")
    assert all((tmp_path / f"saved-{i}").exists() for i in range(3))


def test_a_job_that_does_not_answer_to_sigterm_is_ended(tmp_path):
    deaf = "signal.signal(signal.SIGTERM, signal.SIG_IGN); Path(f'ready-{me}').touch(); time.sleep(60)"
    code, stderr = stopped(tmp_path, deaf)
    assert code == 143
    assert "no answer to SIGTERM" in stderr


@pytest.mark.parametrize(
    ("words", "environment", "said"),
    [
        (["4"], {}, "command line: given '4'; accepted: N -- ARGUMENTS"),
        (["no", "--"], {}, "accepted: N -- ARGUMENTS"),
        (["2", "--"], {"RESTARTS": "-1"}, "RESTARTS: given '-1'; accepted: a number, 0 or more"),
        (["2", "--"], {"DEVICES_PER_PROCESS": "0"}, "DEVICES_PER_PROCESS: given '0'"),
    ],
)
def test_bad_input_is_one_line(words, environment, said):
    command = [sys.executable, "-m", "tvjax.parallel.local", *words]
    done = subprocess.run(command, cwd=REPOSITORY, env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and said in done.stderr
