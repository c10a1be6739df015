"""What a TVP run trains: a population on a synthetic task, with and without the TVP-loss."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from tvjax.evals import prompting
from tvjax.experiments.tvp.settings import TVPSettings
from tvjax.nn.model import Model
from tvjax.parallel.mesh import make_mesh, shard_batch
from tvjax.tasks import NO_SHIFT, Prompt, draw
from tvjax.train.log import mean_name
from tvjax.train.loop import Trainer
from tvjax.train.state import Hyper
from tvjax.vectors import tvp

BATCHED = ("inputs", "x", "targets", "parameters")
"""What of a `Prompt` has a row for each prompt."""


@dataclasses.dataclass(frozen=True)
class TVPExperiment:
    """ICL loss + tvp_weight * TVP-loss at the member's prescribed layer, on prompts sampled in the step."""

    settings: TVPSettings

    @property
    def batch(self) -> int:
        """Examples of a step."""
        return self.settings.train.batch

    def init(self, key: jax.Array, data: Any) -> Any:
        """Fresh parameters of one member."""
        return self.settings.init(key)

    def data(self) -> dict[str, jax.Array]:
        """Nothing: prompts are sampled on the device."""
        return {}

    def loss(
        self, params: Any, data: Any, key: jax.Array, step: jax.Array, hyper: Hyper
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The loss of one member at `step`; the TVP-loss is left out of the program if no member has a weight.

        The batch is drawn whole. Of several micro-batches each is computed again for its gradient: the activations of
        one are held at a time.
        """
        s = self.settings
        prompt_key, query_key = jax.random.split(key)
        active_X = s.active_inputs(step)
        prompt = s.task.sample(prompt_key, s.train.batch, s.prompt.demonstrations, s.layout, active_X=active_X)
        extra = any(s.population.tvp_weight)
        queries = tvp.draw_queries(s.task, prompt, query_key, s.tvp, active_X) if extra else None
        batched = {name: getattr(prompt, name) for name in BATCHED}

        def part(drawn: Any) -> dict[str, jax.Array]:
            """The metrics of some of the prompts."""
            rows, queries = shard_batch(drawn)
            return self._scores(params, dataclasses.replace(prompt, **rows), queries, step, hyper)

        if s.train.micro_batches == 1:
            metrics = part((batched, queries))
        else:
            # Rows i, i + n, ..: each device's share of the batch is cut where it lies.
            cut = jax.tree.map(
                lambda a: a.reshape(-1, s.train.micro_batches, *a.shape[1:]).swapaxes(0, 1), (batched, queries)
            )
            metrics = jax.tree.map(lambda m: m.mean(0), jax.lax.map(jax.checkpoint(part), cut))
        if not extra:
            return metrics["icl_loss"], metrics
        weight = hyper["tvp_weight"] * s.tvp.share(step, s.train.steps)
        return metrics["icl_loss"] + weight * metrics[f"{tvp.EXTRA[s.tvp.answered_from]}_loss"], metrics

    def _scores(self, params: Any, prompt: Prompt, queries: Any, step: jax.Array, hyper: Hyper) -> dict[str, jax.Array]:
        """The metrics of prompts, and of the queries x' that were drawn for their TVP-loss, if it has a weight."""
        s, model = self.settings, Model(params, self.settings.decoder)
        weights_N = s.curriculum.pairs.mask(s.prompt.demonstrations + 1, step)
        args = (s.task, prompt)
        if queries and s.tvp.answered_from == "demonstrations":
            out, more = tvp.run_with_queries(model, *args, queries, s.tvp)
        else:
            out, theta = tvp.run_prompt(model, prompt)
        metrics = _weighted("icl", s.task.scores(out, prompt.targets), weights_N)
        if not queries:
            return metrics
        if s.tvp.answered_from == "vector":
            layer, lowest = hyper["prescribed_layer"], min(s.population.prescribed_layer)
            more = tvp.tvp_scores(model, *args, theta, layer, queries, s.tvp, lowest=lowest)
        chosen = tvp.positions(s.tvp, s.prompt.demonstrations + 1)
        return metrics | _weighted(tvp.EXTRA[s.tvp.answered_from], more, weights_N[jnp.array(chosen)])

    def evaluate(self, params: Any, data: Any, key: jax.Array, hyper: Hyper) -> dict[str, jax.Array]:
        """The ICL curve and TVP at every layer on fresh prompts of the training tasks, while training goes on."""
        s = self.settings
        drawn = draw(NO_SHIFT, s.task, s.layout, key, s.evaluation.training_prompts, s.prompt.demonstrations)
        scores, _ = prompting.score(Model(params, s.decoder), s.task, drawn, s.tvp.edit)
        return {name: value.mean(0) for name, value in prompting.prompts_first(scores).items()}


def _weighted(kind: str, scores: dict[str, jax.Array], weights_N: jax.Array) -> dict[str, jax.Array]:
    """Means over the batch and over the positions that count."""
    total = jnp.maximum(weights_N.sum(), 1.0)
    return {mean_name(kind, name): (value.mean(0) * weights_N).sum() / total for name, value in scores.items()}


def make_trainer(settings: TVPSettings, mesh: Mesh | None = None) -> Trainer:
    """The programs that train this population on `mesh` or that of the settings."""
    return Trainer(
        TVPExperiment(settings),
        settings.train,
        settings.optimizer,
        mesh or make_mesh(**dataclasses.asdict(settings.mesh)),
        settings.population.name,
        settings.population.hyper,
        jax.random.fold_in(jax.random.key(settings.evaluation.seed), 0),
    )
