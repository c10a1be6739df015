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

from tvjax.experiments.tvp_language.settings import TVPLanguageSettings
from tvjax.nn.decoder import DecoderConfig
from tvjax.nn.model import Model
from tvjax.parallel.mesh import shard_batch
from tvjax.text.prompts import PackedPrompts, answer_scores, ask, ask_beside, draw_pairs, draw_prompts
from tvjax.train.log import mean_name
from tvjax.train.state import Hyper
from tvjax.vectors import tvp
from tvjax.vectors.from_prompts import at_last


@dataclasses.dataclass(frozen=True, eq=False)
class TuningExperiment:
    """ICL loss + tvp_weight * TVP-loss at the member's prescribed layer l*, for a decoder that is there already.

    Or, of a control, + tvp_weight * the risk of the same fresh pairs, asked in the prompt itself (`ask_beside`).

    A prompt is K + 1 pairs of one task. ICL loss: the mean risk of all its answers. theta_i = h^l* at the last token
    of query i, from which its answer is read. TVP-loss: the mean over i in S of the risk of y'_i in the zero-shot
    prompt of a fresh pair (x'_i, y'_i) of the task, with theta_i written at h^l* of its last token.

    base: the parameters that every member starts from.
    arrays: `text.prompts.tables` of what is trained on.
    """

    settings: TVPLanguageSettings
    config: DecoderConfig
    base: Any
    arrays: Mapping[str, np.ndarray]

    @property
    def batch(self) -> int:
        """Examples of a step."""
        return self.settings.train.batch

    def init(self, key: jax.Array, data: Any) -> Any:
        """The base model's parameters: members differ in what they are trained on."""
        return data["base"]

    def data(self) -> dict[str, Any]:
        """The base model's parameters, and the tables of pairs."""
        return {"base": self.base} | {name: jnp.asarray(a) for name, a in self.arrays.items()}

    def draw(self, data: Any, key: jax.Array, batch: int) -> tuple[jax.Array, jax.Array]:
        """The task of each prompt, ``[B]``, and prompts ``[B, N, W + A]`` of N = K + 1 pairs of it, none twice."""
        return draw_prompts(data, key, batch, self.settings.train.demonstrations + 1, int(self.arrays["count"].max()))

    def _fresh(self, data: Any, key: jax.Array, task_B: jax.Array, *, behind: bool = False) -> PackedPrompts:
        """A fresh pair of its prompt's task for each query in S: ``[B * |S|]`` prompts of one pair, ``[1, W + A]``."""
        s = self.settings
        count = len(tvp.positions(s.tvp, s.train.demonstrations + 1))
        pairs = draw_pairs(data, key, task_B, count if s.tvp.query == "fresh" else 1, behind=behind)
        pairs = jnp.broadcast_to(pairs, (len(task_B), count, pairs.shape[-1]))
        return ask(pairs.reshape(len(task_B) * count, 1, -1), self.arrays)

    def tvp_scores(
        self, params: Any, data: Any, key: jax.Array, task_B: jax.Array, theta_LBND: jax.Array, layer: jax.Array
    ) -> dict[str, jax.Array]:
        """Scores ``{'risk': [B, |S|], ..}`` of TVP at `layer` for every query in S: their mean is the TVP-loss.

        theta_LBND: of the prescribed layers of all members.
        """
        s = self.settings
        theta_BSD = tvp.theta_of(s.tvp, theta_LBND, jnp.searchsorted(jnp.array(s.layers), layer))
        batch, count, width = theta_BSD.shape
        questions = self._fresh(data, key, task_B)
        theta, length, keep = theta_BSD.reshape(-1, width), questions.ids_BT.shape[1], float(s.tvp.edit == "add")
        written = at_last(self.config, theta, layer, questions.last_BN[:, 0], length, keep)
        scores, _ = answer_scores(Model(params, self.config), questions, edits=written)
        return {name: value.reshape(batch, count) for name, value in scores.items()}

    def scores(
        self, params: Any, data: Any, key: jax.Array, batch: int, layer: jax.Array, extra: str = ""
    ) -> dict[str, jax.Array]:
        """``icl_*: [B, N]`` by number of demonstrations of fresh prompts, and what is asked beside it, ``[B, |S|]``.

        extra: "vector" asks x' with theta, ``tvp_*``; "demonstrations" asks the same x' behind the demonstrations that
        theta would have been made of, ``query_*``; "" asks nothing.
        """
        s = self.settings
        prompt_key, pair_key = jax.random.split(key)
        task_B, prompts = shard_batch(self.draw(data, prompt_key, batch))
        questions, number = ask(prompts, self.arrays), prompts.shape[1]
        if extra == "demonstrations":
            chosen = tvp.positions(s.tvp, s.train.demonstrations + 1)
            questions = ask_beside(questions, self._fresh(data, pair_key, task_B, behind=True), chosen)
        per_answer, theta = answer_scores(
            Model(params, self.config), questions, layers=s.layers if extra == "vector" else ()
        )
        scores = {f"icl_{name}": value[:, :number] for name, value in per_answer.items()}
        if extra == "demonstrations":
            scores |= {f"query_{name}": value[:, number:] for name, value in per_answer.items()}
        if theta is not None:
            transferred = self.tvp_scores(params, data, pair_key, task_B, theta, layer)
            scores |= {f"tvp_{name}": value for name, value in transferred.items()}
        return scores

    def loss(
        self, params: Any, data: Any, key: jax.Array, step: jax.Array, hyper: Hyper
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The loss of one member at `step`; what no member has a weight for is left out of the program."""
        s = self.settings
        extra = s.population.extra
        scores = self.scores(params, data, key, s.train.batch, hyper["prescribed_layer"], extra)
        metrics = {mean_name(*name.split("_", 1)): value.mean() for name, value in scores.items()}
        if not extra:
            return metrics["icl_loss"], metrics
        weight = hyper["tvp_weight"] * s.tvp.share(step, s.train.steps)
        return metrics["icl_loss"] + weight * metrics[f"{tvp.EXTRA[extra]}_loss"], metrics

    def evaluate(self, params: Any, data: Any, key: jax.Array, hyper: Hyper) -> dict[str, jax.Array]:
        """ICL and TVP at l*, by number of demonstrations, on fresh prompts of the pairs that are trained on."""
        layer, prompts = hyper["prescribed_layer"], self.settings.evaluation.training_prompts
        scores = self.scores(params, data, key, prompts, layer, "vector")
        return {name: value.mean(0) for name, value in scores.items()}
