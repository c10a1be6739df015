"""Checkpoints through orbax: all that touches orbax is here.

A checkpoint is the whole `TrainState`; with the configuration it determines the rest of the run. It carries a sum of
each array's bits: orbax reads some harmed files without a word, as other values. Saving is synchronous: a line of
metrics that is on disk is never ahead of what a resumed run would compute.
"""

import logging
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from tvjax.errors import RunError, UserError
from tvjax.parallel.mesh import path_of
from tvjax.train.state import Best, TrainState

FORMAT = 1


class Checkpoints:
    """The checkpoints of one run, in ``<workdir>/checkpoints``; the newest `keep` are kept."""

    def __init__(self, folder: Path, keep: int):
        for noisy in ("absl", "asyncio"):  # what fails is raised too: one line is enough
            logging.getLogger(noisy).setLevel(logging.CRITICAL + 1)
        self._folder = folder.absolute()
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=False, create=True)
        self._manager = ocp.CheckpointManager(self._folder, options=options)
        self.skipped: list[str] = []

    def steps(self) -> list[int]:
        """Steps of which there is a checkpoint, oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, state: TrainState) -> None:
        """Save `state`. Raises `RunError` where the disk does not take it; earlier checkpoints stay."""
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        earlier = self.steps()
        tree = _tree(state)
        about = ocp.args.JsonSave({"format": FORMAT, "step": step, "sums": sums(tree)})
        try:
            self._manager.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave(tree), about=about))
        except Exception as error:
            kept = f"those of steps {earlier} are kept" if earlier else "there is none before it"
            raise RunError(
                f"the checkpoint of step {step} could not be saved ({_line(error)}); {kept}; "
                "free some space and start the same command again"
            ) from error

    def restore(self, abstract: TrainState) -> TrainState | None:
        """The newest state that reads whole, on the shardings of `abstract`; None where there is no checkpoint.

        A checkpoint that does not read is named in `skipped` and the one before it is used. Raises `RunError` where
        there are checkpoints and none reads, `UserError` for one of a newer format.
        """
        for step in reversed(self.steps()):
            try:
                about = self._manager.restore(step, args=ocp.args.Composite(about=ocp.args.JsonRestore()))["about"]
                if about["format"] > FORMAT:
                    raise UserError(f"checkpoint of step {step}: format {about['format']}; accepted: up to {FORMAT}")
                target = ocp.args.StandardRestore(_tree(abstract))
                tree = self._manager.restore(step, args=ocp.args.Composite(state=target))["state"]
                changed = [path for path, total in sums(tree).items() if about["sums"].get(path) != total]
                if changed:
                    raise ValueError(f"{changed[0]}: not the bits that were saved")
                return TrainState(**tree | ({"best": Best(**tree["best"])} if "best" in tree else {}))
            except UserError:
                raise
            except Exception as error:
                self.skipped.append(f"checkpoint of step {step} does not read whole ({_line(error)})")
        if self.skipped:
            raise RunError("; ".join(self.skipped) + ": no checkpoint is left; start in a new --workdir")
        return None

    def drop_after(self, step: int) -> None:
        """Delete checkpoints newer than `step`: those that did not read whole, which the run will write again."""
        for newer in [s for s in self.steps() if s > step]:
            self._manager.delete(newer)


def sums(tree: Any) -> dict[str, int]:
    """Of each array, by its path, the sum of its bits as unsigned integers: another one for any one bit that flips."""
    totals = jax.device_get(_sums(tree))
    return {path_of(keys): int(total) for keys, total in jax.tree_util.tree_leaves_with_path(totals)}


@jax.jit
def _sums(tree: Any) -> Any:
    def one(x: jax.Array) -> jax.Array:
        unsigned = jnp.dtype(f"uint{8 * x.dtype.itemsize}")
        return jax.lax.bitcast_convert_type(x, unsigned).sum(dtype=jnp.uint32)

    return jax.tree.map(one, tree)


def _tree(state: TrainState) -> dict[str, Any]:
    tree = {"step": state.step, "params": state.params, "opt_state": state.opt_state}
    return tree if state.best is None else {**tree, "best": vars(state.best)}


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
