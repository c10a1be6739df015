"""The tasks of Garg et al. 2022 ("What Can Transformers Learn In-Context?") at their size, for accelerators.

The argument chooses a task: linear (default), quadratic, relu_network, decision_tree, linear_classification. Only what
differs from configs/tvp_synthetic.py stands here. "Garg": read in their paper or in their released configuration;
"ours": our choice. Ours throughout:
- the layout x, z, y with a placeholder z, at which answers are read; Garg alternate x and y and read at x;
- x and y each have channels of their own in the front end; Garg's y takes the first of x's, through the same map;
- an answer has unit variance, by w ~ N(0, I_d) / sqrt(d) and its like, and a risk of 1 is chance; Garg do not divide,
  and their squared errors are d times ours (except for decision trees and classification);
- two members, with and without the TVP-loss; Garg train one model on the ICL loss alone.
"""

import tvp_synthetic
from ml_collections import ConfigDict

from tvjax.errors import reject


def _as_linear(config: ConfigDict) -> None:
    """Linear; and quadratic and linear classification, for which ours is the choice of linear's curriculum."""


def _longer(config: ConfigDict) -> None:
    config.prompt.demonstrations = 100  # Garg: 101 pairs
    config.curriculum.pairs.start = 26  # Garg
    config.curriculum.pairs.increment = 5  # Garg: all 101 pairs from step 30,000 on
    config.model.max_positions = 640  # ours: 201 pairs, twice the demonstrations, take 602


def _relu_network(config: ConfigDict) -> None:
    config.task.hidden_width = 100  # Garg
    _longer(config)


def _decision_tree(config: ConfigDict) -> None:
    config.task.depth = 4  # Garg
    _longer(config)


TASKS = {
    "linear": _as_linear,
    "quadratic": _as_linear,
    "relu_network": _relu_network,
    "decision_tree": _decision_tree,
    "linear_classification": _as_linear,
}


def get_config(task: str = "linear") -> ConfigDict:
    if task not in TASKS:
        raise reject("--config argument", task, ", ".join(TASKS))
    config = tvp_synthetic.get_config(task)
    config.task.input_width = 20  # Garg: d

    config.prompt.layout = "xzy"  # ours
    config.prompt.demonstrations = 40  # Garg: 41 pairs, which is 40 demonstrations and the last query

    # A prompt always has all of its 41 pairs here, and those that are not in use yet weigh 0 in the loss. For a causal
    # model that is the loss of Garg's shorter prompt, at the cost of the longer one.
    config.curriculum.dimensions.start = 5  # Garg
    config.curriculum.dimensions.increment = 1  # Garg
    config.curriculum.dimensions.interval = 2_000  # Garg: all 20 dimensions from step 30,000 on
    config.curriculum.pairs.start = 11  # Garg
    config.curriculum.pairs.increment = 2  # Garg
    config.curriculum.pairs.interval = 2_000  # Garg: all 41 pairs from step 30,000 on

    config.model.num_layers = 12  # Garg
    config.model.width = 256  # Garg
    config.model.num_heads = 8  # Garg
    config.model.positions = "learned"  # Garg: GPT-2
    config.model.norm = "layernorm"  # Garg: GPT-2
    config.model.mlp = "gelu"  # Garg: GPT-2
    # ours: 41 pairs take 122 positions; 81 pairs, for the shift to twice the demonstrations, take 242. Training never
    # reaches the positions from 122 on: with a table of learned positions that shift meets untrained entries.
    config.model.max_positions = 256

    config.population.name = ("icl", "tvp")  # ours
    config.population.seed = (0,)  # ours: the members share their initial parameters and their batches
    config.population.tvp_weight = (0.0, 1.0)  # ours
    config.population.prescribed_layer = (6,)  # ours: l*, the middle
    config.population.learning_rate = (1e-4,)  # Garg

    config.train.batch = 64  # Garg
    config.train.steps = 500_000  # Garg: 500,001
    config.train.log_every = 100  # ours
    config.train.evaluate_every = 5_000  # ours
    config.train.checkpoint_every = 5_000  # ours

    config.optimizer.warmup_steps = 0  # Garg
    config.optimizer.decay = "constant"  # Garg
    config.optimizer.weight_decay = 0.0  # Garg: Adam
    config.optimizer.clip_norm = 0.0  # Garg: none
    config.optimizer.b1 = 0.9  # Garg: PyTorch's default
    config.optimizer.b2 = 0.999  # Garg: PyTorch's default

    config.evaluation.training_prompts = 256  # ours
    config.evaluation.prompts = 1_280  # Garg
    config.evaluation.probes = True  # ours
    TASKS[task](config)
    return config
