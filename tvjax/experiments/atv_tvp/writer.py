"""A frozen TVP-trained target, and the writer that is trained to make vectors for it.

The writer is a `methods.atv.ATV` as it is: a generator, and an expansion to the one layer at which the target's theta
stands. The vector that the writer makes of its state at a query takes theta's place: this vector is written at z of a
zero-shot prompt, in the way (replaced, or added) that the target was trained with. [ours]
"""

import dataclasses
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from tvjax.experiments.atv_tvp.settings import ATVTVPSettings
from tvjax.methods.atv import ATV
from tvjax.nn.model import Model
from tvjax.parallel.mesh import shard_batch
from tvjax.tasks import NO_SHIFT, Prompt, ShiftedPrompts, draw
from tvjax.train.log import mean_name
from tvjax.train.state import Hyper
from tvjax.vectors import tvp
from tvjax.vectors.adapters import Queries

if TYPE_CHECKING:
    from tvjax.experiments.tvp.settings import TVPSettings

Scores = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True, eq=False)
class Target:
    """The frozen member, its settings, and the layer at which its theta stands."""

    settings: "TVPSettings"
    model: Model
    name: str
    layer: int

    def theta(self, model: Model, prompt: Prompt) -> jax.Array:
        """Theta at the layer, at every query: ``[B, N, D]``."""
        return tvp.run_prompt(model, prompt)[1][self.layer]

    def ask(self, model: Model, vectors_BND: jax.Array, x: jax.Array, y: jax.Array) -> Scores:
        """Scores ``[B, N]`` of the answers to queries x (``[B, N, X]`` or ``[B, N]``), each with a vector written."""
        s = self.settings
        vectors, queries = (a.reshape(-1, *a.shape[2:]) for a in (vectors_BND, x))
        out = tvp.prompt_with(model, s.task, s.layout, vectors, self.layer, queries, s.tvp.edit, lowest=self.layer)
        return s.task.scores(out.reshape(*x.shape[:2], -1), y)

    def ask_all(self, model: Model, vectors_BND: jax.Array, drawn: ShiftedPrompts) -> Scores:
        """`ask` with each prompt's one fresh query, the same for all of its vectors."""
        count = vectors_BND.shape[1]
        x, y = (jnp.repeat(a[:, None], count, axis=1) for a in (drawn.fresh_x, drawn.fresh_answers))
        return self.ask(model, vectors_BND, x, y)


@dataclasses.dataclass(frozen=True, eq=False)
class WriterExperiment:
    """The mean over S of the risk with the written vector, or of its squared distance from theta."""

    settings: ATVTVPSettings
    target: Target

    @property
    def adapter(self) -> ATV:
        t = self.target.settings
        return ATV(t.decoder, self.settings.generator(t), (self.target.layer,))

    @property
    def batch(self) -> int:
        """Examples of a step."""
        return self.settings.train.batch

    def init(self, key: jax.Array, data: Any) -> Any:
        """A fresh generator and expansion."""
        t = self.target.settings
        shape = jax.eval_shape(lambda key: t.task.sample(key, 1, 1, t.layout).inputs, key)
        return self.adapter.init(key, {"input_width": shape.shape[-1]})

    def data(self) -> dict[str, Any]:
        """The target: its parameters are data, never differentiated."""
        return {"target": self.target.model}

    def write(self, params: Any, prompt: Prompt) -> jax.Array:
        """The vectors written at every query of the prompts, ``[B, N, D]``: by causality, after 0..K demonstrations."""
        batch, length = prompt.inputs.shape[:2]
        positions_BT = jnp.broadcast_to(jnp.arange(length)[None], (batch, length))

        def at(index: jax.Array) -> jax.Array:
            """Those at one query. Under `vmap` the generator reads the prompts once for all of them."""
            queries = Queries(prompt.inputs, positions_BT, jnp.full(batch, index), jnp.zeros(batch, jnp.int32))
            return self.adapter.read(params, {}, queries, jnp.ones(1), None)[:, 0]

        return jax.vmap(at, out_axes=1)(jnp.arange(length)[prompt.queries])

    def loss(
        self, params: Any, data: Any, key: jax.Array, step: jax.Array, hyper: Hyper
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The loss of one member on fresh prompts; each position in S has a fresh query of its own."""
        s, t = self.settings, self.target.settings
        prompt_key, query_key = jax.random.split(key)
        prompt = t.task.sample(prompt_key, s.train.batch, t.prompt.demonstrations, t.layout)
        prompt = dataclasses.replace(prompt, inputs=shard_batch(prompt.inputs))
        chosen = jnp.array(s.positions(t))
        written_BSD = self.write(params, prompt)[:, chosen]
        if s.writer.objective == "theta":
            theta_BSD = self.target.theta(data["target"], prompt)[:, chosen]
            loss = jnp.square(written_BSD - theta_BSD).mean()
            return loss, {"distance": loss}
        x, y = t.task.draw_pairs(query_key, prompt.parameters, len(chosen))
        scores = self.target.ask(data["target"], written_BSD, x, y)
        return scores["risk"].mean(), {mean_name("written", name): value.mean() for name, value in scores.items()}

    def evaluate(self, params: Any, data: Any, key: jax.Array, hyper: Hyper) -> dict[str, jax.Array]:
        """Scores by number of demonstrations, and the explained variance of theta after all of them."""
        s, t = self.settings, self.target.settings
        drawn = draw(NO_SHIFT, t.task, t.layout, key, s.evaluation.training_prompts, t.prompt.demonstrations)
        written_BND = self.write(params, drawn.prompt)
        scores = self.target.ask_all(data["target"], written_BND, drawn)
        theta_BD, written_BD = self.target.theta(data["target"], drawn.prompt)[:, -1], written_BND[:, -1]
        left = jnp.square(theta_BD - written_BD).sum() / jnp.square(theta_BD - theta_BD.mean(0, keepdims=True)).sum()
        return {name: value.mean(0) for name, value in scores.items()} | {"explained_variance": 1 - left}

    def score(self, params_M: Any, data: Any, drawn: ShiftedPrompts) -> dict[str, Any]:
        """All that one chunk of prompts shows: scores ``[(M,) B, N]``, and the vectors after all demonstrations."""
        t, frozen = self.target, data["target"]
        theta_BND = t.theta(frozen, drawn.prompt)

        def member(params: Any) -> dict[str, Any]:
            """What one writer makes of the prompts; shuffled: the vectors of each prompt's neighbour."""
            written_BND = self.write(params, drawn.prompt)
            shuffled = t.ask_all(frozen, jnp.roll(written_BND, 1, axis=0), drawn)
            return {
                "written": t.ask_all(frozen, written_BND, drawn),
                "shuffled": shuffled,
                "vectors": written_BND[:, -1],
            }

        s = t.settings
        bare = tvp.zero_shot(frozen, s.task, s.layout, drawn.fresh_x)
        return {
            "members": jax.vmap(member)(params_M),
            "theta": t.ask_all(frozen, theta_BND, drawn),
            "zero_shot": s.task.scores(bare[:, None], drawn.fresh_answers[:, None]),
            "vectors": theta_BND[:, -1],
        }
