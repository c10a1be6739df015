"""Prompts of pairs of text tasks, drawn on the device from tables of tokens, and how well their answers are given."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from tvjax.errors import reject
from tvjax.nn.decoder import PADDING
from tvjax.nn.model import Model, forward
from tvjax.nn.pretrained import Tokenizer
from tvjax.tasks.text import Template, TextTask
from tvjax.text.pieces import Pieces


def tables(
    tasks: Mapping[str, TextTask], template: Template, tokenizer: Tokenizer, shots: int
) -> dict[str, np.ndarray]:
    """All pairs as token ids, such that a prompt of some is, token for token, its whole text.

    first, query: ``[inputs, W]``, each input's query, at the beginning of a prompt (with what the tokenizer, or else
        `template.start`, puts before every text) and behind another pair; -1 behind its end.
    answer, last: ``[answers, A]``, each answer, before another query and at the end of a prompt; -1 behind its end.
    start, count: ``[tasks]``, the first input of each task, and how many inputs a task has.
    which, several: ``[inputs]``, the first row of each input among the answers, and how many answers an input has; only
        if an input has several right answers. Otherwise there are as many answers as inputs.

    Raises `UserError` for a task with too few inputs, and for a template in which tokens cross its parts.
    """
    template = template.led_by(tokenizer)
    rows: dict[str, list[list[int]]] = {name: [] for name in ("first", "query", "answer", "last")}
    several: list[int] = []
    count: list[int] = []
    for name, task in tasks.items():
        if len(task.answers) <= shots:
            raise reject(
                "config.train.demonstrations", shots, f"at most {len(task.answers) - 1}: task {name} has no more"
            )
        queries = [template.before + x + template.between for x in task.answers]
        answers = [template.answer(y) + template.after for ys in task.answers.values() for y in ys]
        number = [len(ys) for ys in task.answers.values()]
        owner = np.repeat(np.arange(len(queries)), number).tolist()
        pieces = Pieces(tokenizer, queries, answers, owner, shots + 1, template.start)
        for kind, known in rows.items():
            known += getattr(pieces, kind)
        several += number
        count.append(len(queries))
    width = {kind: max(map(len, known)) for kind, known in rows.items()}
    wide = max(width["first"], width["query"]), max(width["answer"], width["last"])
    arrays = {kind: _padded(known, wide[kind in ("answer", "last")]) for kind, known in rows.items()}
    arrays |= {"start": np.cumsum(count) - count, "count": np.array(count)}
    if max(several) > 1:
        arrays |= {"which": np.cumsum(several) - several, "several": np.array(several)}
    return arrays


def _padded(rows: Sequence[Sequence[int]], width: int) -> np.ndarray:
    array = np.full((len(rows), width), -1, np.int32)
    for i, row in enumerate(rows):
        array[i, : len(row)] = row
    return array


def draw_prompts(
    data: Mapping[str, jax.Array], key: jax.Array, batch: int, pairs: int, most: int
) -> tuple[jax.Array, jax.Array]:
    """The task of each prompt, ``[B]``, and prompts ``[B, N, W + A]`` of N = `pairs` pairs of it, no input twice.

    -1 where there is no token.

    data: `tables`.
    most: the inputs of its largest task.
    """
    task_key, pair_key = jax.random.split(key)
    task_B = jax.random.randint(task_key, (batch,), 0, data["count"].shape[0])
    priority = jax.random.uniform(pair_key, (batch, most))
    priority = jnp.where(jnp.arange(most)[None] < data["count"][task_B][:, None], priority, -1.0)
    chosen_BN = jax.lax.top_k(priority, pairs)[1] + data["start"][task_B][:, None]
    return task_B, _rows(data, chosen_BN, key)


def draw_pairs(
    data: Mapping[str, jax.Array], key: jax.Array, task_B: jax.Array, count: int, *, behind: bool = False
) -> jax.Array:
    """`count` prompts of one pair of each task, ``[B, count, W + A]``, each drawn alone: a pair may come twice.

    behind: as the last pair of a longer prompt, not as the first one.
    """
    number_BN = jax.random.randint(key, (task_B.shape[0], count), 0, data["count"][task_B][:, None])
    return _rows(data, (number_BN + data["start"][task_B][:, None])[..., None], key, behind)[:, :, 0]


def longest(arrays: Mapping[str, np.ndarray], pairs: int) -> int:
    """The tokens that a prompt of so many different inputs of a task of `tables` has at most."""
    first, query, answer, last = ((arrays[name] >= 0).sum(1) for name in ("first", "query", "answer", "last"))
    if "several" in arrays:
        answer, last = (np.maximum.reduceat(size, arrays["which"]) for size in (answer, last))
    ends = max((first - query).max(), 0) + max((last - answer).max(), 0)  # of those that begin and end a prompt
    tasks = zip(arrays["start"], arrays["start"] + arrays["count"], strict=True)
    return int(ends + max(np.sort((query + answer)[begin:end])[-pairs:].sum() for begin, end in tasks))


def _rows(data: Mapping[str, jax.Array], input_N: jax.Array, key: jax.Array, behind: bool = False) -> jax.Array:
    """Prompts of the pairs of some inputs ``[..., N]``, each with one of its right answers: ``[..., N, W + A]``."""
    answer_N = input_N
    if "several" in data:
        luck_N = jax.random.randint(jax.random.fold_in(key, 2), input_N.shape, 0, data["several"][input_N])
        answer_N = data["which"][input_N] + luck_N
    begin = data["query" if behind else "first"]
    query = jnp.concatenate([begin[input_N[..., :1]], data["query"][input_N[..., 1:]]], axis=-2)
    answer = jnp.concatenate([data["answer"][answer_N[..., :-1]], data["last"][answer_N[..., -1:]]], axis=-2)
    return jnp.concatenate([query, answer], axis=-1)


@struct.dataclass
class PackedPrompts:
    """Prompts of N pairs as one row of tokens each, and where their answers are read.

    ids_BT: the tokens.
    positions_BT: those of the tokens, `PADDING` where there is none.
    answers_BNA: the tokens of the answers.
    real_BNA: which tokens of the answers there are.
    from_BNA: the index in T that each of them is read from.
    begin_BN: the index in T of the first token of each query.
    mask_BTT: True = may look; None: at what stands before.
    """

    ids_BT: jax.Array
    positions_BT: jax.Array
    answers_BNA: jax.Array
    real_BNA: jax.Array
    from_BNA: jax.Array
    begin_BN: jax.Array
    mask_BTT: jax.Array | None = None

    @property
    def last_BN(self) -> jax.Array:
        """The index in T of the last token of each query."""
        return self.from_BNA[:, :, 0]


def ask(prompts: jax.Array, arrays: Mapping[str, np.ndarray]) -> PackedPrompts:
    """What to run for prompts of the pairs in `tables`.

    The tokens of a prompt stand side by side, and padding behind them: T is that of the longest prompt that there can
    be, without its last token, of which nothing is read.

    prompts: ``[B, N, W + A]``, -1 where there is no token.
    arrays: `tables`.
    """
    batch, pairs, slot = prompts.shape
    width, most = arrays["query"].shape[1], longest(arrays, pairs) - 1
    ids_BT = prompts.reshape(batch, -1)
    real_BT = ids_BT >= 0
    index_BT = jnp.cumsum(real_BT, axis=1) - 1  # of a token; where there is none, that of the one before
    to_BT = jnp.where(real_BT, index_BT, most)  # what is written there is dropped
    packed_BT = jnp.zeros((batch, most), ids_BT.dtype).at[jnp.arange(batch)[:, None], to_BT].set(ids_BT, mode="drop")
    positions_BT = jnp.arange(most)[None]
    positions_BT = jnp.where(positions_BT <= index_BT[:, -1:], positions_BT, PADDING)
    before_BT = jnp.clip(index_BT - real_BT, 0, most - 1)
    answer_T = np.flatnonzero(np.arange(pairs * slot) % slot >= width)
    all_of = (jnp.maximum(ids_BT, 0), real_BT, before_BT)
    answers_BNA, real_BNA, from_BNA = (a[:, answer_T].reshape(batch, pairs, -1) for a in all_of)
    return PackedPrompts(packed_BT, positions_BT, answers_BNA, real_BNA, from_BNA, index_BT[:, ::slot])


def ask_beside(questions: PackedPrompts, more: PackedPrompts, chosen: Sequence[int]) -> PackedPrompts:
    """`questions`, and behind them further ones, each as if in the place of one of their queries: N + S pairs.

    A further question sees what stands before that query, and itself, at the positions that it would have there.

    more: the further questions, of one pair each, ``[B * S]`` prompts in the order of `chosen`.
    chosen: the S queries of `questions` (from 0) in whose places `more` stand.
    """
    batch, shown = questions.ids_BT.shape
    count, size = len(chosen), more.ids_BT.shape[1]
    before_BS = questions.begin_BN[:, np.array(chosen)]
    own_BST = more.positions_BT.reshape(batch, count, size)
    own_BST = jnp.where(own_BST == PADDING, PADDING, own_BST + before_BS[..., None])
    positions_BT = jnp.concatenate([questions.positions_BT, own_BST.reshape(batch, -1)], axis=1)
    limit_BT = jnp.concatenate([jnp.full((batch, shown), PADDING), jnp.repeat(before_BS, size, axis=1)], axis=1)
    owner_T = np.concatenate([np.full(shown, -1), np.repeat(np.arange(count), size)])
    causal_BTT = positions_BT[:, None, :] <= positions_BT[:, :, None]
    seen_BTT = (owner_T[None, None, :] == -1) & (positions_BT[:, None, :] < limit_BT[:, :, None])
    own_TT = (owner_T[None, :] == owner_T[:, None]) & (owner_T[:, None] != -1)

    def both(name: str, added: jax.Array) -> jax.Array:
        """Of `questions` and of `more` behind them."""
        return jnp.concatenate([getattr(questions, name), added.reshape(batch, -1, *added.shape[2:])], axis=1)

    offset_BS = shown + size * np.arange(count)[None].repeat(batch, 0).reshape(-1)
    return PackedPrompts(
        both("ids_BT", more.ids_BT),
        positions_BT,
        both("answers_BNA", more.answers_BNA),
        both("real_BNA", more.real_BNA),
        both("from_BNA", more.from_BNA + offset_BS[:, None, None]),
        both("begin_BN", more.begin_BN + offset_BS[:, None]),
        causal_BTT & (seen_BTT | own_TT[None]),
    )


def answer_scores(
    model: Model, questions: PackedPrompts, *, edits: Any = None, layers: Sequence[int] = ()
) -> tuple[dict[str, jax.Array], jax.Array | None]:
    """For each answer its risk (nats a token) and whether all of it is right, ``[B, N]``.

    And h^l at the last token of each query, of the chosen `layers` (1..L): ``[layers, B, N, D]``, None for no layers.
    """
    out, activations = forward(
        model,
        questions.ids_BT,
        edits=edits,
        addresses=("blocks/resid",) if layers else (),
        layers=tuple(layers) or None,
        read_BS=questions.last_BN if layers else None,
        at=questions.from_BNA.reshape(questions.from_BNA.shape[0], -1),
        positions_BT=questions.positions_BT,
        mask_BTT=questions.mask_BTT,
    )
    out = out.reshape(*questions.answers_BNA.shape, -1)
    risk_BNA = optax.softmax_cross_entropy_with_integer_labels(out, questions.answers_BNA) * questions.real_BNA
    logit_BNA = jnp.take_along_axis(out, questions.answers_BNA[..., None], axis=-1)[..., 0]
    right_BNA = (logit_BNA >= out.max(-1)) | ~questions.real_BNA  # an arg-max takes a tenth of a step on a CPU
    scores = {
        "risk": risk_BNA.sum(-1) / questions.real_BNA.sum(-1),
        "accuracy": right_BNA.all(-1).astype(jnp.float32),
    }
    return scores, activations.get("blocks/resid")


def blank_tables(query_tokens: int, answer_tokens: int, tasks: int = 24, pairs: int = 100) -> dict[str, np.ndarray]:
    """What `tables` makes of tasks, with nothing in it: the size of the built-in suite, which matters little."""
    query, answer = (np.zeros((tasks * pairs, width), np.int32) for width in (query_tokens, answer_tokens))
    rows = {"first": query, "query": query, "answer": answer, "last": answer}
    return {**rows, "start": np.arange(tasks) * pairs, "count": np.full(tasks, pairs)}
