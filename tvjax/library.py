"""What a notebook uses: load a model, read its states, write into them, sweep the layers.

Inputs are a `Prompt` or the decoder's own inputs (real features ``[B, T, I]`` or token ids ``[B, T]``).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from tvjax.errors import UserError, reject
from tvjax.experiments import experiment_of, rundir, tvp
from tvjax.nn.model import Model, forward
from tvjax.tasks.prompt import Prompt
from tvjax.vectors import edits as editing
from tvjax.vectors.edits import Write


def load(path: str | Path, member: str | None = None) -> Model:
    """The trained model in a run directory; `member` names one of its population (the last one by default).

    `model.source` holds its settings: `.task` and `.layout` sample prompts for it. Raises `UserError` where `path` is
    no run directory with a checkpoint, or has no such member.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise UserError(f"{path}: no such folder; accepted: a run directory")
    config = rundir.read_config(folder)
    experiment_of(config)
    return tvp.load(folder, config, member)


def _inputs(prompts: Prompt | jax.Array) -> jax.Array:
    return prompts.inputs if isinstance(prompts, Prompt) else jnp.asarray(prompts)


def _tree(model: Model, edits: Any, length: int) -> Any:
    """Writes become the tree that the taps read; a tree passes as it is."""
    if edits is None or isinstance(edits, dict):
        return edits
    return editing.place(edits, num_layers=model.config.num_layers, length=length)


def capture(
    model: Model,
    prompts: Prompt | jax.Array,
    addresses: Sequence[str],
    *,
    positions: str | Sequence[int] = "all",
    edits: Write | Sequence[Write] | dict[str, Any] | None = None,
) -> dict[str, jax.Array]:
    """Activations at `addresses`, ``{address: [B, T, ...]}``, with a leading axis of L for those inside `blocks`.

    positions: "all", "last" (T becomes 1), or indices. Only what is asked for is stored.
    """
    inputs = _inputs(prompts)
    length = inputs.shape[1]
    if isinstance(positions, str):
        if positions not in ("all", "last"):
            raise reject("positions", positions, "'all', 'last', or indices")
        chosen = jnp.arange(length) if positions == "all" else jnp.array([length - 1])
    else:
        chosen = jnp.array(positions)
    _, found = forward(model.decoder, model.params, inputs, edits=_tree(model, edits, length), addresses=addresses)
    return {name: jnp.take(a, chosen, axis=2 if name.startswith("blocks/") else 1) for name, a in found.items()}


def run(
    model: Model,
    prompts: Prompt | jax.Array,
    *,
    edits: Write | Sequence[Write] | dict[str, Any] | None = None,
) -> jax.Array:
    """The readout ``[B, T, O]`` (predictions, or logits for tokens) with `edits` written in."""
    inputs = _inputs(prompts)
    return forward(model.decoder, model.params, inputs, edits=_tree(model, edits, inputs.shape[1]))[0]


def sweep(
    model: Model,
    prompts: Prompt | jax.Array,
    vectors: jax.Array,
    *,
    position: int = -1,
    edit: str = "replace",
) -> jax.Array:
    """The readout ``[L+1, B, O]`` at `position` with ``vectors[l]`` written there at layer l, for l = 0..L in turn.

    vectors: ``[L+1, B, D]``. One program for all layers: the layer is data.
    """
    inputs, layers = _inputs(prompts), model.config.num_layers
    if vectors.shape[0] != layers + 1:
        raise reject("vectors", vectors.shape, f"a leading axis of L + 1 = {layers + 1}")
    if edit not in ("replace", "add"):
        raise reject("edit", edit, "'replace' or 'add'")
    place = position % inputs.shape[1]

    def one(vectors_BD: jax.Array, layer: jax.Array) -> jax.Array:
        tree = editing.affine(
            vectors_BD[None, :, None],
            keep=float(edit == "add"),
            at_layer=editing.at_layer(layer, layers),
            at_position=(jnp.arange(inputs.shape[1]) == place)[None],
        )
        return forward(model.decoder, model.params, inputs, edits=tree, at=slice(place, place + 1))[0][:, 0]

    return jax.vmap(one)(jnp.asarray(vectors), jnp.arange(layers + 1))
