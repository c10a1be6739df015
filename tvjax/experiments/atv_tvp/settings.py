"""What a run of ATV on a TVP-trained model is asked to do, read from a config and checked."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from tvjax.errors import UserError, reject
from tvjax.experiments.base import named
from tvjax.experiments.identity import A_RUN
from tvjax.files import read_json, user_path
from tvjax.nn.decoder import DecoderConfig
from tvjax.parallel.mesh import MeshConfig
from tvjax.settings import SEED, Checked, Settings, check_mesh, group, parts, setting
from tvjax.train.state import OptimizerConfig, TrainConfig
from tvjax.vectors import tvp

if TYPE_CHECKING:
    from tvjax.experiments.tvp.settings import TVPSettings


@dataclasses.dataclass(frozen=True)
class TargetConfig:
    """The frozen model: a member of a TVP run."""

    run: str = setting("", "the workdir of a TVP run; '': that of `trained`, which is made if it is absent")
    trained: str = setting("runs/atv_tvp_target", "where config.training is trained, once")
    member: str = setting("", "the member's name; '': the last")


@dataclasses.dataclass(frozen=True)
class WriterConfig(Checked):
    """The generator, a decoder from scratch, and what it is trained for."""

    num_layers: int = setting(about="L of the generator", least=1)
    width: int = setting(about="D of the generator", least=1)
    num_heads: int = setting(about="H of the generator", least=1)
    objective: Literal["risk", "theta"] = setting(
        "risk",
        "risk: of the answer with the written vector, which needs no theta; theta: the squared distance from it, the"
        " upper control",
    )
    demonstrations: tuple[int, ...] = setting((), "S, after how many it is trained to write; (): the target's own S")

    def check(self, path: str) -> None:
        """Raise `UserError` for heads that do not divide the width."""
        if self.width % self.num_heads:
            raise reject(f"{path}.num_heads", self.num_heads, f"a divisor of width = {self.width}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class WriterTraining(TrainConfig):
    """How writers are trained, one a seed."""

    batch: int = setting(about="prompts a step", least=1)
    seeds: tuple[int, ...] = setting(about="of the writers", least=0, entries=1, distinct=True)
    learning_rate: float = setting(about="peak", above=0)


@dataclasses.dataclass(frozen=True)
class WriterEvaluation:
    """How much is measured."""

    training_prompts: int = setting(about="of each evaluation during training", least=2)
    prompts: int = setting(about="of the evaluation at the end", least=4)
    seed: int = setting(1000, "of these prompts", **SEED)


@dataclasses.dataclass(frozen=True)
class ATVTVPSettings(Settings):
    """The whole experiment, checked. training: the config of the target's run, if config.target.run names none."""

    target: TargetConfig
    writer: WriterConfig
    train: WriterTraining
    optimizer: OptimizerConfig
    evaluation: WriterEvaluation
    mesh: MeshConfig
    training: Any

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """The values of the fields."""
        return {**parts(cls, config, also=("training",)), "training": config.get("training")}

    def check(self, path: str) -> None:
        """Raise `UserError` for a mesh that does not divide the work, and for a target that cannot be trained."""
        seeds, batch = len(self.train.seeds), self.train.batch
        check_mesh(self.mesh, ("member", seeds, "seeds"), ("data", batch, "prompts a batch"))
        if not self.target.run:
            self.target_settings()

    def target_config(self) -> Mapping[str, Any]:
        """The config of the target's run. Raises `UserError` if config.target.run is none, or another experiment's."""
        run = self.target.run
        if not run:
            return group(self.training, "config.training")
        values = read_json(user_path(run, "config.target.run") / "config.json", A_RUN)
        if values.get("experiment") != "tvp":
            raise reject("config.target.run", run, "the workdir of a TVP run (config.experiment = 'tvp')")
        return values

    def target_settings(self) -> "TVPSettings":
        """The settings of the target's run. Raises `UserError` if they are none, or do not fit the writer's."""
        values = self.target_config()
        try:
            settings: TVPSettings = named("tvp").settings(values)
        except UserError as error:
            source = self.target.run or "config.training"
            raise UserError(f"{source}: {error}") from None
        _check_target(self, settings)
        return settings

    def member(self, target: "TVPSettings") -> int:
        """Which member of the target's run is meant."""
        names = target.population.name
        return names.index(self.target.member) if self.target.member else len(names) - 1

    def positions(self, target: "TVPSettings") -> tuple[int, ...]:
        """S: the queries that the writer is trained at, by number of demonstrations before them."""
        return self.writer.demonstrations or tvp.positions(target.tvp, target.prompt.demonstrations + 1)

    def generator(self, target: "TVPSettings") -> DecoderConfig:
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


def _check_target(s: ATVTVPSettings, target: "TVPSettings") -> None:
    names, most = target.population.name, target.prompt.demonstrations
    if s.target.member and s.target.member not in names:
        raise reject("config.target.member", s.target.member, f"one of {', '.join(names)}, or '' for the last")
    for count in s.writer.demonstrations:
        if not 0 <= count <= most:
            raise reject("config.writer.demonstrations", s.writer.demonstrations, f"numbers in 0..{most}")
