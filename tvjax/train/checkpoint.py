"""Checkpoints through orbax: all that touches orbax is here.

A checkpoint is the whole `TrainState`; with the configuration it determines the rest of the run. It carries a sum of
each array's bits, since orbax reads some harmed files without a word, as other values. Every process writes the parts
that it holds, while training goes on from a copy on the host. A checkpoint has a temporary name until all of it is
written. The log is synchronized before, so it is never behind a checkpoint.
"""

import json
import logging
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath

from tvjax.errors import RunError, UserError
from tvjax.parallel import processes
from tvjax.parallel.mesh import path_of
from tvjax.train.state import Best, TrainState

FORMAT = 1
Reader = Callable[[epath.Path, dict[str, Any]], dict[str, Any]]


class _Manager(ocp.CheckpointManager):
    """orbax's manager, which must not ask jax's preemption service.

    That service counts the boundaries of `stop.Stop`.
    """

    def reached_preemption(self, step: int) -> bool:
        return False


class Checkpoints:
    """The checkpoints of one run, in ``<workdir>/checkpoints``; the newest `keep` are kept.

    folder: a whole path here, or gs://BUCKET/PATH.
    keep: how many checkpoints are kept.
    run: a hash of the config of the run. Checkpoints of another run are refused; "": they are not.
    """

    def __init__(self, folder: Any, keep: int, run: str = ""):
        for noisy in ("absl", "asyncio"):  # what fails is raised too: one line is enough
            logging.getLogger(noisy).setLevel(logging.CRITICAL + 1)
        self._folder, self._run = epath.Path(folder), run
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True, create=True)
        self._manager = _Manager(self._folder, options=options)
        self._saving: int | None = None
        self.skipped = [f"{path.name} was not written to its end" for path in self._half_written()]

    def _half_written(self) -> list[epath.Path]:
        """What a kill left of checkpoints: under temporary names or, if the store cannot rename, without their mark."""
        whole = {str(step) for step in self.steps()}
        return [path for path in sorted(self._folder.iterdir()) if path.is_dir() and path.name not in whole]

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, state: TrainState) -> None:
        """Begin to save `state`; it may be changed as soon as this returns.

        Raises `RunError` if this save or the save before it fails; earlier checkpoints stay.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        self.finish()
        self._saving, tree = step, _tree(state)
        about = ocp.args.JsonSave({"format": FORMAT, "step": step, "run": self._run, "sums": sums(tree)})
        try:
            self._manager.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave(tree), about=about))
        except Exception as error:
            raise self._failed(error) from error

    def finish(self) -> None:
        """Return when the save under way is done. Raises `RunError` if it failed."""
        if self._saving is None:
            return
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._failed(error) from error
        self._saving = None

    def _failed(self, error: Exception) -> Exception:
        """The error to raise for an error while saving: the same one if another process was lost."""
        if processes.is_loss(error):
            return error
        step, self._saving = self._saving, None
        earlier = [other for other in self.steps() if other != step]
        kept = f"those of steps {earlier} are kept" if earlier else "there is none before it"
        return RunError(
            f"the checkpoint of step {step} could not be saved ({_line(error)}); {kept}; "
            "free some space and start the same command again"
        )

    def restore(self, abstract: TrainState) -> TrainState | None:
        """The newest state that reads whole, on the shardings of `abstract`; None: there is no checkpoint.

        The state may have been saved on another mesh. A checkpoint that does not read in every process, or was not
        written to its end, is named in `skipped`, and the one before it is used.

        Raises `RunError` if there are checkpoints and none reads, or if the disk, the network or memory fails during a
        read. Raises `UserError` for a checkpoint of a newer format or of another run.
        """
        arrays = self._newest(_tree(abstract), _arrays)
        if arrays is None:
            return None
        return TrainState(**arrays | ({"best": Best(**arrays["best"])} if "best" in arrays else {}))

    def part(self, abstract: dict[str, Any]) -> dict[str, Any] | None:
        """Of the newest state what `abstract` has, such as ``{"params": ...}``, and nothing else; as `restore`."""
        return self._newest(abstract, _part)

    def _newest(self, abstract: dict[str, Any], read: Reader) -> dict[str, Any] | None:
        self.finish()
        for step in reversed(self.steps()):
            try:
                return self._read(step, abstract, read)
            except Exception as error:
                if isinstance(error, UserError) or processes.is_loss(error):
                    raise
                if _may_pass(error):
                    raise RunError(
                        f"the checkpoint of step {step} could not be read now ({_line(error)}); it is kept; start the "
                        "same command again"
                    ) from error
                self.skipped.append(f"checkpoint of step {step} does not read whole ({_line(error)})")
        if self.steps():
            raise RunError("; ".join(self.skipped) + ": no checkpoint is left; start in a new --workdir")
        return None

    def _read(self, step: int, abstract: dict[str, Any], read: Reader) -> dict[str, Any]:
        """The arrays of a checkpoint, checked by their sums. Raises what is wrong with it in any process.

        The parts are read without orbax's manager, which would wait for processes that could not read theirs.
        """
        folder, wrong, tree = self._folder / str(step), None, None
        try:
            about = json.loads((folder / "about" / "metadata").read_text())
            if about["format"] > FORMAT:
                raise UserError(f"checkpoint of step {step}: format {about['format']}; accepted: up to {FORMAT}")
            if self._run and about.get("run", self._run) != self._run:
                raise UserError(f"{folder}: a checkpoint of another config; accepted: those of the run in this folder")
            tree = read(folder / "state", abstract)
        except Exception as error:
            wrong = error
        if processes.anywhere(wrong is not None):  # before the sums, which all compute together
            raise wrong or ValueError("another process could not read it")
        assert tree is not None
        changed = [path for path, total in sums(tree).items() if about["sums"].get(path) != total]
        if changed:
            self._check_width(step, changed[0])
            raise ValueError(f"{changed[0]}: not the bits that were saved")
        return tree

    def _check_width(self, step: int, path: str) -> None:
        """Raise `UserError` if the array at `path` was saved in half precision: nothing trains in that any more."""
        stored = ocp.StandardCheckpointHandler().metadata(self._folder / str(step) / "state").tree
        kinds = {path_of(keys): leaf.dtype for keys, leaf in jax.tree_util.tree_leaves_with_path(stored)}
        if jnp.issubdtype(kinds[path], jnp.floating) and kinds[path].itemsize < 4:
            raise UserError(
                f"checkpoint of step {step}: {path}: given {kinds[path]}; accepted: float32, in which all that trains "
                "is kept: start in a new --workdir"
            )

    def drop_after(self, step: int) -> None:
        """Delete checkpoints newer than `step`, which did not read whole, and checkpoints not written to their end."""
        for newer in [s for s in self.steps() if s > step]:
            self._manager.delete(newer)
        processes.on_first(self._clean)

    def _clean(self) -> None:
        for path in self._half_written():
            path.rmtree()


def _arrays(folder: epath.Path, abstract: dict[str, Any]) -> dict[str, Any]:
    """The tree of arrays in `folder`, on the shardings of `abstract`."""
    return ocp.StandardCheckpointHandler().restore(folder, args=ocp.args.StandardRestore(abstract))


def _part(folder: epath.Path, abstract: dict[str, Any]) -> dict[str, Any]:
    """The arrays in `folder` that `abstract` has, on its shardings; no others are read."""
    how = ocp.checkpoint_utils.construct_restore_args(abstract)
    args = ocp.args.PyTreeRestore(abstract, restore_args=how, partial_restore=True)
    return ocp.PyTreeCheckpointHandler().restore(folder, args=args)


def sums(tree: Any) -> dict[str, int]:
    """The sum of each array's bits as unsigned integers, by path: any one bit that flips changes the sum."""
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


def _may_pass(error: Exception) -> bool:
    """Whether an error says nothing against the file: the disk, the network or memory failed."""
    device = isinstance(error, OSError) and not isinstance(error, FileNotFoundError | NotADirectoryError)
    return device or isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
