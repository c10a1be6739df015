"""The trainers that are timed: linear regression in context, at the sizes that a benchmark asks for."""

from collections.abc import Callable
from typing import Any


def training(
    *, steps: int, batch: int, inputs: int, pairs: int, layout: str, members: int, weight: float, **model: Any
) -> Callable[[int], int]:
    """A function that takes n training steps, a multiple of `steps`, of a population of `members`, and counts them all.

    pairs: of a prompt. weight: lambda, with the TVP-loss at layer L/2. model: fields of config.model.
    """
    import jax

    from tvjax.experiments.tvp.settings import TVPSettings
    from tvjax.experiments.tvp.training import make_trainer

    every = dict.fromkeys(("steps", "log_every", "evaluate_every", "checkpoint_every"), steps)
    config = {
        "experiment": "tvp",
        "task": {"name": "linear", "input_width": inputs},
        "prompt": {"layout": layout, "demonstrations": pairs - 1},
        "curriculum": {"dimensions": {}, "pairs": {}},
        "model": {"max_positions": 3 * pairs, **model},
        "tvp": {},
        "population": {
            "name": tuple(f"member{m}" for m in range(members)),
            "seed": tuple(range(members)),
            "tvp_weight": (weight,),
            "prescribed_layer": (model["num_layers"] // 2,),
            "learning_rate": (1e-4,),
        },
        "train": {"batch": batch, **every},
        "optimizer": {"decay": "constant"},
        "evaluation": {"training_prompts": 1, "prompts": 1},
        "mesh": {},
    }
    trainer = make_trainer(TVPSettings.from_config(config))
    with jax.set_mesh(trainer.mesh):
        init, dispatch, _ = trainer.compile()
        state = init(trainer.hyper, {})

    def run(count: int) -> int:
        nonlocal state
        with jax.set_mesh(trainer.mesh):
            for _ in range(count // steps):
                state, metrics = dispatch(state, {}, trainer.hyper)
            jax.block_until_ready(metrics)
        return int(state.step)

    return run
