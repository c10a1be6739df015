"""The TVP-loss on text: what fine-tuning minimizes. [ours]

Yang et al. (2025) describe the TVP-loss for models trained from scratch on synthetic tasks; Min et al. (2022, MetaICL)
fine-tune a language model on few-shot prompts of many tasks. To join the two, and all that is definite here, is ours:
the query's last token takes the part of the placeholder z.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tvjax.experiments.text_prompts import answer_scores, ask, draw_pairs, draw_prompts
from tvjax.experiments.tvp_language_settings import TVPLanguageSettings
from tvjax.nn.decoder import Decoder, DecoderConfig
from tvjax.parallel.mesh import shard_batch
from tvjax.train.log import mean_name
from tvjax.train.state import Hyper
from tvjax.vectors import tvp
from tvjax.vectors.from_prompts import at_last


@dataclasses.dataclass(frozen=True, eq=False)
class TuningExperiment:
    """ICL loss + tvp_weight * TVP-loss at the member's prescribed layer l*, for a decoder that is there already.

    A prompt is K + 1 pairs of one task. ICL loss: the mean risk of all its answers. theta_i = h^l* at the last token
    of query i, from which its answer is read. TVP-loss: the mean over i in S of the risk of y'_i in the zero-shot
    prompt of a fresh pair (x'_i, y'_i) of the task, with theta_i written at h^l* of its last token.

    base: the parameters that every member starts from. arrays: `text_prompts.tables` of what is trained on.
    """

    settings: TVPLanguageSettings
    config: DecoderConfig
    base: Any
    arrays: Mapping[str, np.ndarray]

    @property
    def decoder(self) -> Decoder:
        return Decoder(self.config)

    @property
    def batch(self) -> int:
        """Examples of a step."""
        return self.settings.batch

    def init(self, key: jax.Array, data: Any) -> Any:
        """The base model's parameters: members differ in what they are trained on."""
        return data["base"]

    def data(self) -> dict[str, Any]:
        """The base model's parameters, and the tables of pairs."""
        return {"base": self.base} | {name: jnp.asarray(a) for name, a in self.arrays.items()}

    def draw(self, data: Any, key: jax.Array, batch: int) -> tuple[jax.Array, jax.Array]:
        """The task of each prompt, ``[B]``, and prompts ``[B, N, W + A]`` of N = K + 1 pairs of it, none twice."""
        return draw_prompts(data, key, batch, self.settings.demonstrations + 1, int(self.arrays["count"].max()))

    def tvp_scores(
        self, params: Any, data: Any, key: jax.Array, task_B: jax.Array, theta_LBND: jax.Array, layer: jax.Array
    ) -> dict[str, jax.Array]:
        """Scores ``{'risk': [B, |S|], ..}`` of TVP at `layer` for every query in S: their mean is the TVP-loss.

        theta_LBND: of the prescribed layers of all members.
        """
        s = self.settings
        theta_BSD = tvp.theta_of(s.tvp, theta_LBND, jnp.searchsorted(jnp.array(s.layers), layer))
        batch, count, width = theta_BSD.shape
        pairs_BSW = draw_pairs(data, key, task_B, count if s.tvp.query == "fresh" else 1)
        pairs_BSW = jnp.broadcast_to(pairs_BSW, (batch, count, pairs_BSW.shape[-1]))
        asked = ask(pairs_BSW.reshape(batch * count, 1, -1), self.arrays["query"].shape[1])
        theta, length, keep = theta_BSD.reshape(-1, width), asked.ids_BT.shape[1], float(s.tvp.edit == "add")
        written = at_last(self.decoder, theta, layer, asked.last_BN[:, 0], length, keep)
        scores, _ = answer_scores(self.decoder, params, asked, edits=written)
        return {name: value.reshape(batch, count) for name, value in scores.items()}

    def scores(
        self, params: Any, data: Any, key: jax.Array, batch: int, layer: jax.Array, *, moved: bool
    ) -> dict[str, jax.Array]:
        """``icl_*: [B, N]`` by number of demonstrations of fresh prompts and, if `moved`, ``tvp_*: [B, |S|]``."""
        prompt_key, pair_key = jax.random.split(key)
        task_B, prompts = shard_batch(self.draw(data, prompt_key, batch))
        asked = ask(prompts, self.arrays["query"].shape[1])
        icl, theta = answer_scores(self.decoder, params, asked, layers=self.settings.layers if moved else ())
        found = {f"icl_{name}": value for name, value in icl.items()}
        if theta is not None:
            transferred = self.tvp_scores(params, data, pair_key, task_B, theta, layer)
            found |= {f"tvp_{name}": value for name, value in transferred.items()}
        return found

    def loss(
        self, params: Any, data: Any, key: jax.Array, step: jax.Array, hyper: Hyper
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The loss of one member at `step`; the TVP-loss is left out of the program where no member has a weight."""
        s = self.settings
        moved = any(s.population.tvp_weight)
        scores = self.scores(params, data, key, s.batch, hyper["prescribed_layer"], moved=moved)
        metrics = {mean_name(*name.split("_", 1)): value.mean() for name, value in scores.items()}
        if not moved:
            return metrics["icl_loss"], metrics
        weight = hyper["tvp_weight"] * (step >= s.tvp.start_step)
        return metrics["icl_loss"] + weight * metrics["tvp_loss"], metrics

    def evaluate(self, params: Any, data: Any, key: jax.Array, hyper: Hyper) -> dict[str, jax.Array]:
        """ICL and TVP at l*, by number of demonstrations, on fresh prompts of the pairs that are trained on."""
        layer, prompts = hyper["prescribed_layer"], self.settings.evaluation.training_prompts
        scores = self.scores(params, data, key, prompts, layer, moved=True)
        return {name: value.mean(0) for name, value in scores.items()}
