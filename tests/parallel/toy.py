"""A population that trains in no time, in one or several processes: python -m tests.parallel.toy CONFIG FOLDER

CONFIG is JSON: `mesh`, and the fields of `TrainConfig` that differ from those here. `slow`: seconds that a boundary
takes.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tvjax.cli import exit_cleanly
from tvjax.experiments import rundir
from tvjax.files import write_json
from tvjax.parallel import processes
from tvjax.parallel.mesh import make_mesh, shard_batch
from tvjax.train.loop import Trainer
from tvjax.train.state import OptimizerConfig, TrainConfig
from tvjax.train.stop import Stop

TRAIN = {"steps": 40, "log_every": 5, "evaluate_every": 20, "checkpoint_every": 10, "tensorboard": False}


class Regression:
    """Least squares on fresh inputs, `hyper` being all that members differ in."""

    batch = 32

    def init(self, key: jax.Array, data: Any) -> Any:
        return {"w": jax.random.normal(key, (8, 4))}

    def data(self) -> dict[str, jax.Array]:
        return {"target": jnp.linspace(-1.0, 1.0, 32).reshape(8, 4)}

    def loss(self, params: Any, data: Any, key: jax.Array, step: jax.Array, hyper: Any) -> tuple[jax.Array, dict]:
        x_BX = shard_batch({"x": jax.random.normal(key, (self.batch, 8))})["x"]
        loss = jnp.square(x_BX @ params["w"] - x_BX @ data["target"]).mean()
        return loss, {"risk": loss}

    def evaluate(self, params: Any, data: Any, key: jax.Array, hyper: Any) -> dict[str, jax.Array]:
        return {"distance": jnp.square(params["w"] - data["target"]).sum(), "row": params["w"][0]}


def make_trainer(mesh: dict[str, int], **train: Any) -> Trainer:
    hyper = {"seed": jnp.array([0, 1]), "learning_rate": jnp.array([1e-2, 2e-2])}
    config = TrainConfig(**{**TRAIN, **train})
    return Trainer(Regression(), config, OptimizerConfig(), make_mesh(**mesh), ("a", "b"), hyper, jax.random.key(0))


def main(config: dict[str, Any], folder: Path) -> None:
    processes.join()
    rundir.prepare(folder, config, new=True)
    train = dict(config)
    mesh, slow = train.pop("mesh"), train.pop("slow", 0.0)
    requested = Stop.requested
    Stop.requested = lambda self: (time.sleep(slow), requested(self))[1]
    state = rundir.trained_state(make_trainer(mesh, **train), folder, "train", print)
    params = jax.tree.map(np.asarray, state.params)
    write_json(folder / "eval" / "summary.json", {"w": params["w"].tolist()})
    print("done")


if __name__ == "__main__":
    sys.exit(exit_cleanly(lambda argv: main(json.loads(argv[1]), Path(argv[2])), sys.argv))
