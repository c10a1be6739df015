"""Task vectors in a model of hidden Markov models: GINC (Xie et al. 2021), with and without the TVP-loss.

Only what differs from configs/tvp_synthetic.py stands here. The argument chooses the size: small (default) is for two
CPU cores and a few minutes; published is the model and the vocabulary of the paper, for accelerators. "GINC": from the
paper; "ours": our choice. Ours throughout:
- the paper trains on documents and asks in prompts; here training prompts are of the form of those asked;
- each string begins with the delimiter, and z stands before its last token, which is the answer;
- the strings of a prompt begin in the same slot, uniform over all but the delimiter's.
"""

import tvp_synthetic
from ml_collections import ConfigDict

from tvjax.errors import reject


def _small(config: ConfigDict) -> None:
    """Ours throughout."""
    config.task.length = 3
    config.prompt.demonstrations = 32
    config.model.positions = "rotary"  # learned ones are worse at the last places, which nothing attends to
    config.model.max_positions = 324  # of the prompts of the shift that has twice as many demonstrations
    config.train.batch = 8
    config.train.steps = 2400
    config.train.evaluate_every = 400
    config.optimizer.warmup_steps = 100
    config.population.learning_rate = (2e-3,)
    config.evaluation.training_prompts = 64
    config.evaluation.prompts = 512


def _published(config: ConfigDict) -> None:
    config.task.length = 10  # GINC: k, one of 3, 5, 8, 10
    config.prompt.demonstrations = 64  # GINC: up to 64
    config.model.num_layers = 12  # GINC: 4, 12 or 16
    config.model.width = 768  # GINC: GPT-2
    config.model.num_heads = 12  # GINC: GPT-2
    config.model.max_positions = 1024  # GINC; 65 strings take 779
    config.model.dtype = "bfloat16"  # ours
    config.model.unroll = 1  # ours
    config.population.prescribed_layer = (6,)  # ours: the middle
    config.population.learning_rate = (8e-4,)  # GINC
    config.train.batch = 8  # GINC: 8 documents of 1,024 tokens
    config.train.steps = 50_000  # ours
    config.train.log_every = 100  # ours
    config.train.evaluate_every = 5_000  # ours
    config.train.checkpoint_every = 5_000  # ours
    config.optimizer.warmup_steps = 1000  # GINC
    config.optimizer.decay = "cosine"  # ours


VARIANTS = {"small": _small, "published": _published}


def get_config(size: str = "small") -> ConfigDict:
    if size not in VARIANTS:
        raise reject("--config argument", size, ", ".join(VARIANTS))
    config = tvp_synthetic.get_config("token_offset")
    config.task = ConfigDict()
    config.task.name = "ginc"
    config.task.vocab_size = 50  # GINC: words, the delimiter among them; 50, 100 or 150
    config.task.concepts = 5  # GINC: models of training
    config.task.held_out_concepts = 5  # GINC: models that are held out
    config.task.slots = 10  # GINC
    config.task.values = 10  # GINC
    config.task.seed = 0  # of the models
    # ours: concept and slot are read from theta, and its dummy queries are compared. Swaps and mixes are left out: few
    # strings of one concept are strings of another.
    config.evaluation.probes = True
    VARIANTS[size](config)
    return config
