"""Every file in configs/, with each of its arguments, is a whole experiment: it parses, and at full size it traces."""

import importlib.util
import inspect
import math
import sys
from pathlib import Path

import jax
import pytest

pytest.importorskip("ml_collections")

from tvjax.cli import read_flags
from tvjax.errors import UserError
from tvjax.experiments import experiment_of, planned
from tvjax.experiments.fields import page
from tvjax.experiments.text_model.settings import TextModelSettings
from tvjax.experiments.tvp.settings import TVPSettings
from tvjax.experiments.tvp.training import make_trainer
from tvjax.parallel.mesh import make_mesh
from tvjax.tasks import StringTask, draw
from tvjax.tasks.text import Template

FOLDER = Path(__file__).resolve().parents[2] / "configs"


def sources():
    """FILE or FILE:ARG for all there is. A config that takes an argument lists its values."""
    sys.path.insert(0, str(FOLDER))
    for path in sorted(FOLDER.glob("*.py")):
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield path.name
        if inspect.signature(module.get_config).parameters:
            yield from (f"{path.name}:{argument}" for argument in getattr(module, "TASKS", None) or module.VARIANTS)
    sys.path.remove(str(FOLDER))


def read(source, *overrides):
    return read_flags(["main", f"--config={FOLDER / source}", *overrides])[0]


def test_the_page_of_all_fields_is_that_of_the_code():
    """Made by: python -m tvjax.experiments.fields > docs/fields.md"""
    assert (FOLDER.parent / "docs" / "fields.md").read_text() == page()


def test_what_a_dataclass_has_can_be_set():
    config = read("tvp_synthetic.py", "--config.optimizer.l2=0.5", "--config.curriculum.pairs.interval=3")
    assert config["optimizer"]["l2"] == 0.5 and config["curriculum"]["pairs"]["interval"] == 3
    with pytest.raises(UserError, match=r"config\.train\.keep_best: given 'risk'; accepted: ''"):
        TVPSettings.from_config(read("tvp_synthetic.py", "--config.train.keep_best=risk"))


EXPERIMENT = {source: read(source)["experiment"] for source in sources()}


@pytest.fixture(params=[source for source, name in EXPERIMENT.items() if name == "tvp"])
def config(request, tmp_path, monkeypatch):
    """As the command line reads it, from a working directory that has nothing to do with the project."""
    monkeypatch.chdir(tmp_path)
    return read(request.param)


@pytest.mark.parametrize("source", [source for source, name in EXPERIMENT.items() if name != "tvp"])
def test_another_config_parses(source):
    config = read(source)
    experiment_of(config).settings(config)
    if config["experiment"] in ("task_vectors", "tvp_language") and not config["model"]["path"]:
        assert TextModelSettings.from_config(config["training"]).template == Template(**config["template"])


def test_the_small_model_of_tvp_language_knows_the_train_tasks_alone():
    config = read("tvp_language.py", "--config.tasks.train=('double','digits')")
    assert config["training"]["data"]["tasks"] == config["tasks"]["train"] == ("double", "digits")


def test_it_parses(config):
    settings = TVPSettings.from_config(config)
    assert settings.population.hyper["seed"].shape == (len(settings.population.name),)


def test_its_programs_trace_at_full_size(config):
    settings = TVPSettings.from_config(config)
    members, layers = len(settings.population.name), settings.decoder.num_layers
    trainer = make_trainer(settings)
    shapes = lambda tree: jax.tree.map(lambda a: (a.shape, a.dtype), tree)
    with jax.set_mesh(trainer.mesh):
        state = jax.eval_shape(trainer.init, trainer.hyper, {})
        after, metrics = jax.eval_shape(trainer.dispatch, state, {}, trainer.hyper)
        scores = jax.eval_shape(trainer.evaluate, state.params, {}, jax.random.key(0), trainer.hyper)
    assert shapes(after) == shapes(state)
    assert metrics["loss"].shape == (members,)
    assert scores["icl_risk"].shape == (members, settings.prompt.demonstrations + 1)
    assert scores["tvp_risk_by_layer"].shape == (members, layers + 1)


def test_the_prompts_of_every_shift_fit_its_positions(config):
    settings = TVPSettings.from_config(config)
    task, count = settings.task, settings.prompt.demonstrations
    assert any(shift.lengthened > 1 for shift in settings.shifts) or isinstance(
        task, StringTask
    )  # whose prompts are long
    for shift in settings.shifts:
        drawn = jax.eval_shape(lambda key, s=shift: draw(s, task, settings.layout, key, 2, count), jax.random.key(0))
        assert drawn.prompt.inputs.shape[1] <= settings.decoder.max_positions, shift.name


SHORT = {0: 11, 1_999: 11, 2_000: 13, 29_999: 39, 30_000: 41, 499_999: 41}
LONG = {0: 26, 1_999: 26, 2_000: 31, 29_999: 96, 30_000: 101, 499_999: 101}


@pytest.mark.parametrize(
    ("task", "pairs"),
    [
        ("linear", SHORT),
        ("quadratic", SHORT),
        ("linear_classification", SHORT),
        ("relu_network", LONG),
        ("decision_tree", LONG),
    ],
)
def test_the_size_and_the_curriculum_of_garg(task, pairs):
    settings = TVPSettings.from_config(read(f"tvp_garg.py:{task}"))
    assert settings.task_name == task and settings.active_inputs(jax.numpy.array(2_000)).sum() == 6
    trainer = make_trainer(settings)
    kernels = jax.tree_util.tree_leaves_with_path(trainer.abstract.params["blocks"])
    size = sum(math.prod(leaf.shape[1:]) for keys, leaf in kernels if keys[-1].key == "kernel")
    assert size == 12 * 12 * 256**2
    for ramp, whole, seen in (
        (settings.curriculum.dimensions, 20, {0: 5, 1_999: 5, 2_000: 6, 29_999: 19, 30_000: 20, 499_999: 20}),
        (settings.curriculum.pairs, settings.prompt.demonstrations + 1, pairs),
    ):
        assert {step: int(ramp.mask(whole, step).sum()) for step in seen} == seen


@pytest.mark.parametrize("path", ["", "smollm2"], ids=["frozen", "trained"])
def test_atv_on_smollm2_traces_with_either_generator(path):
    """The target's own first blocks, which stay as they are, or a second SmolLM2, which is trained."""
    more = [f"--config.generator.path={path}", "--config.generator.kind=model"] if path else []
    config = read("atv_text.py", *more)
    trainer = planned.trainer_of({**config, "methods": ("atv_last",)}, planned.PlanConfig(), make_mesh())
    with jax.set_mesh(trainer.mesh):
        state, metrics = jax.eval_shape(trainer.dispatch, trainer.abstract, trainer.data, trainer.hyper)
    assert metrics["risk"].shape == (len(config["train"]["seeds"]),)
    assert state.params["expansion"]["up"]["kernel"].shape == (1, 576, 30 * 576)
    assert ("generator" in state.params) == bool(path)
    assert len(set(sum(config["tasks"].values(), ()))) >= 12 and all(len(one) == 4 for one in config["templates"])


def test_an_argument_that_is_not_there_is_refused():
    with pytest.raises(UserError, match=r"cubic.*linear, linear_map, bijection, sinusoid, token_offset, quadratic"):
        read("tvp_synthetic.py:cubic")
    with pytest.raises(UserError, match=r"sinusoid.*linear, quadratic"):
        read("tvp_garg.py:sinusoid")
    with pytest.raises(UserError, match=r"^--config argument: given 'large'; accepted: smollm2, small$"):
        read("atv_text.py:large")
