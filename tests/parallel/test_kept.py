"""What one process compiled the next one reads, from a place that the user can choose or refuse."""

import os
import subprocess
import sys

import jax
import pytest

from tvjax.parallel import kept

COMPILES = """
import jax
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.jit(lambda x: x * 3)(1.0)  # before there is a place
from tvjax.parallel.kept import keep_programs
keep_programs()
events = []
jax.monitoring.register_event_listener(lambda name, **_: events.append(name))
jax.jit(lambda x: x + 41)(1.0)
print(jax.config.jax_compilation_cache_dir, "/jax/compilation_cache/cache_hits" in events)
"""


def start(tmp_path, **environment):
    """Where a process keeps programs, and whether it found its own there."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_COMPILATION", "XDG_", "XLA_"))}
    environ |= {"HOME": str(tmp_path), **environment}
    done = subprocess.run([sys.executable, "-c", COMPILES], capture_output=True, text=True, env=environ, timeout=120)
    assert done.returncode == 0, done.stderr
    folder, found = done.stdout.split()
    return folder, found == "True"


def test_the_second_process_finds_what_the_first_compiled(tmp_path):
    folder, found = start(tmp_path)
    assert folder.startswith(f"{tmp_path}/.cache/tvjax/programs-") and not found
    assert os.stat(folder).st_mode & 0o077 == 0, "whoever may write there may run what he likes here"
    assert start(tmp_path) == (folder, True)
    assert start(tmp_path, XDG_CACHE_HOME=f"{tmp_path}/x")[0].startswith(f"{tmp_path}/x/tvjax/programs-")


@pytest.mark.parametrize(
    ("name", "value", "place"),
    [
        ("JAX_COMPILATION_CACHE_DIR", "/tmp/chosen", "/tmp/chosen"),
        ("JAX_ENABLE_COMPILATION_CACHE", "false", "None"),
        ("XDG_CACHE_HOME", "/proc/none", "None"),
        ("XDG_CACHE_HOME", "~nobody-of-this-name", "None"),
    ],
)
def test_the_user_decides(tmp_path, name, value, place):
    value, place = (text.replace("/tmp", str(tmp_path)) for text in (value, place))
    assert start(tmp_path, **{name: value}) == (place, False)
    assert not (tmp_path / ".cache").exists()


def test_the_oldest_go_first(tmp_path):
    for age in range(4):
        (tmp_path / str(age)).write_bytes(bytes(100))
        os.utime(tmp_path / str(age), (10**9 - age, 10**9 - age))
    kept._shrink(tmp_path, 250)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["0", "1"]


def test_a_place_that_is_known_stays(monkeypatch):
    before = jax.config.jax_compilation_cache_dir
    assert before, "the tests set one"
    kept.keep_programs()
    assert jax.config.jax_compilation_cache_dir == before
