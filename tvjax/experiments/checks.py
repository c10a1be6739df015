"""Checks of the settings by which experiments train."""

from tvjax.errors import reject
from tvjax.settings import at_least
from tvjax.train.loop import TrainConfig
from tvjax.train.state import OptimizerConfig


def check_training(train: TrainConfig, optimizer: OptimizerConfig, batch: int, scores: tuple[str, ...] = ()) -> None:
    """Raise `UserError` for the first value that no training can have.

    scores: metrics of the evaluation by which the best parameters can be kept.
    """
    path, c, o = "config.train", train, optimizer
    at_least(1, path, batch=batch, steps=c.steps, log_every=c.log_every, keep_checkpoints=c.keep_checkpoints)
    for name in ("steps", "evaluate_every", "checkpoint_every"):
        if getattr(c, name) < 1 or getattr(c, name) % c.log_every:
            raise reject(f"{path}.{name}", getattr(c, name), f"a positive multiple of log_every = {c.log_every}")
    if c.keep_best not in ("", *scores):
        raise reject(f"{path}.keep_best", c.keep_best, ", ".join(map(repr, ("", *scores))))
    path = "config.optimizer"
    at_least(0, path, warmup_steps=o.warmup_steps, weight_decay=o.weight_decay, l2=o.l2, clip_norm=o.clip_norm)
    if not 0 <= o.final_fraction <= 1:
        raise reject(f"{path}.final_fraction", o.final_fraction, "a fraction, 0 to 1")
    for name in ("b1", "b2"):
        if not 0 <= getattr(o, name) < 1:
            raise reject(f"{path}.{name}", getattr(o, name), "0 up to, not including, 1")


def check_micro_batches(batch: int, micro_batches: int) -> None:
    """Raise `UserError` for a number of micro-batches that does not divide the batch."""
    if micro_batches < 1 or batch % micro_batches:
        raise reject("config.train.micro_batches", micro_batches, f"a divisor of batch = {batch}")
