"""README and docs/: links lead somewhere, every page is in the index, and code that a reader may copy runs."""

import importlib.util
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import SMALL, changed
from tests.nn.golden import GOLDEN, HAS_TORCH
from tvjax.experiments import experiment_of

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "RESULTS.md"]
PAGES += sorted((ROOT / "docs").glob("*.md"))


def prose(page):
    """The text of a page without what is code: blocks, indented or fenced, and spans."""
    text = re.sub(r"^(```|~~~).*?^\1$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"^ {4}.*$", "", re.sub(r"`[^`\n]+`", "code", text), flags=re.MULTILINE)


def anchors(page):
    """The names that GitHub gives to the headings of a page."""
    text = re.sub(r"^(```|~~~).*?^\1$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    names = []
    for heading in re.findall(r"^#+ +(.*?)\s*$", text, re.MULTILINE):
        shown = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).replace("\\", "").lower()
        name = re.sub(r"[^\w\- ]", "", shown).replace(" ", "-")
        names.append(name if name not in names else f"{name}-{names.count(name)}")
    return set(names)


def links(page):
    found = re.findall(r"\]\(([^()\s]+)\)", prose(page))
    return [link for link in found if not re.match(r"[a-z]+:", link)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_and_every_anchor_is_there(page):
    for link in links(page):
        path, _, anchor = link.partition("#")
        place = (page.parent / path).resolve() if path else page
        assert place.exists(), f"{link}: no such file"
        assert ROOT in place.parents, f"{link}: not of this repository"
        if anchor:
            assert anchor in anchors(place), f"{link}: accepted: {', '.join(sorted(anchors(place)))}"


def test_links_are_found_and_anchors_are_named_as_github_does(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# A `b`, c\n\n## A b c\n\n[x](y.md#z) `[no](no.md)` [far](https://a.b)\n\n```\n# [no](no.md)\n```\n"
    )
    assert links(page) == ["y.md#z"]
    assert anchors(page) == {"a-b-c", "a-b-c-1"}


def test_the_index_lists_every_page():
    index = ROOT / "docs" / "README.md"
    listed = {link.partition("#")[0] for link in links(index)}
    assert {page.name for page in index.parent.glob("*.md")} - {"README.md"} <= listed


def python_blocks(page):
    """The blocks of Python of a page."""
    return re.findall("```python\n(.*?)```", page.read_text(), re.DOTALL)


def first_block(page):
    """The first of them."""
    return python_blocks(page)[0]


@pytest.mark.slow
def test_the_first_lines_of_readme_print_what_they_say(capsys):
    code = first_block(ROOT / "README.md")
    exec(code, {})
    said = re.findall(r"^print.*# (\[.*\])$", code, re.MULTILINE)
    assert len(said) == 2 and capsys.readouterr().out.splitlines() == said


@pytest.mark.slow
def test_the_page_on_edits_runs_after_the_main_job(tmp_path, monkeypatch, capsys):
    config = changed(SMALL, train__steps=5, train__tensorboard=False)
    experiment_of(config).run(config, tmp_path / "runs" / "tvp_synthetic-20000101", "train")
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    exec(first_block(ROOT / "docs" / "edits.md"), {})
    bare, written, *sweep = capsys.readouterr().out.replace("[", "").replace("]", "").split()
    assert len(sweep) == SMALL["model"]["num_layers"] + 1 and bare != written
    np.testing.assert_allclose(float(sweep[2]), float(written), rtol=1e-4)
    assert (tmp_path / "theta.safetensors").exists()


@pytest.mark.slow
def test_the_vectors_of_the_page_on_travel(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(python_blocks(ROOT / "docs" / "travel.md")[0], names)
    assert names["loaded"].layers == tuple(range(12, 19)) and (tmp_path / "warm.gguf").is_file()
    plain = names["tvjax"].generate(names["model"], "The weather today is", max_new_tokens=8)
    assert capsys.readouterr().out.strip() != plain.strip()


def test_the_adapters_of_the_page_on_travel(tmp_path, monkeypatch):
    shutil.copytree(GOLDEN / "llama3", tmp_path / "path" / "to" / "model")
    monkeypatch.chdir(tmp_path)
    ours, theirs = python_blocks(ROOT / "docs" / "travel.md")[1:]
    exec(ours, {})
    assert (tmp_path / "merged" / "model.safetensors").is_file()
    if HAS_TORCH and importlib.util.find_spec("peft"):
        exec(theirs, {})


def test_the_notebook_names_a_page_that_is_there():
    cells = json.loads((ROOT / "launch" / "colab.ipynb").read_text())["cells"]
    for name in re.findall(r"[\w/]+\.md", "".join(line for cell in cells for line in cell["source"])):
        assert (ROOT / name).is_file(), name
