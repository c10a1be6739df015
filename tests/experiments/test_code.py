"""A run knows its code: the commit, whether the code still is that, and what it differs by."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tvjax.experiments import code, rundir

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")


def git(folder: Path, *words: str) -> str:
    command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(folder), *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def package(tmp_path) -> Path:
    """A package in a repository of its own, with one commit."""
    found = tmp_path / "project" / "package"
    found.mkdir(parents=True)
    (found / "__init__.py").write_text("a = 1\nb = 2\n")
    (found.parent / "weights.bin").write_bytes(b"\0" * 9)
    git(found.parent, "init", "-q")
    git(found.parent, "add", "-A")
    git(found.parent, "commit", "-qm", "one")
    code.state.cache_clear()
    yield found
    code.state.cache_clear()


def test_code_that_is_its_commit_has_no_difference(package):
    (package.parent / "notes.py").write_text("is no part of the package\n")
    (package / "data.txt").write_text("is no code\n")
    assert code.state(package) == (git(package, "rev-parse", "HEAD"), "")


@pytest.mark.parametrize("staged", [False, True], ids=["in the tree", "in the index"])
def test_a_change_is_dirty_and_the_difference_makes_it_again(package, staged, monkeypatch):
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    (package / "__init__.py").write_text("a = 1\nb = 3\n")
    (package / "größe.py").write_text("c = 4\n")
    monkeypatch.delenv("GIT_DIR")
    if staged:
        git(package, "add", "__init__.py")
    commit, difference = code.state(package)
    assert commit == git(package, "rev-parse", "HEAD") + "-dirty"
    copy = package.parent.parent / "copy"
    git(package.parent, "worktree", "add", "-q", str(copy), "HEAD")
    subprocess.run(["git", "apply"], cwd=copy, input=difference.encode(), check=True)
    for name in ("__init__.py", "größe.py"):
        assert (copy / "package" / name).read_text() == (package / name).read_text()


def test_of_a_binary_file_only_the_name_is_told(package):
    (package.parent / "weights.bin").write_bytes(b"\0\1secret" * 99)
    commit, difference = code.state(package)
    assert commit.endswith("-dirty")
    assert "weights.bin" in difference and "secret" not in difference


def test_of_a_new_link_and_of_what_is_no_text_only_the_name_is_told(package):
    outside = package.parents[1] / "outside.txt"
    outside.write_text("secret")
    for name, target in (("link.py", outside), ("nowhere.py", "/no/such/place")):
        (package / name).symlink_to(target)
    (package / "bytes.py").write_bytes(b"\xffsecret")
    (package / "new.py").write_text("c = 1\n")
    commit, difference = code.state(package)
    assert commit == git(package, "rev-parse", "HEAD") + "-dirty"
    assert all(f"b/package/{name}.py" in difference for name in ("link", "nowhere", "bytes", "new"))
    assert "+c = 1" in difference and "secret" not in difference and "outside" not in difference


def test_a_long_difference_is_cut_and_says_so(package):
    (package / "__init__.py").write_text("".join(f"x{i} = {i}\n" for i in range(200_000)))
    difference = code.state(package)[1]
    assert len(difference) + 200 > code.LONGEST and len(difference) < code.LONGEST + 200
    assert "cut here" in difference.splitlines()[-1] and "bytes more" in difference.splitlines()[-1]


def test_the_repository_of_another_project_is_not_ours(package):
    installed = package.parent / "site-packages" / "ours"
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("")
    assert code.state(installed) == ("unknown", "")


def test_without_git_or_a_repository_the_commit_is_unknown(package, tmp_path, monkeypatch):
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "__init__.py").write_text("")
    assert code.state(tmp_path / "alone") == ("unknown", "")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert code.state(package) == ("unknown", "")


def test_each_difference_that_a_run_has_seen_stays_beside_its_environment(tmp_path, monkeypatch):
    config = {"mesh": {}, "any": 1}
    for commit, difference in (("a-dirty", "one\n"), ("a-dirty", "one\n"), ("a-dirty", "two\n"), ("b", "")):
        monkeypatch.setattr(code, "state", lambda commit=commit, difference=difference: (commit, difference))
        rundir.prepare(tmp_path / "run", config, new=True)
    written = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert written["git_commit"] == "b" and "git_diff" not in written
    assert [entry["git_commit"] for entry in written["earlier"]] == ["a-dirty", "a-dirty"]
    kept = [(tmp_path / "run" / entry["git_diff"]).read_text() for entry in written["earlier"]]
    assert kept == ["one\n", "two\n"]
    assert len(list((tmp_path / "run").glob("*.diff"))) == 2
