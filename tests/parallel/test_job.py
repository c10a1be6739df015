"""What the environment says of a job, or of jax, is checked before anything starts."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tvjax.errors import UserError
from tvjax.parallel import processes

WHOLE = {"TVJAX_PROCESSES": "2", "TVJAX_PROCESS_ID": "0", "TVJAX_COORDINATOR": "localhost:1234"}
WRONG = [
    *(("TVJAX_PROCESSES", value) for value in ("", "two", "0", "-1", "1.5", "9" * 30, "\u0662")),
    *(("TVJAX_PROCESS_ID", value) for value in ("", "x", "-1", "2", "9" * 30)),
    *(
        ("TVJAX_COORDINATOR", value)
        for value in (
            "",
            "localhost",
            "localhost:",
            ":80",
            "localhost:x",
            "localhost:0",
            "a:65536",
            "http://a:80",
            "a b:80",
        )
    ),
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_part_of_a_job_that_is_wrong_is_named(name, value, monkeypatch):
    for other, usual in WHOLE.items():
        monkeypatch.setenv(other, usual)
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as caught:
        processes.join()
    line = str(caught.value)
    assert line.startswith(f"{name}: given {value!r}; accepted: ") and "\n" not in line


@pytest.mark.parametrize("name", WHOLE)
def test_a_part_of_a_job_that_is_missing_is_named(name, monkeypatch):
    for other, usual in WHOLE.items():
        monkeypatch.setenv(other, usual)
    monkeypatch.delenv(name)
    with pytest.raises(UserError, match=f"^{name}: given ''"):
        processes.join()


@pytest.mark.parametrize("address", ["localhost:1234", "10.0.0.1:1", "[::1]:65535", "a-b.c_d:8476"])
def test_a_whole_job_is_read(address, monkeypatch):
    for name, value in (WHOLE | {"TVJAX_COORDINATOR": address}).items():
        monkeypatch.setenv(name, value)
    assert processes._job() == {"num_processes": 2, "process_id": 0, "coordinator_address": address}


def test_no_job_is_none(monkeypatch):
    for name in WHOLE:
        monkeypatch.delenv(name, raising=False)
    processes.join()
    assert processes.count() == 1


def test_a_launcher_that_names_half_a_job_is_one_line(monkeypatch):
    import jax

    def refuse(**job):
        raise KeyError("SLURM_NTASKS")

    monkeypatch.setenv("TVJAX_PROCESSES", "auto")
    monkeypatch.setattr(jax.distributed, "initialize", refuse)
    monkeypatch.setattr(jax.config, "update", lambda name, value: None)
    with pytest.raises(UserError, match=r"^TVJAX_PROCESSES=auto: 'SLURM_NTASKS'; accepted: auto where"):
        processes.join()


@pytest.mark.parametrize("error", [RuntimeError("Unable to initialize backend 'none'"), AssertionError()])
def test_a_platform_that_is_not_here_is_named(error, monkeypatch):
    import jax

    def refuse():
        raise error

    monkeypatch.setattr(jax, "devices", refuse)
    monkeypatch.setenv("JAX_PLATFORMS", "none")
    with pytest.raises(UserError, match=r"^JAX_PLATFORMS=none.*: jax has no such device here"):
        processes.check_devices()


def test_a_device_that_is_busy_is_not_the_users_fault(monkeypatch):
    import jax

    def refuse():
        raise RuntimeError("Unable to initialize backend 'tpu': UNAVAILABLE: TPU backend setup error")

    monkeypatch.setattr(jax, "devices", refuse)
    with pytest.raises(RuntimeError, match="UNAVAILABLE"):
        processes.check_devices()


def test_a_variable_that_jax_refuses_is_one_line():
    repository = Path(__file__).parents[2]
    command = [sys.executable, "-m", "tvjax.main", "--config=configs/tvp_synthetic.py", "--workdir=/dev/null"]
    environment = os.environ | {"PYTHONPATH": str(repository), "JAX_NUM_CPU_DEVICES": "abc"}
    done = subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("tvjax: jax does not start") and done.stderr.count("\n") == 1
    assert "jax_num_cpu_devices" in done.stderr
