"""What a config would train, from shapes alone: no weights, no data and no accelerator are needed to plan it.

A plan compiles one training step and one evaluation during training. Text is planned by the lengths in `PlanConfig`.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from tvjax.errors import reject
from tvjax.experiments import (
    EXPERIMENTS,
    atv,
    atv_tvp,
    experiment_of,
    rundir,
    text_model,
    tvp,
    tvp_language,
)
from tvjax.experiments.atv_settings import ATVSettings, check_model
from tvjax.experiments.atv_tvp_settings import ATVTVPSettings
from tvjax.experiments.atv_tvp_writer import Target, WriterExperiment
from tvjax.experiments.emergence_settings import EmergenceSettings
from tvjax.experiments.text_model import TextModelSettings
from tvjax.experiments.tvp_language_settings import TVPLanguageSettings
from tvjax.experiments.tvp_language_tuning import TuningExperiment
from tvjax.experiments.tvp_settings import TVPSettings
from tvjax.files import write_json
from tvjax.methods import METHODS
from tvjax.methods.trained import Trained
from tvjax.nn.answers import Questions
from tvjax.nn.decoder import DecoderConfig
from tvjax.nn.model import Model
from tvjax.nn.pretrained.shapes import shape_of
from tvjax.nn.pretrained.weights import abstract_params
from tvjax.nn.tokens import Tokens
from tvjax.parallel.batches import Batches
from tvjax.parallel.mesh import MeshConfig, make_mesh
from tvjax.parallel.topology import chip_named, devices_of
from tvjax.settings import at_least, build
from tvjax.text.examples import Examples
from tvjax.train.loop import Trainer
from tvjax.train.plan import Plan, make_plan, said

Config = Mapping[str, Any]
TASKS, PAIRS = 24, 100
"""Text tasks, and pairs of each, in a table whose size matters little: those of the built-in suite."""


@dataclasses.dataclass(frozen=True)
class PlanConfig:
    """For what to compile: so many devices (0: as many as config.mesh has) of a row of `hardware.CHIPS`.

    query_tokens, answer_tokens: of text, as long as the longest query in its template, and its answer.
    """

    devices: int = 0
    hardware: str = "cpu"
    query_tokens: int = 64
    answer_tokens: int = 8


def plan(config: Config, folder: Path, say: Callable[[str], None] = print) -> Plan:
    """Plan what `config` trains, by its group `plan`; write plan.json in `folder` and say it.

    Raises `UserError` for unknown hardware, a mesh of another number of devices, and what the config's experiment does.
    """
    c = build(PlanConfig, config.get("plan", {}), "config.plan")
    at_least(0, "config.plan", devices=c.devices)
    at_least(1, "config.plan", query_tokens=c.query_tokens, answer_tokens=c.answer_tokens)
    config = {name: value for name, value in config.items() if name != "plan"}
    rundir.make_folder(folder)
    chip = chip_named(c.hardware)
    sizes = mesh_sizes(build(MeshConfig, config.get("mesh", {}), "config.mesh"), c.devices)
    mesh = make_mesh(**sizes, devices=devices_of(chip, math.prod(sizes.values())))
    made = make_plan(trainer_of(config, c, mesh), chip)
    found = {"what": experiment_of(config), **made, "notes": notes(config, sizes)}
    write_json(folder / rundir.PLAN, found)
    say(said(found))
    say("\n".join([*found["notes"], f"plan: {folder / rundir.PLAN}"]))
    return found


def mesh_sizes(mesh: MeshConfig, devices: int) -> dict[str, int]:
    """The mesh to plan for. One of a single device is one that was not chosen: `fsdp` then takes all devices."""
    sizes = dataclasses.asdict(mesh)
    count = math.prod(sizes.values())
    if devices and count == 1:
        return {**sizes, "fsdp": devices}
    if devices not in (0, count):
        raise reject("config.plan.devices", devices, f"{count}, the product of config.mesh = {sizes}")
    return sizes


def notes(config: Config, sizes: Mapping[str, int]) -> list[str]:
    """What is allowed and hardly meant: devices that do the same work."""
    train, share = config.get("train", {}), sizes["data"] * sizes["fsdp"]
    rows = train.get("batch", share) // train.get("micro_batches", 1)
    if rows % share == 0:
        return []
    return [f"a (micro-)batch of {rows} does not divide over data x fsdp = {share} devices: raise config.train.batch"]


def trainer_of(config: Config, c: PlanConfig, mesh: Mesh) -> Trainer:
    """The programs of one training step of what `config` trains, on `mesh`. Raises `UserError` as the run would."""
    name = experiment_of(config)
    assert PLANNED.keys() == EXPERIMENTS.keys()
    return PLANNED[name](config, c, mesh)


def _one_step(config: Config) -> Config:
    return {**config, "train": {**config["train"], "log_every": 1}}


def _tvp(config: Config, c: PlanConfig, mesh: Mesh) -> Trainer:
    return tvp.make_trainer(TVPSettings.from_config(_one_step(config)), mesh)


def _emergence(config: Config, c: PlanConfig, mesh: Mesh) -> Trainer:
    """The study's largest population."""
    found = EmergenceSettings.from_config(config).populations
    largest = max(found, key=lambda p: len(p.config["population"]["name"]) * p.condition["num_layers"])
    return _tvp(largest.config, c, mesh)


def _text_model(config: Config, c: PlanConfig, mesh: Mesh) -> Trainer:
    s = TextModelSettings.from_config(_one_step(config))
    experiment = text_model.TextModelExperiment(s, s.decoder(s.model.vocab_size), _tables(c))
    return text_model.make_trainer(experiment, jax.random.key(0), mesh)


def _task_vectors(config: Config, c: PlanConfig, mesh: Mesh) -> Trainer:
    """Nothing is trained but the small model, where there is no other."""
    if config["model"]["path"]:
        raise reject("config.model.path", config["model"]["path"], "'': nothing is trained of a model that is there")
    return _text_model(config["training"], c, mesh)


def _tvp_language(config: Config, c: PlanConfig, mesh: Mesh) -> Trainer:
    s = TVPLanguageSettings.from_config(_one_step(config))
    decoder = _model(s.model.path, "config.model.path", s.model.dtype, config["training"], s.unroll)
    precision = s.model.matmul_precision
    decoder = dataclasses.replace(decoder, param_dtype="float32", matmul_precision=precision)
    s.check_model(decoder)
    parts = s.population.parts(s.at_once)
    s = dataclasses.replace(s, population=max(parts, key=lambda part: bool(part.extra)))  # what takes most
    return tvp_language.make_trainer(s, TuningExperiment(s, decoder, abstract_params(decoder), _tables(c)), mesh)


def _atv_tvp(config: Config, c: PlanConfig, mesh: Mesh) -> Trainer:
    s = ATVTVPSettings.from_config(_one_step(config))
    t = s.target_settings(config)
    params = jax.eval_shape(lambda key: tvp.TVPExperiment(t).init(key, {}), jax.random.key(0))
    place = s.member(t)
    target = Target(t, params, t.population.name[place], t.population.spread()["prescribed_layer"][place])
    return atv_tvp.make_trainer(WriterExperiment(s, target), mesh)


def _atv(config: Config, c: PlanConfig, mesh: Mesh) -> Trainer:
    """The first method that is trained and of which shapes alone say what."""
    s = ATVSettings.from_config(_one_step(config))
    trained = [method for method in s.methods if isinstance(method, Trained)]
    method = next((method for method in trained if method.can_be_planned), None)
    if method is None:
        known = [name for name, one in METHODS.items() if isinstance(one, Trained) and one.can_be_planned]
        given = tuple(one.name for one in s.methods)
        raise reject("config.methods", given, f"one that is trained and can be planned: {', '.join(known)}")
    t, training = s.target, config["training"]
    target = _model(t.path, "config.target.path", t.dtype, training.get("target"), 1)
    target = dataclasses.replace(target, matmul_precision=t.matmul_precision)
    check_model(s, target)
    given: dict[str, Any] = {"target": abstract_params(target)}
    generator = None
    if s.generator.kind == "model":
        read = _model(s.generator.path, "config.generator.path", "float32", training.get("generator"), 0)
        read = dataclasses.replace(read, matmul_precision=t.matmul_precision)
        generator = atv.headless(read, s.generator.dtype)
        given["generator"] = {name: leaf for name, leaf in abstract_params(read).items() if name != "readout"}
    examples = {"train": (len(s.tasks.trained), s.examples.examples), "dev": (len(s.tasks.trained), s.evaluation.dev)}
    made = {split: _examples(c, len(s.templates), *size) for split, size in examples.items()}
    context = atv.context_of(
        s,
        Model(given["target"], target),
        generator,
        given,
        tasks={},
        readers={},
        examples={"query": made, "shown": made},
        benches=[],
        batches=Batches(s.vectors.memory, s.evaluation.batch),
        finish=_nothing,
    )
    return method.trainer(context, given, method.members(context), mesh)[1]


def _nothing(trainer: Trainer, folder: Path) -> Any:
    """A plan trains nothing."""
    raise NotImplementedError


def _model(path: str, field: str, dtype: str, training: Any, unroll: int) -> DecoderConfig:
    """The decoder that a path names or, where it is empty, the small one that would be trained."""
    if path:
        dtype = dtype or "bfloat16"
        return shape_of(path, field, dtype=dtype, param_dtype=dtype, unroll=unroll)
    s = TextModelSettings.from_config(training)
    dtype = dtype or "float32"  # in which its folder is written
    return dataclasses.replace(s.decoder(s.model.vocab_size), dtype=dtype, param_dtype=dtype, unroll=unroll)


def _tables(c: PlanConfig) -> dict[str, np.ndarray]:
    """What `text_prompts.tables` makes of tasks, with nothing in it."""
    query, answer = (np.zeros((TASKS * PAIRS, width), np.int32) for width in (c.query_tokens, c.answer_tokens))
    rows = {"first": query, "query": query, "answer": answer, "last": answer}
    return {**rows, "start": np.arange(TASKS) * PAIRS, "count": np.full(TASKS, PAIRS)}


def _examples(c: PlanConfig, templates: int, tasks: int, each: int) -> Examples:
    """The shapes of so many examples of each task; their tasks and ranks are known."""
    count = tasks * each

    def shape(dtype: Any, *dims: int) -> Any:
        return jax.ShapeDtypeStruct((count, *dims), dtype)

    def tokens(*dims: int) -> Tokens:
        return Tokens(shape(jnp.int32, *dims), shape(jnp.bool_, *dims))

    answers = shape(jnp.int32, templates, c.answer_tokens), shape(jnp.bool_, templates, c.answer_tokens)
    prompts = Questions(tokens(templates, c.query_tokens + c.answer_tokens), shape(jnp.int32, templates), *answers)
    number: Any = np.repeat(np.arange(tasks), each)
    rank: Any = np.tile(np.arange(each), tasks)
    return Examples(tokens(1, c.query_tokens), prompts, number, rank)


PLANNED: dict[str, Callable[[Config, PlanConfig, Mesh], Trainer]] = {
    "tvp": _tvp,
    "text_model": _text_model,
    "task_vectors": _task_vectors,
    "formats": _task_vectors,
    "atv": _atv,
    "atv_tvp": _atv_tvp,
    "emergence": _emergence,
    "tvp_language": _tvp_language,
}
