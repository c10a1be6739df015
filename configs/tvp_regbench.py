"""Task vectors in a model of random automata: RegBench (Akyurek et al. 2024), with and without the TVP-loss.

Only what differs from configs/tvp_synthetic.py stands here. The argument chooses the size: small (default) is for two
CPU cores and a few minutes; published has the automata and words of the paper, for accelerators. "RegBench": from the
paper; "ours": our choice. Ours throughout:
- z stands before the last symbol of each word, which is the answer; the paper asks for every symbol;
- words are padded on the left to one length by a blank, and each begins with the bar that the paper puts between them.
"""

import tvp_synthetic
from ml_collections import ConfigDict

from tvjax.errors import reject


def _small(config: ConfigDict) -> None:
    """Ours throughout. So few automata that the model comes to know them: it is lost on those that are held out."""
    config.task.automata = 32
    config.task.held_out_automata = 32
    config.task.word = 5
    config.prompt.demonstrations = 16
    config.model.positions = "rotary"
    config.model.max_positions = 230
    config.train.batch = 16
    config.train.steps = 1600
    config.train.evaluate_every = 400
    config.optimizer.warmup_steps = 100
    config.population.learning_rate = (3e-3,)
    config.evaluation.training_prompts = 64
    config.evaluation.prompts = 512


def _published(config: ConfigDict) -> None:
    config.evaluation.probes = False  # ours: too many automata to learn to read from theta
    config.task.automata = 5000  # RegBench
    config.task.held_out_automata = 500  # RegBench
    config.task.word = 49  # RegBench: 1..49 symbols
    config.prompt.demonstrations = 18  # RegBench: 10..19 words; here always 19, and the last is the query
    config.model.num_layers = 12  # ours
    config.model.width = 512  # ours
    config.model.num_heads = 8  # ours
    config.model.max_positions = 1024  # ours: 19 words take 968
    config.model.dtype = "bfloat16"  # ours
    config.model.unroll = 1  # ours
    config.population.prescribed_layer = (6,)  # ours: the middle
    config.population.learning_rate = (5e-4,)  # ours
    config.train.batch = 32  # ours
    config.train.steps = 50_000  # ours
    config.train.log_every = 100  # ours
    config.train.evaluate_every = 5_000  # ours
    config.train.checkpoint_every = 5_000  # ours
    config.optimizer.warmup_steps = 1000  # ours


VARIANTS = {"small": _small, "published": _published}


def get_config(size: str = "small") -> ConfigDict:
    if size not in VARIANTS:
        raise reject("--config argument", size, ", ".join(VARIANTS))
    config = tvp_synthetic.get_config("token_offset")
    config.task = ConfigDict()
    config.task.name = "regbench"
    config.task.symbols = 18  # RegBench
    config.task.min_states = 4  # RegBench
    config.task.max_states = 12  # RegBench
    config.task.min_symbols = 4  # RegBench
    config.task.max_edges = 3  # RegBench
    config.task.seed = 0  # of the automata
    # ours: which automaton is read from theta, and its dummy queries are compared. Swaps and mixes are left out: few
    # words of one automaton are words of another.
    config.evaluation.probes = True
    VARIANTS[size](config)
    return config
