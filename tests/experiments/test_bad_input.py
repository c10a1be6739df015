"""What is wrong with the input is said in one line, which names it, what was given and what is accepted."""

import copy
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from tests.conftest import SMALL, changed
from tvjax.errors import UserError
from tvjax.experiments.tvp.settings import TVPSettings
from tvjax.files import flatten

REPOSITORY = Path(__file__).parents[2]
CONFIG = REPOSITORY / "configs" / "tvp_synthetic.py"

# Fields of the config, and what the line must say beside their names.
FIELDS = {
    "unknown field": ({"model__widht": 3}, "config.model.widht", "3", "width"),
    "unknown group": ({"modle": {}}, "config.modle", "fields are"),
    "group that is no group": ({"model": 3}, "config.model", "3", "a group"),
    "task that is no group": ({"task": 3}, "config.task", "3", "a group"),
    "unknown curriculum": ({"curriculum__paris": {}}, "config.curriculum.paris", "pairs"),
    "curriculum that is no group": ({"curriculum__pairs": 7}, "config.curriculum.pairs", "7", "a group"),
    "wrong type": ({"model__width": "wide"}, "config.model.width", "'wide'", "int"),
    "a float for an int": ({"train__steps": 1.5}, "config.train.steps", "1.5", "int"),
    "a bool for an int": ({"model__width": True}, "config.model.width", "True", "int"),
    "a number for a tuple": ({"population__seed": 3}, "config.population.seed", "3", "tuple"),
    "wrong type in a tuple": ({"population__seed": (0, "a")}, "config.population.seed[1]", "'a'", "int"),
    "wrong choice": ({"model__norm": "batchnorm"}, "config.model.norm", "'batchnorm'", "layernorm"),
    "unknown task": ({"task__name": "cubic"}, "config.task.name", "'cubic'", "--plugins=MODULE, or one of linear"),
    "a family without its oracle": ({"task": {"name": "sinusoid", "input_width": 2}}, "config.task", "2", "oracle"),
    "unknown layout": ({"prompt__layout": "zxy"}, "config.prompt.layout", "'zxy'", "xzy"),
    "negative width": ({"model__width": -16}, "config.model.width", "-16", "1 or more"),
    "negative hidden width": ({"model__hidden_width": -1}, "config.model.hidden_width", "-1", "0 or more"),
    "one layer": ({"model__num_layers": 1}, "config.model.num_layers", "1", "2 or more"),
    "no demonstrations": ({"prompt__demonstrations": 0}, "config.prompt.demonstrations", "0", "1 or more"),
    "no batch": ({"train__batch": 0}, "config.train.batch", "0", "1 or more"),
    "batch of a wrong type": ({"train__batch": "many"}, "config.train.batch", "'many'", "int"),
    "negative steps": ({"train__steps": -5}, "config.train.steps", "-5", "1 or more"),
    "no prompts": ({"evaluation__prompts": 0}, "config.evaluation.prompts", "0", "1 or more"),
    "one prompt to probe": (
        {"evaluation__probes": True, "evaluation__probe_prompts": 1},
        "config.evaluation.probe_prompts",
        "1",
        "2 or more",
    ),
    "probes of one prompt": (
        {"evaluation__probes": True, "evaluation__prompts": 1},
        "config.evaluation.prompts",
        "1",
        "2 or more",
    ),
    "additivity without probes": (
        {"evaluation__additivity": True},
        "config.evaluation.additivity",
        "True",
        "config.evaluation.probes=True",
    ),
    "additivity of two prompts": (
        {"evaluation__additivity": True, "evaluation__probes": True, "evaluation__probe_prompts": 2},
        "config.evaluation.probe_prompts",
        "2",
        "4 or more",
    ),
    "additivity of one demonstration": (
        {"evaluation__additivity": True, "evaluation__probes": True, "prompt__demonstrations": 1},
        "config.evaluation.additivity",
        "True",
        "2 demonstrations or more",
    ),
    "probes that are no bool": ({"evaluation__probes": 1}, "config.evaluation.probes", "1", "bool"),
    "several outputs of a pool": (
        {"task": {"name": "linear", "pool": 3, "outputs": 2}},
        "config.task.outputs",
        "2",
        "1, where",
    ),
    "heads that do not divide": ({"model__num_heads": 3}, "config.model.num_heads", "3", "width = 16"),
    "groups that do not divide": ({"model__num_kv_heads": 3}, "config.model.num_kv_heads", "3", "num_heads = 2"),
    "layer 0": ({"population__prescribed_layer": (0,)}, "config.population.prescribed_layer", "0", "1..2"),
    "layer L": ({"population__prescribed_layer": (3,)}, "config.population.prescribed_layer", "3", "1..2"),
    "layer beyond L": ({"population__prescribed_layer": (1, 9)}, "config.population.prescribed_layer", "9", "1..2"),
    "too long a prompt": ({"prompt__demonstrations": 11}, "config.prompt.demonstrations", "11", "max_positions = 32"),
    "S beyond K": ({"tvp__demonstrations": (1, 5)}, "config.tvp.demonstrations", "(1, 5)", "0..4"),
    "member mesh": ({"mesh__member": 3}, "config.mesh.member", "3", "2 members"),
    "data mesh": ({"mesh__data": 3}, "config.mesh.data", "3", "8 prompts"),
    "tensor mesh": ({"mesh__tensor": 4}, "config.mesh.tensor", "4", "2 key/value heads"),
    "hidden mesh": ({"mesh__tensor": 2, "model__hidden_width": 63}, "config.mesh.tensor", "2", "63 hidden channels"),
    "no mesh": ({"mesh__data": 0}, "config.mesh.data", "0", "divisor"),
    "log_every": ({"train__steps": 21}, "config.train.steps", "21", "log_every = 5"),
    "checkpoints off the grid": ({"train__checkpoint_every": 7}, "config.train.checkpoint_every", "7", "log_every = 5"),
    "equal names": ({"population__name": ("a", "a")}, "config.population.name", "('a', 'a')", "different"),
    "name with a slash": ({"population__name": ("a/b", "c")}, "config.population.name", "a/b", "letters"),
    "no names": ({"population__name": ()}, "config.population.name", "()", "one a member"),
    "wrong length": ({"population__seed": (0, 1, 2)}, "config.population.seed", "(0, 1, 2)", "1 entry or 2"),
    "too large a seed": ({"population__seed": (2**31,)}, "config.population.seed[0]", str(2**31), "2^31 - 1"),
    "evaluation seed": ({"evaluation__seed": -1}, "config.evaluation.seed", "-1", "2^31 - 1"),
    "nan": ({"population__learning_rate": (float("nan"),)}, "config.population.learning_rate[0]", "nan", "finite"),
    "inf": ({"population__learning_rate": (float("inf"),)}, "config.population.learning_rate[0]", "inf", "finite"),
    "negative rate": ({"population__learning_rate": (-1.0,)}, "config.population.learning_rate", "-1.0", "more than 0"),
    "negative weight": ({"population__tvp_weight": (-1.0,)}, "config.population.tvp_weight", "-1.0", "0 or more"),
    "one weight for all": ({"population__tvp_weight": (0.5,)}, "config.population.tvp_weight", "(0.5,)", "icl"),
    "one weight for all, of two seeds": (
        {"population__tvp_weight": (0.5,), "population__seed": (0, 1)},
        "config.population.tvp_weight",
        "2 entries, one for each of icl, tvp",
        "icl",
    ),
    "no weight for all": (
        {"population__tvp_weight": (0.0,), "population__seed": (0, 1)},
        "config.population.tvp_weight",
        "(0.0,)",
        "tvp",
    ),
    "one model twice": (
        {"population__name": ("a", "b"), "population__tvp_weight": (0.5,)},
        "config.population.tvp_weight",
        "the members a and b differ",
        "tvp_weight 0.5",
    ),
    "one model twice, entry by entry": (
        {"population__name": ("a", "b", "c"), "population__tvp_weight": (0.0, 1.0, 1.0)},
        "config.population.seed",
        "the members b and c differ",
    ),
    "clip by nan": ({"optimizer__clip_norm": float("nan")}, "config.optimizer.clip_norm", "nan", "finite"),
    "momentum of 1": ({"optimizer__b1": 1.0}, "config.optimizer.b1", "1.0", "0 up to"),
    "epsilon": ({"model__norm_epsilon": 0.0}, "config.model.norm_epsilon", "0.0", "more than 0"),
    "more than an int of 32 bits": ({"train__steps": 2**31}, "config.train.steps", str(2**31), "32 bits"),
    "more than float32": ({"population__learning_rate": (1e300,)}, "config.population.learning_rate[0]", "float32"),
    "what float32 rounds to 0": ({"model__norm_epsilon": 1e-50}, "config.model.norm_epsilon", "1e-50", "float32"),
    "a size that no compiler takes": ({"model__width": 2**30}, "config.model.width", "at most 1048576"),
    "several of one member": ({"population__name": ("a",)}, "config.population.tvp_weight", "1 entry, one for each"),
    "dtype": ({"model__dtype": "float8"}, "config.model.dtype", "'float8'", "bfloat16"),
}


@pytest.mark.parametrize("row", FIELDS.values(), ids=FIELDS.keys())
def test_a_wrong_value_is_named_with_what_is_accepted(row):
    fields, *said = row
    with pytest.raises(UserError) as caught:
        TVPSettings.from_config(changed(SMALL, **fields))
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith(said[0] + ":")
    assert all(words in line for words in said), line


@pytest.mark.parametrize("group", [name for name in SMALL if name != "experiment"])
def test_a_missing_group_is_named(group):
    config = copy.deepcopy(SMALL)
    del config[group]
    with pytest.raises(UserError, match=f"config.{group}: given None; accepted: a group of fields"):
        TVPSettings.from_config(config)


@pytest.mark.parametrize("field", ["train.batch", "train.steps", "model.width", "prompt.layout", "population.name"])
def test_a_missing_field_is_named(field):
    config = copy.deepcopy(SMALL)
    group, name = field.split(".")
    del config[group][name]
    with pytest.raises(UserError, match=f"config.{field}: given None; accepted: a value of type"):
        TVPSettings.from_config(config)


def test_the_config_that_the_rows_spoil_is_accepted():
    assert TVPSettings.from_config(SMALL).population.name == ("icl", "tvp")


SHARED = {
    "seed": (7,),
    "learning_rate": (1e-4,),
    "prescribed_layer": (1,),
}


@pytest.mark.parametrize("field", SHARED)
def test_one_value_is_that_of_all_members_where_it_means_them_all(field):
    population = TVPSettings.from_config(changed(SMALL, **{f"population__{field}": SHARED[field]})).population
    assert population.spread()[field] == SHARED[field] * 2


def test_one_weight_is_that_of_all_members_that_are_called_otherwise_and_differ():
    fields = {"population__name": ("a", "b"), "population__tvp_weight": (1.0,), "population__prescribed_layer": (1, 2)}
    assert TVPSettings.from_config(changed(SMALL, **fields)).population.spread()["tvp_weight"] == (1.0, 1.0)


FILES = {
    "syntax.py": "def get_config(:\n",
    "raises.py": "def get_config():\n    raise ZeroDivisionError('first line\\nsecond line')\n",
    "imports.py": "import a_module_that_is_not_there\n",
    "exits.py": "raise SystemExit(0)\n",
    "lacks.py": "config = 3\n",
    "number.py": "def get_config():\n    return 3\n",
    "empty.py": "from ml_collections import ConfigDict as get_config\n",
    "binary.py": "\xff\xfe = 3",
    "lazy.py": (
        "from ml_collections import ConfigDict, config_dict\n"
        "def get_config(): return ConfigDict({'experiment': 'tvp', 'a': config_dict.placeholder(int, required=True)})\n"
    ),
    "none.py": (
        "import runpy\n"
        "def get_config():\n"
        "    config = runpy.run_path('CONFIG')['get_config']()\n"
        "    with config.ignore_type(): config.task.name = None\n"
        "    return config\n"
    ),
    "other.py": "from ml_collections import ConfigDict\nget_config = lambda: ConfigDict({'experiment': 'atvv'})\n",
}

# The command line (CONFIG and FOLDER are put in), and what the line must say.
LINES = {
    "no config": ([], "--config", "None", "a config file"),
    "no config, and no run": (["--workdir=FOLDER/new"], "--config", "None", "--workdir of a run"),
    "no config, another value": (["--workdir=FOLDER/run", "--config.model.width=32"], "config.model.width", "32", "64"),
    "missing config": (["--config=FOLDER/missing.py"], "FOLDER/missing.py", "that exists"),
    "config that is a folder": (["--config=FOLDER"], "FOLDER", "a config file"),
    "syntax error": (["--config=FOLDER/syntax.py"], "FOLDER/syntax.py:1", "not Python", "get_config()"),
    "get_config raises": (["--config=FOLDER/raises.py"], "FOLDER/raises.py", "ZeroDivisionError", "second line"),
    "missing import": (["--config=FOLDER/imports.py"], "FOLDER/imports.py", "a_module_that_is_not_there"),
    "config that exits": (["--config=FOLDER/exits.py"], "FOLDER/exits.py", "SystemExit"),
    "no get_config": (["--config=FOLDER/lacks.py"], "FOLDER/lacks.py", "get_config"),
    "no ConfigDict": (["--config=FOLDER/number.py"], "FOLDER/number.py", "int", "ConfigDict"),
    "empty config": (["--config=FOLDER/empty.py"], "config.experiment", "None", "tvp"),
    "unknown experiment": (["--config=FOLDER/other.py"], "config.experiment", "'atvv'", "tvp"),
    "unknown argument": (
        ["--config=CONFIG:cubic"],
        "--config argument",
        "'cubic'",
        "MODULE, or one of linear, linear_map",
    ),
    "unknown field": (["--config=CONFIG", "--config.model.widht=3"], "config.model.widht", "'3'", "width"),
    "unknown group": (["--config=CONFIG", "--config.modle.width=3"], "config.modle", "the fields of config", "model"),
    "field in a field": (["--config=CONFIG", "--config.model.width.x=3"], "config.model.width.x", "no such field"),
    "one weight for two members": (
        ["--config=CONFIG", "--config.population.tvp_weight=0.5"],
        "config.population.tvp_weight",
        "(0.5,)",
        "2 entries, one for each of icl, tvp",
    ),
    "not an int": (["--config=CONFIG", "--config.train.steps=abc"], "config.train.steps", "'abc'", "int"),
    "not a bool": (["--config=CONFIG", "--config.model.bias=maybe"], "config.model.bias", "'maybe'", "bool"),
    "a value for a group": (["--config=CONFIG", "--config.model=3"], "config.model", "'3'", "group"),
    "a value missing": (["--config=CONFIG", "--config.train.steps"], "config.train.steps", "accepted"),
    "not a tuple of ints": (["--config=CONFIG", "--config.population.seed=(0,'a')"], "config.population.seed", "int"),
    "heads": (["--config=CONFIG", "--config.model.num_heads=3"], "config.model.num_heads", "3", "divisor"),
    "nan": (["--config=CONFIG", "--config.optimizer.b1=nan"], "config.optimizer.b1", "nan", "finite"),
    "mode": (["--config=CONFIG", "--mode=wrong"], "--mode", "'wrong'", "train, eval, report"),
    "profile of no steps": (["--config=CONFIG", "--profile"], "--profile", "''", "FIRST:LAST"),
    "profile behind a space": (["--workdir=FOLDER/run", "--profile", "5:1"], "--profile", "'5:1'", "in this order"),
    "profile of one step": (["--config=CONFIG", "--profile=10"], "--profile", "'10'", "FIRST:LAST"),
    "profile of step 0": (["--config=CONFIG", "--profile=0:5"], "--profile", "'0:5'", "being 1"),
    "profile backwards": (["--config=CONFIG", "--profile=15:10"], "--profile", "'15:10'", "in this order"),
    "profile of no training": (
        ["--workdir=FOLDER/run", "--profile=1:5", "--mode=eval"],
        "--mode",
        "'eval'",
        "--profile",
    ),
    "unknown flag": (["--config=CONFIG", "--wrokdir=x"], "--wrokdir", "'x'", "--workdir"),
    "a field without its config": (["--config=CONFIG", "--train.steps=3"], "did you mean '--config.train.steps'?"),
    "stray argument": (["--config=CONFIG", "stray"], "'stray'", "flags only"),
    "mesh": (["--config=CONFIG", "--config.mesh.data=16"], "config.mesh", "16", "at most 8", "devices"),
    "report of nothing": (["--config=CONFIG", "--mode=report", "--workdir=FOLDER/none"], "FOLDER/none", "--workdir"),
    "evaluation of nothing": (["--config=CONFIG", "--mode=eval", "--workdir=FOLDER/none"], "FOLDER/none", "missing"),
    "report of an empty folder": (["--config=CONFIG", "--mode=report", "--workdir=FOLDER/new"], "FOLDER/new", "train"),
    "evaluation of an empty folder": (["--config=CONFIG", "--mode=eval", "--workdir=FOLDER/new"], "FOLDER/new", "run"),
    "workdir under a file": (["--config=CONFIG", "--workdir=FOLDER/lacks.py/run"], "--workdir", "lacks.py/run", "made"),
    "workdir that is a file": (["--config=CONFIG", "--workdir=FOLDER/lacks.py"], "--workdir", "lacks.py", "folder"),
    "foreign folder": (["--config=CONFIG", "--workdir=FOLDER"], "--workdir", "FOLDER", "an empty folder"),
    "a flag file": (["--config=CONFIG", "--flagfile=nowhere"], "--flagfile", "'nowhere'", "flags only"),
    "no flag file": (["--config=CONFIG", "--flagfile="], "--flagfile", "flags only"),
    "undefok": (["--config=CONFIG", "--undefok=foo", "--foo=3"], "--undefok", "'foo'", "flags only"),
    "another help": (["--helpfull"], "--helpfull", "did you mean '--help'?"),
    "config twice": (["--config=CONFIG", "--config=CONFIG:sinusoid"], "--config: given twice"),
    "a field twice": (["--config=CONFIG", "--config.train.steps=50", "--config.train.steps=100"], "steps: given twice"),
    "workdir twice": (["--config=CONFIG", "--workdir=a", "--workdir=b"], "--workdir: given twice, 'a' and 'b'"),
    "mode twice": (["--config=CONFIG", "--mode=eval", "--mode=train"], "--mode: given twice"),
    "profile twice": (["--config=CONFIG", "--profile=1:5", "--profile=2:6"], "--profile", "'1:5 2:6'", "FIRST:LAST"),
    "profile of many digits": (["--config=CONFIG", "--profile=1:" + "9" * 5000], "--profile", "FIRST:LAST"),
    "config without a name": (["--config="], "--config", "''", "a config file"),
    "empty workdir": (["--config=CONFIG", "--workdir="], "--workdir", "''", "a folder"),
    "workdir without a value": (["--config=CONFIG", "--workdir", "--mode=train"], "--workdir", "''", "a folder"),
    "empty mode": (["--config=CONFIG", "--mode="], "--mode", "''", "train, eval"),
    "a mode that is not": (["--config=CONFIG", "--nomode"], "--nomode", "did you mean '--mode'?"),
    "no to a number": (["--config=CONFIG", "--noconfig.train.steps"], "config.train.steps", "type int"),
    "no to no field": (["--config=CONFIG", "--noconfig.model.bais"], "config.model.bais", "did you mean 'bias'?"),
    "no field": (["--config=CONFIG", "--config.=3"], "config.", "no such field"),
    "entry of a tuple": (["--config=CONFIG", "--config.population.seed[5]=3"], "seed[5]", "no such field"),
    "bracket": (["--config=CONFIG", "--config.population.seed[=3"], "seed[", "no such field"),
    "a text without its value": (["--config=CONFIG", "--config.task.name"], "config.task.name", "type str"),
    "digits": (["--config=CONFIG", "--config.train.steps=" + "9" * 5000], "config.train.steps", "type int"),
    "exponent": (["--config=CONFIG", "--config.train.steps=1e3"], "config.train.steps", "'1e3'", "type int"),
    "Python": (["--config=CONFIG", "--config.population.seed=open('x','w')"], "config.population.seed", "int"),
    "only dashes": (["--config=CONFIG", "--"], "command line", "'--'", "flags only"),
    "an empty word": (["--config=CONFIG", ""], "command line", "''", "flags only"),
    "NUL": (["--config=CONFIG", "--workdir=a\0b"], "command line", "without NUL"),
    "no UTF-8": (["--config=CONFIG", "--workdir=a\udcff"], "command line", "UTF-8"),
    "too long a name": (["--config=CONFIG", "--workdir=" + "a" * 300], "--workdir", "too long"),
    "too long a name to plan": (["--config=CONFIG", "--mode=plan", "--workdir=" + "a" * 300], "--workdir", "too long"),
    "too long a name of a run": (["--mode=report", "--workdir=" + "a" * 300], "--workdir", "the folder of a run"),
    "too long a name of a config": (["--config=" + "a" * 300 + ".py"], "--config", "that exists"),
    "a plan in a file": (["--config=CONFIG", "--mode=plan", "--workdir=FOLDER/lacks.py"], "--workdir", "can be made"),
    "a plan where nothing is": (["--config=CONFIG", "--mode=plan", "--workdir=/proc/a"], "--workdir", "can be made"),
    "nobody's home": (["--config=CONFIG", "--workdir=~no-such-user/a"], "--workdir", "~no-such-user/a", "home folder"),
    "nobody's config": (["--config=~no-such-user/a.py"], "--config", "~no-such-user/a.py", "home folder"),
    "an unknown store": (["--config=CONFIG", "--workdir=http://a/b"], "--workdir", "http://a/b", "gs://BUCKET/RUN"),
    "no UTF-8 in a config": (["--config=FOLDER/binary.py"], "binary.py:1", "not Python"),
    "a placeholder": (["--config=FOLDER/lazy.py"], "config", "required", "a value for each field"),
    "a placeholder that is set wrongly": (["--config=FOLDER/lazy.py", "--config.a=x"], "config.a", "'x'"),
    "None in a config": (["--config=FOLDER/none.py"], "config.task.name", "None", "linear"),
    "None in a config, set": (["--config=FOLDER/none.py", "--config.task.name=3"], "config.task.name", "3", "linear"),
    "too many arguments": (["--config=ROOT/configs/text_model.py:a"], "text_model.py", "get_config()"),
    "near mode": (["--config=CONFIG", "--mode=reprot"], "did you mean 'report'?"),
    "near flag": (["--config=CONFIG", "--wrokdir=x"], "did you mean '--workdir'?"),
    "near field": (["--config=CONFIG", "--config.model.widht=3"], "did you mean 'width'?"),
    "near group": (["--config=CONFIG", "--config.modle.width=3"], "did you mean 'model'?"),
    "near argument": (["--config=CONFIG:sinusiod"], "did you mean 'sinusoid'?"),
    "near config": (["--config=ROOT/configs/tvp_synthetc.py"], "did you mean 'ROOT/configs/tvp_synthetic.py'?"),
    "near experiment": (["--config=FOLDER/other.py"], "did you mean 'atv'?"),
    "near family": (["--config=CONFIG", "--config.task.name=linaer"], "did you mean 'linear'?"),
    "near layout": (["--config=CONFIG", "--config.prompt.layout=xzyy"], "did you mean 'xzy'?"),
    "near hardware": (
        ["--config=CONFIG", "--mode=plan", "--workdir=FOLDER/new", "--config.plan.hardware=tpu-v5pp"],
        "did you mean 'tpu-v5p'?",
    ),
    "near run": (["--mode=report", "--workdir=FOLDER/runn"], "--workdir", "did you mean 'FOLDER/run'?"),
    "near run to evaluate": (["--mode=eval", "--workdir=FOLDER/runn"], "--workdir", "did you mean 'FOLDER/run'?"),
    "report without a run": (["--config=CONFIG", "--mode=report"], "--workdir", "the folder of a run"),
    "report of another value": (
        ["--workdir=FOLDER/run", "--mode=report", "--config.train.steps=7"],
        "config.train.steps",
        "7",
        "FOLDER/run/config.json",
    ),
    "report of another mesh": (
        ["--workdir=FOLDER/run", "--mode=report", "--config.mesh.data=2"],
        "config.mesh.data",
        "2",
        "FOLDER/run/config.json",
    ),
    "report of another config": (["--config=CONFIG:sinusoid", "--workdir=FOLDER/run", "--mode=report"], "config."),
    "another config": (
        ["--config=CONFIG", "--workdir=FOLDER/run", "--config.model.width=32"],
        "config.model.width",
        "32",
        "64",
    ),
}


@pytest.fixture
def folder(tmp_path) -> Path:
    """Config files that are wrong, an empty folder, and the run directory of the stock config."""
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content.replace("CONFIG", str(CONFIG)).encode("latin-1"))
    (tmp_path / "new").mkdir()
    return tmp_path


def put_in(words: list[str], folder: Path) -> list[str]:
    names = {"CONFIG": CONFIG, "FOLDER": folder, "ROOT": REPOSITORY}
    for name, place in names.items():
        words = [word.replace(name, str(place)) for word in words]
    return words


@pytest.mark.parametrize("row", LINES.values(), ids=LINES.keys())
def test_a_wrong_command_line_ends_with_code_2_and_one_line(row, folder, capsys, monkeypatch):
    pytest.importorskip("ml_collections")
    import tvjax.main
    from tvjax.cli import exit_cleanly, read_flags
    from tvjax.experiments import rundir

    monkeypatch.chdir(folder)
    config = read_flags(["main", f"--config={CONFIG}"])[0]
    rundir.prepare(folder / "run", config, new=True)
    words, *said = row
    assert exit_cleanly(tvjax.main.main, ["main", *put_in(words, folder)]) == 2
    stderr = capsys.readouterr().err
    assert stderr.startswith("tvjax: ") and stderr.endswith("\n") and stderr.count("\n") == 1, stderr
    assert all(part in stderr for part in put_in(said, folder)), stderr


ENDS = {
    "a file where a folder of the run is to be": (FileExistsError(17, "File exists", "run/eval"), 2, "run/eval"),
    "memory of a device": (
        RuntimeError("INTERNAL: Out of memory allocating 9 bytes.\nat"),
        3,
        "does not fit in memory",
    ),
    "memory of the machine": (MemoryError(), 3, "does not fit in memory"),
}


@pytest.mark.parametrize("row", ENDS.values(), ids=ENDS.keys())
def test_what_a_place_or_the_memory_lacks_is_one_line(row, capsys):
    from tvjax.cli import exit_cleanly

    error, code, said = row

    def main(argv):
        raise error

    assert exit_cleanly(main, []) == code
    stderr = capsys.readouterr().err
    assert stderr.startswith("tvjax: ") and stderr.count("\n") == 1 and said in stderr


def test_a_warning_on_the_command_line_is_one_line_of_the_place_that_called(monkeypatch):
    from tvjax import cli, errors

    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    with pytest.warns(UserWarning, match="not read") as seen:
        assert cli.exit_cleanly(lambda argv: errors.warn("a field\nis not read"), []) == 0
    (one,) = seen
    assert one.filename == __file__
    assert warnings.formatwarning(one.message, one.category, one.filename, one.lineno) == (
        "tvjax: warning: a field is not read\n"
    )


def test_a_run_brings_its_own_config(folder, monkeypatch):
    pytest.importorskip("ml_collections")
    from tvjax.cli import read_flags
    from tvjax.experiments import rundir

    config = read_flags(["main", f"--config={CONFIG}"])[0]
    rundir.prepare(folder / "run", config, new=True)
    again, name, workdir, mode = read_flags(["main", f"--workdir={folder}/run", "--mode=eval"])
    assert flatten(again) == flatten(config)
    assert (name, workdir, mode) == ("run", f"{folder}/run", "eval")


def test_evaluation_of_nothing_leaves_nothing_behind(folder, capsys):
    pytest.importorskip("ml_collections")
    import tvjax.main
    from tvjax.cli import exit_cleanly

    line = put_in(["main", "--config=CONFIG", "--mode=eval", "--workdir=FOLDER/none"], folder)
    assert exit_cleanly(tvjax.main.main, line) == 2
    assert not (folder / "none").exists()


def run_command(*words: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", "tvjax.main", *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=REPOSITORY, timeout=120)


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", [["--config=CONFIG:cubic"], ["--config=CONFIG", "--config.model.num_heads=3", "--workdir=FOLDER/new"]]
)
def test_the_real_command_ends_so_too(words, folder):
    pytest.importorskip("ml_collections")
    done = run_command(*put_in(words, folder))
    assert done.returncode == 2
    assert done.stderr.startswith("tvjax: ") and done.stderr.count("\n") == 1, done.stderr
    assert not any((folder / "new").iterdir())


def test_help_needs_no_jax():
    code = "import sys; from tvjax.main import main; main(['main', '--help']); sys.exit('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "--config.FIELD=VALUE" in done.stdout and "Exit codes" in done.stdout
