"""Where and when do task vectors form? A grid of conditions around a base run, each over several seeds.

Every population is a TVP run in populations/ of the workdir: its fields are those of configs/tvp_synthetic.py. The
argument chooses the study: token_offset (default, for two CPU cores and half an hour), linear (linear regression, a few
hours there), or full, combinations at a larger size with TVP-loss under each, for accelerators. All of it is ours.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

from tvjax.errors import reject

# By path: neither the working directory nor how this file is loaded makes a difference.
_BASE = runpy.run_path(str(Path(__file__).with_name("tvp_synthetic.py")))


def _small(config: ConfigDict, task: str) -> None:
    base = config.base = _BASE["get_config"](task)
    base.model.max_positions = 128
    base.train.tensorboard = False
    base.evaluation.prompts = 512
    config.grid.layout = ("xy",)
    config.grid.positions = ("rotary", "none")
    config.grid.num_layers = (2, 6)
    config.grid.width = (32,)
    config.grid.demonstrations = (2, 16)


def _token_offset(config: ConfigDict) -> None:
    _small(config, "token_offset")


def _linear(config: ConfigDict) -> None:
    _small(config, "linear")
    config.grid.demonstrations = (4, 16)


def _full(config: ConfigDict) -> None:
    base = config.base = _BASE["get_config"]("linear")
    base.task.input_width = 8
    base.prompt.demonstrations = 32
    base.model.num_layers = 8
    base.model.width = 128
    base.model.num_heads = 4
    base.model.max_positions = 512
    base.train.batch = 64
    base.train.steps = 50_000
    base.train.log_every = 250
    base.train.evaluate_every = 1000
    base.train.checkpoint_every = 5000
    base.optimizer.warmup_steps = 1000
    base.population.learning_rate = (5e-4,)
    config.grid.positions = ("rotary", "none")
    config.grid.num_layers = (4, 12)
    config.grid.demonstrations = (16, 64)
    config.grid.cross = True
    config.study.tvp_everywhere = True
    config.study.most_members = 33


VARIANTS = {"token_offset": _token_offset, "linear": _linear, "full": _full}


def get_config(study: str = "token_offset") -> ConfigDict:
    if study not in VARIANTS:
        raise reject("--config argument", study, ", ".join(VARIANTS))
    config = ConfigDict()
    config.experiment = "emergence"

    config.grid = ConfigDict()  # values of each factor beside the base's
    config.grid.layout = ()  # of base.prompt.layout
    config.grid.positions = ()  # of base.model.positions
    config.grid.num_layers = ()  # of base.model.num_layers
    config.grid.width = ()  # of base.model.width
    config.grid.demonstrations = ()  # of base.prompt.demonstrations
    config.grid.cross = False  # all combinations; otherwise one factor at a time

    config.study = ConfigDict()
    config.study.seeds = (0, 1, 2)  # of every member
    config.study.tvp_weights = (1.0,)  # lambda of the members with TVP-loss
    config.study.prescribed_layers = ()  # l*; (): 1..L-1, each
    config.study.tvp_everywhere = False  # TVP-loss under every condition; otherwise under the base alone
    config.study.control = True  # also ICL loss with the extra queries of the TVP-loss, answered from demonstrations
    config.study.most_members = 12  # members that train at once: what bounds the memory

    VARIANTS[study](config)  # config.base: a run of configs/tvp_synthetic.py; its population is the study's to set
    config.base.evaluation.probes = False  # no answer of a study is made of them
    return config
