"""The benchmarks say what they take, and the trainer that they time takes steps."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.nn.llama_cpp import HAS_LLAMA

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
MODULES = {"turns", "programs", "atv_released"}


NAMES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in MODULES)
HELP = """
import contextlib, io, json, runpy, sys
folder, *names = sys.argv[1:]
path, said = sys.path[1:], {}
for name in names:
    code, out, sys.path, sys.argv = None, io.StringIO(), [folder, *path], [f"{folder}/{name}.py", "--help"]
    try:
        with contextlib.redirect_stdout(out):
            runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        code = end.code or 0
    except Exception as error:
        code = repr(error)
    said[name] = code, out.getvalue()
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def helped():
    """What each says to --help, in one process: most of the time of one goes to importing jax."""
    command = [sys.executable, "-c", HELP, FOLDER, *NAMES]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", NAMES)
def test_it_says_what_it_takes(name, helped):
    code, said = helped[name]
    assert code == 0
    assert f"benchmarks/{name}.py" in said, "its own command stands in it"


@pytest.mark.parametrize(("members", "weight"), [(1, 0.0), (2, 1.0)])
def test_the_timed_trainer_takes_steps(members, weight):
    spec = importlib.util.spec_from_file_location("programs", FOLDER / "programs.py")
    programs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(programs)
    sizes = {"num_layers": 2, "width": 8, "num_heads": 2}
    run = programs.training(steps=2, batch=4, inputs=2, pairs=3, layout="xzy", members=members, weight=weight, **sizes)
    assert [run(4), run(2)] == [4, 6]


GOLDEN = FOLDER.parent / "tests" / "nn" / "golden"
SHRUNKEN = {
    "tvp_garg": ["model.width=16", "train.batch=2", "evaluation.prompts=8", "mesh.data=2"],
    "atv_llama3_8b": [f"target.path={GOLDEN / 'llama3'}", "target.dtype=bfloat16", f"generator.path={GOLDEN / 'gpt2'}"],
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("tvp_garg", marks=pytest.mark.exhaustive),
        pytest.param("atv_llama3_8b", marks=pytest.mark.slow),
    ],
)
def test_a_config_is_timed_as_it_is_planned(name):
    pytest.importorskip("ml_collections")
    fields = [*SHRUNKEN[name], "plan.query_tokens=8", "plan.answer_tokens=2"]
    command = [sys.executable, FOLDER / "config_step.py", "--rounds=2", f"--config={FOLDER.parent}/configs/{name}.py"]
    command += [f"--config.{field}" for field in fields]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    step, evaluation = (line for line in done.stdout.splitlines() if line.startswith(("step", "evaluation")))
    rate = float(re.search(r"ms; ([\d.]+) \[[\d.]+\.\.[\d.]+\] examples/s", step)[1])
    milliseconds = float(re.match(r"step +([\d.]+)", step)[1])
    assert rate * milliseconds / 1e3 == pytest.approx({"tvp_garg": 4, "atv_llama3_8b": 3}[name], rel=0.1)
    assert ("bfloat16" in evaluation) == (name == "atv_llama3_8b")


@pytest.mark.exhaustive
def test_the_tally_of_killed_runs_is_kept():
    command = [sys.executable, FOLDER / "survival.py", "--toy", "--kills=2", "--kills-a-run=2", "--steps=60"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    tally = json.loads(done.stdout.splitlines()[-1])
    assert tally["bit_identical"], done.stdout
    assert tally["kills"] == 2 and tally["steps_lost_at_most"] <= tally["checkpoint_interval"]


@pytest.mark.exhaustive
def test_a_real_model_is_timed_beside_transformers(tmp_path):
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}
    config = transformers.LlamaConfig(vocab_size=96, hidden_size=16, intermediate_size=24, **sizes)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    sides = "torch,llama,tvjax" if HAS_LLAMA else "torch,tvjax"
    command = [sys.executable, FOLDER / "real_model.py", f"--model={tmp_path}", "--rounds=1", f"--sides={sides}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    works = (
        "forward-1x16",
        "forward-8x128",
        "generate-1x16",
        "generate-8x16",
        "sweep-64x8",
        "sweep-16x64",
        "heads-25x64",
    )
    for work in works:
        assert f"speed of tvjax / torch, {work}: " in done.stdout
    differences = re.findall(r"largest difference to \S+ (\S+)", done.stdout)
    beside = 2 * HAS_LLAMA  # llama.cpp has no writes
    assert len(differences) == 5 + beside and all(float(value) < 1e-3 for value in differences), done.stdout
    assert done.stdout.count("100% of the tokens are the same") == 2 + beside
    assert done.stdout.count("resident memory / parameters") == 3 and done.stdout.count("of a later process") == 4
