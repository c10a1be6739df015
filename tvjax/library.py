"""What a notebook uses: load a model, read its states, write into them, sweep the layers, generate.

Prompts are a `Prompt`, texts (for a model with a tokenizer), `Tokens`, or the decoder's own inputs (real features
``[B, T, I]`` or token ids ``[B, T]``). Texts are padded on the left; padding changes no number.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from tvjax.errors import UserError, reject
from tvjax.files import read_json
from tvjax.nn import decoding
from tvjax.nn.decoder import PADDING, PRECISIONS, Decoder, Precision
from tvjax.nn.model import Model, forward
from tvjax.nn.tokens import Tokens, pad
from tvjax.tasks.prompt import Prompt
from tvjax.vectors import edits as editing
from tvjax.vectors import origin
from tvjax.vectors.edits import Write

Prompts = Prompt | Tokens | jax.Array | Sequence[str] | str
Edits = Write | Sequence[Write] | dict[str, Any] | None


def load(
    path: str | Path,
    member: str | None = None,
    *,
    dtype: str | None = None,
    mesh: Mesh | None = None,
    unroll: int = 0,
    precision: Precision | None = None,
) -> Model:
    """The model in a run directory or in a Hugging Face folder (config.json, safetensors, tokenizer.json).

    Of a run, `member` names one of its population (the last one by default), and `model.source` holds its settings:
    `.task` and `.layout` sample prompts for it. Of a Hugging Face folder, dtype is that of parameters and activations
    (the file's by default), the parameters lie on `mesh`, and unroll is how many layers one iteration runs: 0, all of
    them, is fastest and compiles longest, and `generate` then makes a second copy of the blocks' parameters, which 1
    does not. precision: how exact products of float32 are on a GPU or TPU, "highest", "high" or "default"; None is that
    of the run, and of a Hugging Face folder "highest". Raises `UserError` where `path` is neither.
    """
    from tvjax.nn.pretrained import load_model

    if precision not in (None, *PRECISIONS):
        raise reject("precision", precision, f"None or one of {', '.join(PRECISIONS)}")
    folder = Path(path)
    if not folder.is_dir():
        raise UserError(f"{path}: no such folder; accepted: a run directory or a Hugging Face folder")
    values = read_json(folder / "config.json", "accepted: a run directory or a Hugging Face folder")
    if "model_type" in values:
        model = load_model(folder, dtype=dtype, mesh=mesh, unroll=unroll)
    else:
        from tvjax.experiments import experiment_of, tvp

        experiment_of(values)
        model = tvp.load(folder, values, member)
    if precision is None:
        return model
    return dataclasses.replace(model, config=dataclasses.replace(model.config, matmul_precision=precision))


def atv(
    model: Model, run_dir: str | Path, queries: Sequence[str] | str, *, method: str = "", any_model: bool = False
) -> jax.Array:
    """The vectors that an ATV run writes for queries, ``[N, B, D]``: ``tvjax.add(vectors, layers=...)`` takes them.

    model: the run's target; queries: bare inputs, which the run's template shows to its generator; method: "atv_last"
    or "atv_all" ("" is the first that the run has), to be added at "last" or "all" of the prompt. lambda is multiplied
    in; the layers are all of the model's, or those of the run's config.atv.layers. Raises `UserError` where `run_dir`
    holds no ATV run, and for a model that its vectors are not of, unless `any_model`.
    """
    from tvjax.experiments import atv as experiment

    folder = Path(run_dir)
    values = read_json(folder / "config.json", "accepted: the workdir of an ATV run")
    if values.get("experiment") != "atv":
        raise reject("run_dir", str(run_dir), "the workdir of an ATV run")
    asked = [queries] if isinstance(queries, str) else list(queries)
    return experiment.write_vectors(model, folder, values, asked, method, any_model)


def export(model: Model, path: str | Path) -> None:
    """Write `model` as a folder that `transformers` loads. Raises `UserError` for a decoder that it has no name for."""
    from tvjax.nn.pretrained import save_model

    save_model(model, Path(path))


def tokenize(model: Model, prompts: Prompts) -> tuple[jax.Array, jax.Array | None]:
    """The decoder's inputs and their positions ``[B, T]`` (None: 0, 1, ..). Raises `UserError` for empty prompts."""
    if isinstance(prompts, str):
        prompts = [prompts]
    if isinstance(prompts, Prompt):
        return prompts.inputs, None
    if isinstance(prompts, Sequence):
        tokenizer = getattr(model.source, "tokenizer", None)
        if tokenizer is None:
            raise reject("prompts", "texts", "token ids, since this model has no tokenizer")
        prompts = pad(tokenizer.encode(prompts))
    if isinstance(prompts, Tokens):
        whole = not isinstance(prompts.valid_BT, jax.core.Tracer) and bool(prompts.valid_BT.all())
        return prompts.ids_BT, None if whole else prompts.positions_BT
    return jnp.asarray(prompts), None


def _places(inputs: jax.Array, positions_BT: jax.Array | None) -> jax.Array:
    return jnp.arange(inputs.shape[1])[None] if positions_BT is None else positions_BT


def _index(positions_BT: jax.Array, position: jax.Array) -> jax.Array:
    """Where in T each prompt's own token number `position` ``[N]`` stands (negative: from its end): ``[B, N]``."""
    count_B = (positions_BT != PADDING).sum(1)
    wanted_BN = jnp.where(position[None] < 0, count_B[:, None] + position[None], position[None])
    return jnp.argmax(positions_BT[:, None, :] == wanted_BN[:, :, None], axis=-1)


def _tree(model: Model, edits: Edits, positions_BT: jax.Array) -> Any:
    """Writes become the tree that the taps read; a tree passes as it is. Vectors of another model are refused."""
    origin.check(model, edits)
    return edits if edits is None or isinstance(edits, dict) else editing.place(edits, model.config, positions_BT)


def capture(
    model: Model,
    prompts: Prompts,
    addresses: Sequence[str],
    *,
    positions: str | Sequence[int] = "all",
    layers: Sequence[int] | None = None,
    edits: Edits = None,
) -> dict[str, jax.Array]:
    """Activations at `addresses`, ``{address: [B, T, ...]}``, with a leading axis of layers for those inside `blocks`.

    positions: "all" (of the padded array), "last" (of each prompt; T becomes 1), or indices among each prompt's own
    tokens. layers: numbers 1..L, all by default. Only what is asked for is stored.
    """
    inputs, positions_BT = tokenize(model, prompts)
    places_BT = _places(inputs, positions_BT)
    read_BN = None
    if isinstance(positions, str):
        if positions not in ("all", "last"):
            raise reject("positions", positions, "'all', 'last', or indices")
        if positions == "last":
            read_BN = _index(places_BT, jnp.array([-1]))
    else:
        shortest = int((places_BT != PADDING).sum(1).min())
        for position in positions:
            if not -shortest <= position < shortest:
                raise reject("positions", position, f"-{shortest}..{shortest - 1}, the tokens of the shortest prompt")
        read_BN = _index(places_BT, jnp.array(list(positions), jnp.int32))
    return forward(
        model.decoder,
        model.params,
        inputs,
        edits=_tree(model, edits, places_BT),
        addresses=addresses,
        layers=layers,
        read_BN=read_BN,
        at=slice(0, 1),
        positions_BT=positions_BT,
    )[1]


def run(model: Model, prompts: Prompts, *, edits: Edits = None, last: bool = False) -> jax.Array:
    """The readout ``[B, T, O]`` (predictions, or logits for tokens) with `edits` written in.

    last: only that of each prompt's last position, ``[B, 1, O]``.
    """
    inputs, positions_BT = tokenize(model, prompts)
    places_BT = _places(inputs, positions_BT)
    at = jnp.broadcast_to(_index(places_BT, jnp.array([-1])), (inputs.shape[0], 1)) if last else slice(None)
    tree = _tree(model, edits, places_BT)
    return forward(model.decoder, model.params, inputs, edits=tree, at=at, positions_BT=positions_BT)[0]


def generate(
    model: Model,
    prompts: Prompts,
    *,
    max_new_tokens: int,
    edits: Write | Sequence[Write] | None = None,
    during: Literal["prompt", "steps", "both"] | None = None,
    addresses: Sequence[str] = (),
    stop: Sequence[int] | None = None,
    key: jax.Array | None = None,
    temperature: float = 1.0,
    top_k: int = 0,
) -> Any:
    """Continue prompts with a cache: texts give texts, without the token that ended them, anything else a `Generated`.

    `edits` act on the prompt, on each new token as it is read ("steps"), or on both; by default on what their positions
    name: "all" is both, anything else is of the prompt. Greedy, or sampled where there is a `key`: an answer depends on
    the key, on its prompt, and on how many prompts before it in the batch are equal to it. `addresses` are captured at
    the state that each new token was read from. `stop` are token ids that end a prompt, by default the end tokens of
    the model's folder (`model.source.end_ids`); given ones stand in their place, and () is none.
    """
    stop = getattr(model.source, "end_ids", ()) if stop is None else stop
    if max_new_tokens < 1:
        raise reject("max_new_tokens", max_new_tokens, "1 or more")
    if during not in (None, "prompt", "steps", "both"):
        raise reject("during", during, "'prompt', 'steps', 'both' or None")
    if temperature <= 0:
        raise reject("temperature", temperature, "more than 0; greedy decoding is the one without a key")
    inputs, positions_BT = tokenize(model, prompts)
    places_BT = jnp.broadcast_to(_places(inputs, positions_BT), inputs.shape)
    longest, limit = int((places_BT != PADDING).sum(1).max()) + max_new_tokens - 1, model.config.max_positions
    if model.config.positions == "learned" and longest > limit:
        raise reject("max_new_tokens", max_new_tokens, f"prompts and new tokens within the model's {limit} positions")
    writes = [edits] if isinstance(edits, Write) else list(edits or ())
    origin.check(model, writes)
    later = [w for w in writes if during in ("steps", "both") or (during is None and w.positions == "all")]
    made = decoding.generate(
        model.decoder,
        model.params,
        Tokens(inputs, places_BT != PADDING),
        max_new_tokens,
        prompt_edits=editing.place(writes, model.config, places_BT) if writes and during != "steps" else None,
        step_edits=editing.place_step(later, model.config) if later else None,
        addresses=addresses,
        stop=stop,
        key=key,
        temperature=temperature,
        top_k=top_k,
    )
    if not isinstance(prompts, str | Sequence):
        return made
    ids, count = np.asarray(made.ids_BN), np.asarray(made.count_B)
    texts = [
        model.source.tokenizer.decode([i for i in row[:n] if i not in stop]) for row, n in zip(ids, count, strict=True)
    ]
    return texts[0] if isinstance(prompts, str) else texts


def sweep(
    model: Model,
    prompts: Prompts,
    vectors: jax.Array,
    *,
    position: int = -1,
    edit: str = "replace",
    any_model: bool = False,
) -> jax.Array:
    """The readout ``[L+1, B, O]`` at `position` with ``vectors[l]`` written there at layer l, for l = 0..L in turn.

    vectors: ``[L+1, B, D]``. One program for all layers: the layer is data. What stands before `position` does not
    depend on it, so that is read once, and each layer costs one token. Vectors of a file are refused by a model that
    they are not of, unless `any_model`.
    """
    if not any_model:
        origin.check(model, vectors)
    vectors = jnp.asarray(vectors)
    inputs, positions_BT = tokenize(model, prompts)
    layers = model.config.num_layers
    if vectors.shape[0] != layers + 1:
        raise reject("vectors", vectors.shape, f"a leading axis of L + 1 = {layers + 1}")
    if edit not in ("replace", "add"):
        raise reject("edit", edit, "'replace' or 'add'")
    places_BT = jnp.broadcast_to(_places(inputs, positions_BT), inputs.shape[:2])
    index_B = _index(places_BT, jnp.array([position]))[:, 0]
    return _sweep(model.decoder, edit, model.params, inputs, places_BT, index_B, jnp.asarray(vectors))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _sweep(
    decoder: Decoder,
    edit: str,
    params: Any,
    inputs: jax.Array,
    positions_BT: jax.Array,
    index_B: jax.Array,
    vectors: jax.Array,
) -> jax.Array:
    past, token, here_B1 = decoding.before(decoder, params, inputs, positions_BT, index_B)

    def one(vectors_BD: jax.Array, layer: jax.Array) -> jax.Array:
        tree = editing.affine(
            vectors_BD[None, :, None],
            keep=float(edit == "add"),
            at_layer=editing.at_layer(layer, decoder.config.num_layers),
            at_position=jnp.ones((1, 1), bool),
        )
        return forward(decoder, params, token, edits=tree, positions_BT=here_B1, past=past)[0][:, 0]

    return jax.vmap(one)(vectors, jnp.arange(decoder.config.num_layers + 1))
