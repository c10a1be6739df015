"""What docs/extending.md and CONTRIBUTING say of additions, done: each is one file of the user's, no other changes."""

import dataclasses
import json
import re
import shlex
import sys
from pathlib import Path

import pytest

pytest.importorskip("ml_collections")

from tests.experiments.test_atv import model_folder
from tvjax import experiments, methods, tasks
from tvjax.errors import UserError
from tvjax.experiments import base
from tvjax.main import main

ROOT = Path(__file__).parents[1]
SMALL = {
    "model.num_layers": 2,
    "model.width": 8,
    "prompt.demonstrations": 3,
    "train.steps": 4,
    "train.log_every": 2,
    "train.evaluate_every": 4,
    "train.checkpoint_every": 4,
    "train.batch": 4,
    "population.prescribed_layer": "(1,)",
    "evaluation.training_prompts": 4,
    "evaluation.prompts": 8,
    "evaluation.probe_prompts": 8,
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder of the user's own, which is the current one; what is registered in it is forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    tables = [(table, dict(table)) for table in (tasks._REGISTERED, base._REGISTERED, methods.METHODS)]
    yield tmp_path
    for table, before in tables:
        for name in [name for name in table if name not in before]:
            table.pop(name)
    for name in ("absolute", "difference", "gains", "letters"):
        sys.modules.pop(name, None)


def follow(name, mark, folder):
    """Write the module `name` of the page, whose code has `mark`, into `folder`: the words of its command line."""
    text = (ROOT / "docs" / "extending.md").read_text()
    (code,) = [block for block in re.findall("```python\n(.*?)```", text, re.DOTALL) if mark in block]
    (command,) = re.findall(rf"python -m tvjax.main (--plugins={name} .*)", text)
    (folder / f"{name}.py").write_text(code)
    return [word.replace("configs/", f"{ROOT}/configs/") for word in shlex.split(command)]


def letters(folder, before="", after=""):
    """Write the experiment of the page into `folder`, with `after` in place of `before`."""
    follow("letters", "LetterSettings", folder)
    path = folder / "letters.py"
    assert before in path.read_text()
    path.write_text(path.read_text().replace(before, after) if before else path.read_text())


@pytest.mark.slow
def test_the_task_of_the_page(here):
    words = follow("absolute", "class Absolute", here)
    small = [f"--config.{name}={value}" for name, value in SMALL.items()]
    main(["main", *words, *small, "--workdir=run"])
    summary = json.loads((here / "run" / "eval" / "summary.json").read_text())
    assert summary["task"] == "absolute" and summary["oracle_risk"][-1] < 1e-6 and summary["shifts"]
    assert (here / "run" / "report" / "index.html").is_file()
    assert json.loads((here / "run" / "config.json").read_text())["task"] == {
        "name": "absolute",
        "input_width": 2,
        "noise": 0.0,
    }


@pytest.mark.slow
def test_the_method_of_the_page(here):
    words = follow("difference", 'name="difference"', here)
    path = model_folder(here / "model", 32, 2, 0)
    small = ["model.path=" + path, "data.tasks=('opposite','capital')", "vectors.prompts=2", "vectors.questions=3"]
    small += ["vectors.demonstrations=2"]
    main(["main", *words, *(f"--config.{field}" for field in small), "--workdir=run"])
    summary = json.loads((here / "run" / "eval" / "summary.json").read_text())
    assert [m["name"] for m in summary["methods"]] == ["vector", "difference"]
    assert summary["tasks"]["opposite"]["difference_scale"] in (0.05, 0.1, 0.2)
    assert "difference of states" in (here / "run" / "report" / "index.html").read_text()


@pytest.mark.exhaustive
def test_the_trained_method_of_the_page(here):
    words = follow("gains", "class Gains", here)
    small = {"target.path": model_folder(here / "model", 32, 2, 0), "generator.kind": "target", "generator.below": 1}
    small |= {"train.steps": 4, "train.log_every": 2, "train.evaluate_every": 4, "train.seeds": "(0,)"}
    small |= {"evaluation.test": 4, **{f"sensitivity.{name}": "()" for name in ("scales", "layers", "examples")}}
    main(["main", *words, *(f"--config.{field}={value}" for field, value in small.items()), "--workdir=run"])
    (_, gains) = json.loads((here / "run" / "eval" / "summary.json").read_text())["methods"]
    assert gains["name"] == "gains" and gains["trainable_parameters"] == 2 * 32 and "unreached" not in gains
    assert "gains of the MLPs" in (here / "run" / "report" / "index.html").read_text()


def test_an_experiment_in_one_file(here, capsys):
    letters(here, "page=PAGE", "page=None")
    main(["main", "--plugins=letters", "--config=letters.py", "--workdir=run"])
    assert "mean" in capsys.readouterr().out
    page = (here / "run" / "report" / "index.html").read_text()
    assert "<h1>letters in run" in page and "4.00" in page
    with pytest.raises(UserError, match=r"config\.letters\.words: given \(\); accepted: entries, at least one"):
        main(["main", "--plugins=letters", "--config=letters.py", "--config.letters.words=()", "--workdir=other"])
    with pytest.raises(UserError, match=r"config\.experiment: given 'letters'; accepted: an experiment that says"):
        main(["main", "--plugins=letters", "--config=letters.py", "--mode=plan", "--workdir=plan"])
    assert not (here / "plan").exists(), "a refused plan leaves nothing"


def test_an_experiment_with_a_page_of_its_own(here, capsys):
    letters(here)
    main(["main", "--plugins=letters", "--config=letters.py", "--workdir=run"])
    assert "letters of each word\nword   letters\none    3\nthree  5\n" in capsys.readouterr().out
    page = (here / "run" / "report" / "index.html").read_text()
    assert "<h1>lengths in run" in page and "<td>5</td>" in page
    base._REGISTERED.pop("letters")
    with pytest.raises(UserError, match="experiment letters: not known here; accepted: --plugins=MODULE"):
        main(["main", "--mode=report", "--workdir=run"])
    assert (here / "run" / "report" / "index.html").read_text() == page, "nothing was written over it"


def test_an_error_of_a_page_of_ones_own_is_not_called_the_summarys(here):
    letters(here, '"lengths"', 'run.summary["lengths"]')
    with pytest.raises(KeyError, match="lengths"):
        main(["main", "--plugins=letters", "--config=letters.py", "--workdir=run"])


def test_names_are_their_own():
    other = experiments.Experiment(name="tvp", run=print, settings=print)
    with pytest.raises(UserError, match="experiment tvp: given a name of this package"):
        experiments.register(other)
    with pytest.raises(UserError, match="task family linear: given a name of this package"):
        tasks.register("linear", tasks.Sinusoid)
    for family, said in (
        (tasks.Sinusoid(), "Sinusoid"),
        (type("Plain", (tasks.Linear,), {}), "Plain"),
        (print, "print"),
    ):
        with pytest.raises(UserError, match=rf"task family mine: given .*{said}.*; accepted: a class under Task"):
            tasks.register("mine", family)
    unfinished = dataclasses.dataclass(frozen=True)(type("Unfinished", (tasks.TokenTask,), {}))
    with pytest.raises(UserError, match=r"task family mine: given Unfinished without .*; accepted: a class that has"):
        tasks.register("mine", unfinished)
