"""The language model of a text experiment: one that is there, or the small one of config.training, trained once."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from jax.sharding import Mesh

from tvjax.errors import reject
from tvjax.experiments import rundir
from tvjax.experiments.base import Config, PlanConfig, named
from tvjax.files import user_path
from tvjax.nn.decoder import DecoderConfig, Precision
from tvjax.nn.model import Model
from tvjax.nn.pretrained import load_model
from tvjax.nn.pretrained.shapes import shape_of
from tvjax.nn.sources import find
from tvjax.settings import Settings, group, parts, setting
from tvjax.train.loop import Trainer

SMALL = "text_model"
"""The experiment that trains the small model."""
FOLDER = "model"
"""The folder of its run that holds the model in Hugging Face's form."""


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The model that is asked: one that is there, or the small one of config.training."""

    path: str = setting("", "a Hugging Face folder, a GGUF file, smollm2, ORG/NAME of the hub; '': config.training's")
    dtype: Literal["", "float32", "bfloat16", "float16"] = setting(
        "", "of parameters and activations: float32, bfloat16, float16; '': that of the folder's tensors"
    )
    matmul_precision: Precision = setting("highest", "of float32 on GPUs, TPUs: highest, high, default")
    trained: str = setting("runs/text_model", "where the small model is, or is trained once; used if path is ''")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextSettings(Settings):
    """Settings of an experiment on one language model. training: config.training, not read if config.model.path is."""

    model: ModelConfig
    training: Any

    @classmethod
    def read(cls, config: Config) -> dict[str, Any]:
        """The values of the fields."""
        return {**parts(cls, config, ("training",)), "training": config.get("training")}

    def check(self, path: str) -> None:
        """Raise `UserError` for a small model that cannot be trained, if there is no other."""
        if not self.model.path:
            check_small(self.training, f"{path}.training")


def check_small(training: Any, path: str) -> Any:
    """The settings of the small model.

    path: the path of `training` in the config.

    Raises `UserError` if `training` has no such settings.
    """
    return named(SMALL).settings(group(training, path))


def open_model(m: ModelConfig, training: Any, say: Callable[[str], None]) -> Model:
    """The model that config.model names, or else the small model of config.training, trained first, once."""
    how: dict[str, Any] = {"dtype": m.dtype or None, "matmul_precision": m.matmul_precision}
    if m.path:
        return load_model(find(m.path, "config.model.path"), unroll=1, **how)  # as `small_model`
    where = {"field": "config.training", "names": "config.model.trained"}
    return small_model(training, user_path(m.trained, where["names"]), say, **where, **how)


def small_model(
    training: Mapping[str, Any], folder: Path, say: Callable[[str], None], *, field: str, names: str, **how: Any
) -> Model:
    """The model of the run in `folder`; if there is no run, it is trained first, once.

    field, names: as in `rundir.run_once`.
    how: arguments of `load_model`.
    """
    rundir.run_once(named(SMALL).run, training, folder, say, what="a small language model", field=field, names=names)
    return load_model(folder / FOLDER, unroll=1, **how)  # many programs use it: compiling is what counts


def shape_named(path: str, field: str, dtype: str, training: Any, unroll: int) -> DecoderConfig:
    """The decoder that `path` names or, if `path` is empty, that of the small model. Raises `UserError`."""
    if path:
        dtype = dtype or "bfloat16"
        return shape_of(path, field, dtype=dtype, param_dtype=dtype, unroll=unroll)
    s = named(SMALL).settings(training)
    dtype = dtype or "float32"  # in which its folder is written
    return dataclasses.replace(s.decoder(s.model.vocab_size), dtype=dtype, param_dtype=dtype, unroll=unroll)


def planned(config: Config, c: PlanConfig, mesh: Mesh) -> Trainer:
    """The programs that a plan compiles for experiments that train the small model alone.

    Raises `UserError` if the config names another model: then nothing is trained.
    """
    if config["model"]["path"]:
        raise reject("config.model.path", config["model"]["path"], "'': nothing is trained of a model that is there")
    trainer = named(SMALL).trainer
    assert trainer is not None
    return trainer(config["training"], c, mesh)
