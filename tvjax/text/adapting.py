"""Training an adapter of a frozen decoder, and asking what has been trained: all that is trained in an ATV run."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tvjax.errors import reject
from tvjax.nn.answers import Questions, from_last, judged, risk
from tvjax.nn.decoder import PADDING, Past
from tvjax.nn.model import forward
from tvjax.nn.tokens import Tokens
from tvjax.parallel.batches import GIB, Batches
from tvjax.parallel.mesh import batch_share, shard_batch
from tvjax.settings import setting
from tvjax.text.examples import Examples, epoch_rows
from tvjax.train.flops import total
from tvjax.train.state import ORDER, BatchConfig, Hyper, member_key
from tvjax.vectors.adapters import Adapter, Change, Frozen, Queries
from tvjax.vectors.edits import by_address
from tvjax.vectors.next_token import Reference, compared


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExampleConfig(BatchConfig):
    """The examples that are trained on."""

    examples: int = setting(90, "most of a task", least=1)
    shuffled: bool = setting(True, "each epoch in a new order; False: task by task")
    seeds: tuple[int, ...] = setting((0, 1, 2), "members of one population", least=0, entries=1, distinct=True)


def over_prompts(
    adapter: Adapter,
    score: Callable[..., Any],
    params: Any,
    frozen: Frozen,
    queries: Queries,
    prompts: Questions,
    scale_L: jax.Array,
    key: jax.Array | None = None,
    pasts: Past | None = None,
    more: Any = (),
) -> Any:
    """`score` (`risk` or `judged`) of each prompt of each query, ``[templates, B]``, with what the adapter makes of it.

    What is read of a query is read once for all of its prompts.

    prompts: with leaves ``[templates, B, ...]``.
    key: if there is one, as in training.
    pasts: what stands before the prompts, if that is known (`Examples.before`); then they begin at their last tokens.
    more: further arguments of `score`, with leaves ``[templates, B, ...]``.
    """
    reading = adapter.read(params, frozen, queries, scale_L, key)

    def one(q: Questions, past: Past | None, more: Any) -> Any:
        """The scores of the prompts of one template."""
        if adapter.from_last and past is None:
            past, q = from_last(frozen["target"], q)
        change = adapter.change(params, frozen, reading, q)
        if not isinstance(change, Change):
            raise reject(f"{type(adapter).__name__}.change", type(change).__name__, "a vectors.adapters.Change")
        if change.edits is not None:
            by_address(change.edits)  # an edit at no address would train nothing, without a word
        return score(change.model, q, change.edits, past or change.past, *more)

    return jax.vmap(one)(prompts, pasts, more)


@functools.partial(jax.jit, static_argnums=0)
def read_once(adapter: Adapter, frozen: Frozen, examples: Examples) -> Examples:
    """`examples` with what no step of training changes: what stands before each prompt's last token, if the adapter
    changes nothing there, and what a generator reads, if the generator stays as it is.
    """
    if adapter.reads_frozen:
        rows, draws = jnp.arange(examples.task_I.shape[0]), range(examples.readings.ids_BT.shape[1])
        states = [adapter.state(None, frozen, examples.rows(rows, draw)[0], None) for draw in draws]
        examples = dataclasses.replace(examples, states=jnp.stack(states, axis=1))
    if adapter.from_last:
        read = jax.vmap(lambda q: from_last(frozen["target"], q), in_axes=1, out_axes=1)
        past, prompts = read(examples.prompts)  # keys and values [L, templates, I, G, S, C]
        keys, values = (a.transpose(2, 1, 0, 3, 4, 5) for a in (past.keys, past.values))
        examples = dataclasses.replace(examples, prompts=prompts, past=Past(keys, values, past.positions_BS))
    return examples


def held(batches: Batches, adapter: Adapter, frozen: Frozen, splits: Mapping[str, Examples]) -> Mapping[str, Examples]:
    """The examples of each split with what `read_once` finds, if all of that takes no more than ``batches.memory``.

    Then a step runs the tokens of the answers alone. Of shapes, as a plan has them, the shapes. [ours]
    """
    shapes = {
        split: jax.eval_shape(lambda frozen, examples: read_once(adapter, frozen, examples), frozen, examples)
        for split, examples in splits.items()
    }
    leaves = jax.tree.leaves([(one.past, one.states) for one in shapes.values()])
    if not 0 < sum(leaf.size * leaf.dtype.itemsize for leaf in leaves) <= batches.memory * GIB:
        return splits
    known = shapes
    if not any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(frozen)):
        run = functools.partial(batches, read_once, (adapter,), (frozen,))
        known = {split: _trimmed(run(examples)) for split, examples in splits.items()}
    read = ("prompts", "past", "states")
    return {
        split: dataclasses.replace(examples, **{field: getattr(known[split], field) for field in read})
        for split, examples in splits.items()
    }


def _trimmed(examples: Examples) -> Examples:
    """Without the slots of the past that no prompt fills."""
    if examples.past is None:
        return examples
    used_S = (np.asarray(examples.past.positions_BS) != PADDING).any((0, 1))
    count = 1 + int(np.flatnonzero(used_S).max(initial=0))
    keys, values = (a[..., :count, :] for a in (examples.past.keys, examples.past.values))
    return dataclasses.replace(examples, past=Past(keys, values, examples.past.positions_BS[..., :count]))


@dataclasses.dataclass(frozen=True, eq=False)
class AdapterExperiment:
    """The mean risk of the answers to an example's prompts; the target's parameters are data, never differentiated.

    fewest: how many examples any member is trained on.
    chunk: dev examples in one pass, of each device that shares the batch.
    hyper: beside seed and learning_rate, `scale` ``[M, L]`` and `examples`, the most of a task, ``[M]``.
    """

    config: ExampleConfig
    adapter: Adapter
    frozen: Frozen
    train: Examples
    dev: Examples
    fewest: int
    chunk: int = 128

    @property
    def batch(self) -> int:
        """Examples of a step."""
        return self.config.batch

    def init(self, key: jax.Array, data: Any) -> Any:
        """Fresh parameters of the adapter."""
        return self.adapter.init(key, data["frozen"])

    def data(self) -> dict[str, Any]:
        """What stays on the device: all that is frozen, and all examples."""
        return {"frozen": self.frozen, "train": self.train, "dev": self.dev}

    def loss(
        self, params: Any, data: Any, key: jax.Array, step: jax.Array, hyper: Hyper
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The mean over the batch's examples of the mean over their prompts.

        Of several micro-batches each is computed again for its gradient: the activations of one are held at a time.
        """
        c, train = self.config, data["train"]
        order = {"rank_I": train.rank_I, "most": hyper["examples"], "fewest": self.fewest, "shuffled": c.shuffled}
        rows_B, epoch_B = epoch_rows(member_key(hyper, ORDER), step, c.batch, **order)
        draws = train.readings.ids_BT.shape[1]

        def part(drawn: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
            """The risks of one micro-batch, ``[templates, B]``."""
            row_B, row_epoch_B, noise_key = drawn
            queries, prompts = train.rows(row_B, row_epoch_B % draws)
            queries, prompts = shard_batch(queries), jax.vmap(shard_batch)(prompts)
            args = (queries, prompts, hyper["scale"], noise_key, train.before(row_B))
            return over_prompts(self.adapter, risk, params, data["frozen"], *args)

        if c.micro_batches == 1:
            loss = part((rows_B, epoch_B, key)).mean()
        else:
            rows, epochs = (a.reshape(c.micro_batches, -1) for a in (rows_B, epoch_B))
            keys = jax.random.split(key, c.micro_batches)
            loss = jax.lax.map(jax.checkpoint(part), (rows, epochs, keys)).mean()
        return loss, {"risk": loss}

    def evaluate(self, params: Any, data: Any, key: jax.Array, hyper: Hyper) -> dict[str, jax.Array]:
        """Risk and both accuracies on the dev split, each task counting as much as another.

        accuracy_first: that of the first tokens of answers. Of a question with several right answers, that of the least
        risk, and whether any is right. [ours]
        """
        first, count = self.dev.first_of_question, self.dev.task_I.shape[0]
        tasks = np.asarray(self.dev.task_I)[first]
        counts = np.bincount(tasks)
        weights = jnp.asarray(1 / (counts[tasks] * (counts > 0).sum()))
        share = batch_share()  # a pass gathers the whole target over `fsdp`: as few passes as each device has room for
        size = min(self.chunk * share, -(-count // share) * share)
        parts = np.minimum(np.arange(-(-count // size) * size), count - 1).reshape(-1, size)

        question_I = self.dev.question_I

        def part(row_B: jax.Array) -> jax.Array:
            """The scores of some examples: means over their prompts, ``[B, 3]``, or of each, ``[B, templates, 3]``."""
            args = (params, data["frozen"], *data["dev"].rows(row_B), hyper["scale"], None, data["dev"].before(row_B))
            correct, risks = over_prompts(self.adapter, judged, *args)
            per_prompt = jnp.concatenate([correct.astype(jnp.float32), risks[..., None]], axis=-1)
            return per_prompt.mean(0) if question_I is None else per_prompt.swapaxes(0, 1)

        per_part = jax.lax.map(part, jnp.asarray(parts))
        scores = per_part.reshape(-1, *per_part.shape[2:])[:count]
        if question_I is not None:
            best_right = jax.ops.segment_max(scores[..., :2], question_I, len(first))
            least_risk = jax.ops.segment_min(scores[..., 2:], question_I, len(first))
            scores = jnp.concatenate([best_right, least_risk], axis=-1).mean(1)
        accuracy_first, accuracy, mean_risk = (scores * weights[:, None]).sum(0)
        return {"accuracy": accuracy, "accuracy_first": accuracy_first, "risk": mean_risk}


@functools.partial(jax.jit, static_argnums=0)
def answers(adapter: Adapter, params_M: Any, scale_ML: jax.Array, frozen: Frozen, examples: Examples) -> jax.Array:
    """Whether each member answers each example's prompts right, by first token and whole: ``[I, M, templates, 2]``."""
    queries, prompts = examples.rows(jnp.arange(examples.task_I.shape[0]))

    def member(params: Any, scale_L: jax.Array) -> jax.Array:
        """One member's answers, ``[I, templates, 2]``."""
        return over_prompts(adapter, judged, params, frozen, queries, prompts, scale_L)[0].swapaxes(0, 1)

    return jax.vmap(member, out_axes=1)(params_M, scale_ML)


@functools.partial(jax.jit, static_argnums=0)
def measured(
    adapter: Adapter, params_M: Any, scale_ML: jax.Array, frozen: Frozen, asked: tuple[Examples, Reference, jax.Array]
) -> dict[str, jax.Array]:
    """What `compared` gives of each member's answers to each example's prompts: ``{name: [I, M, templates]}``.

    asked: examples, what they are held against, with leaves ``[I, templates, ...]``, and the states of that for each
        member, ``[I, M, templates, D]``.
    """
    examples, reference, state_IMTD = asked
    queries, prompts = examples.rows(jnp.arange(examples.task_I.shape[0]))

    def member(params: Any, scale_L: jax.Array, state_ITD: jax.Array) -> dict[str, jax.Array]:
        """One member's answers, ``[I, templates]``."""
        known = jax.tree.map(lambda a: a.swapaxes(0, 1), dataclasses.replace(reference, state_BD=state_ITD))
        score = functools.partial(compared, frozen["target"])
        found = over_prompts(adapter, score, params, frozen, queries, prompts, scale_L, more=(known,))
        return {name: a.swapaxes(0, 1) for name, a in found.items()}

    return jax.vmap(member, in_axes=(0, 0, 1), out_axes=1)(params_M, scale_ML, state_IMTD)


def query_flops(adapter: Adapter, params: Any, scale_L: jax.Array, frozen: Frozen, tokens: float, read: float) -> float:
    """FLOPs of the matrix products by which one query more is answered, up to the answer's first token.

    What is done once for all queries of a batch, as adding LoRA's products to the kernels, is not counted.

    params: of one member.
    tokens: about how many the bare query has.
    read: about how many the generator reads of it.
    """
    length = max(1, round(tokens))

    def asked(count: int) -> float:
        """Of so many queries in one batch."""
        one_B1, last_B = jnp.ones((count, 1), jnp.int32), jnp.full(count, length - 1)
        lengths = length, max(1, round(read))
        prompts, readings = (Tokens(jnp.tile(one_B1, (1, n)), jnp.ones((count, n), bool)) for n in lengths)
        queries = Queries(readings.ids_BT, readings.positions_BT, readings.last_B, jnp.zeros(count, jnp.int32))
        q = Questions(prompts, last_B, one_B1, one_B1 > 0)

        def first(params: Any, frozen: Frozen) -> jax.Array:
            """What is said of the first token of each answer."""
            change = adapter.change(params, frozen, adapter.read(params, frozen, queries, scale_L, None), q)
            options: Any = {"edits": change.edits, "past": change.past, "positions_BT": prompts.positions_BT}
            return forward(change.model, prompts.ids_BT, at=slice(length - 1, length), **options)[0]

        return total(jax.make_jaxpr(first)(params, frozen))

    return asked(2) - asked(1)


def trainable(params: Any) -> int:
    """How many numbers one member trains."""
    return sum(leaf.size // leaf.shape[0] for leaf in jax.tree.leaves(params))
