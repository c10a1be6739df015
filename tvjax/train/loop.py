"""The loop: resume, then evaluate, save, next steps: in this order, which is what makes resuming exact.

One dispatch is a `lax.scan` of `log_every` steps, with the batches sampled on the device. The metrics of a dispatch
are fetched after the next dispatch was started, so an accelerator never waits for them. A checkpoint is written while
the next two dispatches run. Everything that must be bit-identical after a kill happens on the grid of `log_every`.
"""

import math
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from tvjax import remote
from tvjax.errors import RunError
from tvjax.memory import give_back
from tvjax.parallel import mesh as parallel
from tvjax.parallel import processes
from tvjax.train import profile
from tvjax.train.checkpoint import Checkpoints
from tvjax.train.flops import flops
from tvjax.train.log import MetricsLog, Progress, Row
from tvjax.train.observe import Meter
from tvjax.train.state import (
    Experiment,
    Hyper,
    OptimizerConfig,
    TrainConfig,
    TrainState,
    init_state,
    keep_best,
    make_step,
    optimizer,
    schedule,
)
from tvjax.train.stop import Stop, Stopped

HEAVY = 2**30
"""Bytes of a state above which, on a CPU, the next steps wait until the state is saved.

Steps during the save need room for a second state. On an accelerator a copy on the host is written.
"""


# The metrics that the terminal shows, if an experiment has them.
SHOWN = ("icl_loss", "tvp_loss", "query_loss", "written_loss", "risk")


class Trainer:
    """The compiled programs of one population on a mesh, and the loop that runs them.

    names: one a member.
    hyper: arrays ``[M]``, `seed` and `learning_rate` among them.
    eval_key: the key of every evaluation.

    Nothing is compiled before use.
    """

    def __init__(
        self,
        experiment: Experiment,
        config: TrainConfig,
        optimizer_config: OptimizerConfig,
        mesh: Mesh,
        names: tuple[str, ...],
        hyper: Hyper,
        eval_key: jax.Array,
    ):
        self.config, self.mesh, self.names, self.hyper = config, mesh, names, hyper
        self.data, self._eval_key = parallel.place(mesh, experiment.data()), eval_key
        self.examples = experiment.batch * len(names)
        tx = optimizer(optimizer_config)
        step = make_step(experiment, tx, schedule(optimizer_config, config.steps))

        def init(hyper: Hyper, data: Any) -> TrainState:
            return init_state(experiment, tx, hyper, data, best=bool(config.keep_best))

        def dispatch(state: TrainState, data: Any, hyper: Hyper) -> tuple[TrainState, dict[str, jax.Array]]:
            state, metrics = jax.lax.scan(lambda s, _: step(s, data, hyper), state, length=config.log_every)
            return state, jax.tree.map(lambda m: m.mean(0), metrics)

        def evaluate(params: Any, data: Any, key: jax.Array, hyper: Hyper) -> dict[str, jax.Array]:
            members = jax.vmap(experiment.evaluate, in_axes=(0, None, None, 0), spmd_axis_name="member")
            return members(params, data, key, hyper)

        shapes = jax.eval_shape(init, hyper, self.data)
        shardings = parallel.shardings(mesh, shapes, members=True)
        self.abstract = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), shapes, shardings)
        self.init = jax.jit(init, out_shardings=shardings)
        self.dispatch = jax.jit(dispatch, donate_argnums=0, out_shardings=(shardings, None))
        self.evaluate = jax.jit(evaluate)
        self.keep_best = jax.jit(keep_best, donate_argnums=0, out_shardings=shardings)

    def restore(self, folder: Path, say: Callable[[str], None], run: str = "") -> tuple[Checkpoints, TrainState | None]:
        """The checkpoints in `folder`, and the newest state that reads whole, if any.

        run: as in `Checkpoints`.
        """
        checkpoints = Checkpoints(remote.there(folder) / remote.CHECKPOINTS, self.config.keep_checkpoints, run)
        with jax.set_mesh(self.mesh):
            state = checkpoints.restore(self.abstract)
        for line in checkpoints.skipped:
            say(f"{line}; the one before it is used")
        return checkpoints, state

    def run(self, folder: Path, say: Callable[[str], None] = print, run: str = "") -> TrainState:
        """Train to the end, going on from what `folder` holds, and return the last state.

        run: as in `Checkpoints`.

        Raises `RunError` if a loss is not finite or the disk is full, `Stopped` after SIGTERM.
        """
        checkpoints, state = self.restore(folder, say, run)
        start = -1 if state is None else int(state.step)
        checkpoints.drop_after(start)
        if state is not None:
            say(f"resuming after step {start}")
        recorder = _Recorder(folder, start, self, checkpoints)
        try:
            with jax.set_mesh(self.mesh), Stop() as stop:
                state = self._train(state, checkpoints, recorder, stop)
        except (RunError, Stopped):  # in all processes alike; whatever else ends one does not wait for the others
            checkpoints.finish()
            raise
        finally:
            recorder.close()
        checkpoints.finish()
        return state

    def flops(self) -> Mapping[str, float]:
        """FLOPs of the matrix products of one dispatch, over all devices, by dtype."""
        return flops(self.dispatch.trace(self.abstract, self.data, self.hyper).jaxpr)

    def lower(self) -> dict[str, Any]:
        """`init`, `dispatch` and `evaluate`, lowered by the shapes of their arguments alone."""
        hyper, key = jax.eval_shape(lambda *arrays: arrays, self.hyper, self._eval_key)
        return {
            "init": self.init.lower(hyper, self.data),
            "dispatch": self.dispatch.lower(self.abstract, self.data, hyper),
            "evaluate": self.evaluate.lower(self.abstract.params, self.data, key, hyper),
        }

    def compile(self) -> list[Callable[..., Any]]:
        """`init`, `dispatch` and `evaluate`, compiled side by side: most of the wait before the first step."""
        programs = list(self.lower().values())
        with ThreadPoolExecutor(len(programs)) as pool:
            options = parallel.compiler_options()
            return list(pool.map(lambda program: program.compile(compiler_options=options), programs))

    def _train(self, state: TrainState | None, checkpoints: Checkpoints, record: "_Recorder", stop: Stop) -> TrainState:
        c = self.config
        if state is not None and int(state.step) >= c.steps:
            return state
        init, dispatch, evaluate_params = self.compile()
        give_back()  # compiling a step of many unrolled layers takes as much as the step
        trace = profile.current()
        size = sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(self.abstract))
        waits = size > HEAVY and parallel.on_cpu()
        if state is None:
            state = init(self.hyper, self.data)
            record(0, {}, evaluate_params(state.params, self.data, self._eval_key, self.hyper))
        step = int(state.step)
        waiting: tuple[int, Any] | None = None
        while step < c.steps:
            trace.before(step + 1, step + c.log_every, state)
            step += c.log_every
            record.meter.dispatched(step)
            state, metrics = dispatch(state, self.data, self.hyper)
            trace.after(step, state)
            if all(value.is_ready() for value in metrics.values()):  # several processes on CPUs wait for each dispatch
                record.meter.ended(step)
            if waiting:
                record(*waiting)
            waiting = (step, metrics)
            evaluate = step % c.evaluate_every == 0 or step == c.steps
            stopping = stop.requested()
            save = step % c.checkpoint_every == 0 or step == c.steps or stopping
            if evaluate or save:
                scores = evaluate_params(state.params, self.data, self._eval_key, self.hyper) if evaluate else {}
                record(step, metrics, scores)
                waiting = None
            if evaluate and c.keep_best:
                state = self.keep_best(state, scores[c.keep_best])
            if save:
                record.sync()
                with record.meter.saving():
                    checkpoints.save(state)
                    if waits:
                        checkpoints.finish()
                if stopping:
                    raise Stopped
        return state


class _Recorder:
    """Turns arrays ``[M, ...]`` into rows, one a member, for log and terminal; refuses a loss that is not finite.

    No row is written before the checkpoint of an earlier step is whole, so a kill loses at most one `checkpoint_every`
    of logged steps.
    """

    def __init__(self, folder: Path, start: int, trainer: Trainer, checkpoints: Checkpoints):
        config, self._folder, self._names = trainer.config, folder, trainer.names
        self._checkpoints = checkpoints
        self._log = MetricsLog(folder, start, tensorboard=config.tensorboard) if processes.first() else None
        self.meter = Meter(
            max(start, 0),
            self._log.before if self._log else {},
            steps=config.log_every,
            examples=trainer.examples,
            flops=trainer.flops,
            mesh=trainer.mesh,
        )
        self._progress = Progress(config.steps, max(start, 0), SHOWN)

    def __call__(self, step: int, metrics: dict[str, jax.Array], scores: dict[str, jax.Array] | None = None) -> None:
        values = processes.fetch(metrics)
        if metrics:
            self.meter.ended(step)
        with self.meter.saving():
            self._checkpoints.finish()
        values |= processes.fetch({f"eval_{name}": value for name, value in (scores or {}).items()})
        clock = self.meter.fields(step)
        rows: list[Row] = []
        for m, name in enumerate(self._names):
            rows.append({"step": step, "member": name} | {k: v[m].tolist() for k, v in values.items()} | clock)
            if not math.isfinite(rows[-1].get("loss", 0.0)):
                raise RunError(
                    f"member {name}: the loss is not finite at step {step}; earlier checkpoints are kept; "
                    "try a smaller learning_rate in a new --workdir"
                )
        if self._log is not None:
            self._log.write(rows)
        if metrics:
            self._progress.update(rows, clock["steps_per_second"])

    def sync(self) -> None:
        """Return when all rows are on disk and, if the run directory is remote, copied there."""
        if self._log is not None:
            self._log.sync()
            remote.push(self._folder)

    def close(self) -> None:
        self._progress.close()
        if self._log is not None:
            self._log.close()
