"""What a run of ATV on a TVP-trained model is asked to do, read from a config and checked."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from tvjax.errors import UserError, reject
from tvjax.experiments.checks import check_training
from tvjax.experiments.rundir import A_RUN
from tvjax.experiments.tvp_settings import TVPSettings
from tvjax.files import read_json, user_path
from tvjax.nn.decoder import DecoderConfig
from tvjax.parallel.mesh import MeshConfig
from tvjax.settings import at_least, build, check_mesh, check_seed, check_seeds, coerce, group, groups
from tvjax.train.loop import TrainConfig
from tvjax.train.state import OptimizerConfig
from tvjax.vectors import tvp

GROUPS = ("target", "training", "writer", "train", "optimizer", "evaluation", "mesh")


@dataclasses.dataclass(frozen=True)
class TargetConfig:
    """The frozen model: a member ("": the last) of the TVP run `run`; "": of the run `trained`, made if absent."""

    run: str = ""
    trained: str = "runs/atv_tvp_target"
    member: str = ""


@dataclasses.dataclass(frozen=True)
class WriterConfig:
    """The generator, a decoder from scratch, and what it is trained for.

    objective: "risk", of the answer with the written vector, which needs no theta; or "theta", the squared distance
    from it: the upper control. demonstrations: S, after how many it is trained to write; (): the target's own S.
    """

    num_layers: int
    width: int
    num_heads: int
    objective: Literal["risk", "theta"] = "risk"
    demonstrations: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """How much to measure: prompts of each evaluation during training and after it."""

    training_prompts: int
    prompts: int
    seed: int = 1000


@dataclasses.dataclass(frozen=True)
class ATVTVPSettings:
    """The whole experiment, checked; what depends on the target is checked by `check_target`."""

    target: TargetConfig
    writer: WriterConfig
    batch: int
    seeds: tuple[int, ...]
    learning_rate: float
    train: TrainConfig
    optimizer: OptimizerConfig
    evaluation: EvaluationConfig
    mesh: MeshConfig

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "ATVTVPSettings":
        """Read a config. Raises `UserError` with one line for the first thing that is wrong."""
        groups(config, GROUPS)
        train = dict(group(config["train"], "config.train"))
        own = {"batch": int, "seeds": tuple[int, ...], "learning_rate": float}
        values = {name: coerce(train.pop(name, None), kind, f"config.train.{name}") for name, kind in own.items()}
        s = cls(
            target=build(TargetConfig, config["target"], "config.target"),
            writer=build(WriterConfig, config["writer"], "config.writer"),
            train=build(TrainConfig, train, "config.train", keep_best=""),
            optimizer=build(OptimizerConfig, config["optimizer"], "config.optimizer"),
            evaluation=build(EvaluationConfig, config["evaluation"], "config.evaluation"),
            mesh=build(MeshConfig, config["mesh"], "config.mesh"),
            **values,
        )
        _check_writer(s.writer)
        _check_training(s)
        if not s.target.run:
            s.target_settings(config)
        return s

    def target_settings(self, config: Mapping[str, Any]) -> TVPSettings:
        """The settings of the target's run. Raises `UserError` where they are none, or do not fit the writer's."""
        values = target_config(self.target, config)
        try:
            found = TVPSettings.from_config(values)
        except UserError as error:
            place = self.target.run or "config.training"
            raise UserError(f"{place}: {error}") from None
        _check_target(self, found)
        return found

    def member(self, target: TVPSettings) -> int:
        """Which member of the target's run is meant."""
        names = target.population.name
        return names.index(self.target.member) if self.target.member else len(names) - 1

    def positions(self, target: TVPSettings) -> tuple[int, ...]:
        """S: the queries that the writer is trained at, by number of demonstrations before them."""
        return self.writer.demonstrations or tvp.positions(target.tvp, target.prompt.demonstrations + 1)

    def generator(self, target: TVPSettings) -> DecoderConfig:
        """The decoder that reads the target's prompts. Its readout is not used: the expansion takes its place."""
        w, longest = self.writer, target.layout.length(target.prompt.demonstrations + 1)
        inputs = target.task.decoder_inputs() | {"num_outputs": 1}
        return DecoderConfig(
            num_layers=w.num_layers,
            width=w.width,
            num_heads=w.num_heads,
            max_positions=longest,
            matmul_precision=target.decoder.matmul_precision,
            **inputs,
        )


def target_config(c: TargetConfig, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config of the target's run. Raises `UserError` where `c.run` holds none, or another experiment's."""
    if not c.run:
        return group(config.get("training"), "config.training")
    values = read_json(user_path(c.run, "config.target.run") / "config.json", A_RUN)
    if values.get("experiment") != "tvp":
        raise reject("config.target.run", c.run, "the workdir of a TVP run (config.experiment = 'tvp')")
    return values


def _check_writer(w: WriterConfig) -> None:
    at_least(1, "config.writer", num_layers=w.num_layers, width=w.width, num_heads=w.num_heads)
    if w.width % w.num_heads:
        raise reject("config.writer.num_heads", w.num_heads, f"a divisor of width = {w.width}")


def _check_training(s: ATVTVPSettings) -> None:
    check_training(s.train, s.optimizer, s.batch)
    check_seeds("config.train.seeds", s.seeds)
    if s.learning_rate <= 0:
        raise reject("config.train.learning_rate", s.learning_rate, "more than 0")
    at_least(2, "config.evaluation", training_prompts=s.evaluation.training_prompts)
    at_least(4, "config.evaluation", prompts=s.evaluation.prompts)
    check_seed("config.evaluation.seed", s.evaluation.seed)
    check_mesh(s.mesh, ("member", len(s.seeds), "seeds"), ("data", s.batch, "prompts a batch"))


def _check_target(s: ATVTVPSettings, target: TVPSettings) -> None:
    names, most = target.population.name, target.prompt.demonstrations
    if s.target.member and s.target.member not in names:
        raise reject("config.target.member", s.target.member, f"one of {', '.join(names)}, or '' for the last")
    for count in s.writer.demonstrations:
        if not 0 <= count <= most:
            raise reject("config.writer.demonstrations", s.writer.demonstrations, f"numbers in 0..{most}")
