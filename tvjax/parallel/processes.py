"""Several processes that run one program, each on devices of its own: how they join, share, agree and end together.

`jax.distributed` is the engine. A launcher names the job in the environment:

    TVJAX_PROCESSES      how many there are; or "auto": jax finds them by itself (Slurm, TPU pods, Open MPI, Kubernetes)
    TVJAX_PROCESS_ID     which of them this one is, from 0
    TVJAX_COORDINATOR    host:port at which process 0 can be reached

All processes run the same lines on the same values. Arrays of a mesh over all processes lie in parts; values of other
arrays are computed by each process on its own. Process 0, the first, alone writes files and prints. jax is imported on
use: the command line refuses wrong flags without waiting for jax.
"""

import glob
import os
import re
import sys
from collections.abc import Callable
from typing import Any

from tvjax.errors import RunError, UserError, reject

HEARTBEAT_SECONDS = 20
"""Seconds of silence after which a process is lost; the others then end, within twice as long at most."""

ENDING_SECONDS = 6 * 3600
"""Seconds that the others wait at the end for the first, which writes the report."""

LOST = 75
"""The exit code if another process was lost: the same command on all goes on from the last checkpoint."""

_LINE_BYTES = 2048
_SIGNS_OF_LOSS = re.compile(
    r"[Gg]loo|NCCL|UNAVAILABLE|DEADLINE_EXCEEDED|heartbeat|[Cc]onnection (reset|closed|refused)"
)
_NUMBER = re.compile(r"[0-9]{1,9}")
_HOST = re.compile(r"[\w.-]+|\[[0-9a-fA-F:.%]+\]")
_rank = {"index": 0, "count": 1}


def join() -> None:
    """Join the job that the environment names, if it names one. Call it before jax has any device.

    Raises `UserError` if the environment names a part of a job.
    """
    job = _job()
    if job is None:
        return
    jax = start()
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # Programs with collectives that run at the same time on a CPU can wait for each other for ever.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    try:
        jax.distributed.initialize(
            **job, heartbeat_timeout_seconds=HEARTBEAT_SECONDS, shutdown_timeout_seconds=ENDING_SECONDS
        )
    except (ValueError, KeyError, IndexError, TypeError) as error:  # a launcher's variables are missing, or no numbers
        named = os.environ["TVJAX_PROCESSES"]
        raise UserError(
            f"TVJAX_PROCESSES={named}: {error or type(error).__name__}; accepted: auto where jax can tell the job"
        ) from None
    _rank.update(index=jax.process_index(), count=jax.process_count())
    if not first():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115


def _job() -> dict[str, Any] | None:
    """The job of the environment, as arguments for jax; {}: jax finds the job itself; None: there is no job.

    Raises `UserError` if the environment names a part of a job, or impossible values.
    """
    named, number, address = (
        os.environ.get(f"TVJAX_{name}", "") for name in ("PROCESSES", "PROCESS_ID", "COORDINATOR")
    )
    if named == "auto":
        return {}
    if not (named or number or address):
        return None
    if not _NUMBER.fullmatch(named) or int(named) < 1:
        accepted = "auto, or a number, 1 or more; with it TVJAX_PROCESS_ID, a number, and TVJAX_COORDINATOR, host:port"
        raise reject("TVJAX_PROCESSES", named, accepted)
    if not _NUMBER.fullmatch(number) or int(number) >= int(named):
        raise reject("TVJAX_PROCESS_ID", number, f"a number, 0..{int(named) - 1}, as TVJAX_PROCESSES={named}")
    host, _, port = address.rpartition(":")
    if not _HOST.fullmatch(host) or not _NUMBER.fullmatch(port) or not 1 <= int(port) < 2**16:
        raise reject("TVJAX_COORDINATOR", address, "host:port, where process 0 can be reached; a port is 1..65535")
    return {"num_processes": int(named), "process_id": int(number), "coordinator_address": address}


def keep_plugins_quiet() -> None:
    """Have jax's plugins for TPUs and GPUs say nothing if they are installed for plans alone, and have no device here.

    libtpu would ask the network which TPUs there are, and say in every run that it does not know. The plugin for GPUs
    would look for CUDA's libraries, and show a traceback in every run. Call this before jax has any device.
    """
    if not glob.glob("/dev/accel*") + glob.glob("/dev/vfio/[0-9]*"):
        known = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5p-8"}
        for name, value in known.items():
            os.environ.setdefault(name, value)
    if not glob.glob("/dev/nvidia[0-9]*") + glob.glob("/dev/dxg"):  # the second: Windows' own, under WSL
        os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")


def start() -> Any:
    """The module jax. Raises `UserError` if jax refuses a variable of the environment."""
    keep_plugins_quiet()
    try:
        import jax
    except ValueError as error:
        raise UserError(f"jax does not start: {error}; accepted: JAX_... variables as jax documents them") from None
    return jax


def check_devices() -> None:
    """Raise `UserError` if the environment asks jax for devices that are not here.

    A busy device keeps jax's own error: the same command may find it free later.
    """
    variables = [
        f"{name}={os.environ[name]}" for name in ("JAX_PLATFORMS", "JAX_NUM_CPU_DEVICES") if os.environ.get(name)
    ]
    try:
        start().devices()
    except (RuntimeError, AssertionError) as error:
        text = " ".join(str(error).split())
        if not variables or re.search("UNAVAILABLE|in use|busy", text):
            raise
        why = f" ({text})" if text else ""
        raise UserError(f"{' '.join(variables)}: jax has no such device here; accepted: what it finds{why}") from None


def count() -> int:
    """How many processes the job has."""
    return _rank["count"]


def index() -> int:
    """The number of this process, from 0."""
    return _rank["index"]


def first() -> bool:
    """Whether this is process 0, which writes files and prints."""
    return index() == 0


def fetch(tree: Any) -> Any:
    """The whole arrays of `tree`, on the host of every process. All processes must call it."""
    import jax
    from jax.experimental import multihost_utils

    def whole(x: Any) -> Any:
        """An array that this process can read."""
        apart = isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated)
        return multihost_utils.process_allgather(x, tiled=True) if apart else x

    return jax.device_get(jax.tree.map(whole, tree))


def own(mesh: Any) -> Any:
    """The mesh for what this process computes alone: `mesh`, or with several processes one device of this process."""
    if count() == 1:
        return mesh
    import jax

    axes = mesh.axis_names
    return jax.make_mesh((1,) * len(axes), axes, axis_types=mesh.axis_types, devices=jax.local_devices()[:1])


def on_first(do: Callable[[], Any]) -> None:
    """Call `do` in the first process while the others wait.

    A `UserError` or `RunError` of `do` is raised in all processes.
    """
    if count() == 1:
        do()
        return
    import numpy as np
    from jax.experimental import multihost_utils

    message = np.zeros(_LINE_BYTES, np.uint8)
    if first():
        try:
            do()
        except (UserError, RunError) as error:
            line = bytes([error.exit_code]) + str(error).encode()[: _LINE_BYTES - 1]
            message[: len(line)] = np.frombuffer(line, np.uint8)
    received = bytes(multihost_utils.broadcast_one_to_all(message))
    if received[0]:
        kind = UserError if received[0] == UserError.exit_code else RunError
        raise kind(received[1:].rstrip(b"\0").decode(errors="replace"))


def anywhere(flag: bool) -> bool:
    """Whether `flag` is true in any process, the same answer in all. All processes must call it."""
    if count() == 1:
        return flag
    import numpy as np
    from jax.experimental import multihost_utils

    return bool(multihost_utils.process_allgather(np.array(flag)).any())


def is_loss(error: BaseException) -> bool:
    """Whether an error, of jax or wrapped by orbax, says that another process of the job no longer answers."""
    lines = [str(e) for e in (error, error.__cause__, error.__context__) if e is not None]
    return count() > 1 and any(map(_SIGNS_OF_LOSS.search, lines))


def leave(code: int) -> None:
    """End this process at once, without waiting for the others. Does nothing if there is one process."""
    if count() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
