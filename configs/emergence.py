"""Where and when do task vectors form? A grid of conditions around a base run, each over several seeds.

Every population is a TVP run in populations/ of the workdir, with the fields of configs/tvp_synthetic.py. The
argument chooses the study: token_offset (default, for two CPU cores and half an hour), linear (linear regression, a few
hours there), or full, combinations at a larger size with TVP-loss under each, for accelerators. All of it is ours.
"""

import tvp_synthetic
from ml_collections import ConfigDict

from tvjax.errors import reject
from tvjax.experiments.emergence.settings import GridConfig, StudyConfig
from tvjax.settings import defaults


def _small(config: ConfigDict, task: str) -> None:
    base = config.base = tvp_synthetic.get_config(task)
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
    base = config.base = tvp_synthetic.get_config("linear")
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

    config.grid = ConfigDict(defaults(GridConfig))
    config.study = ConfigDict(defaults(StudyConfig, seeds=(0, 1, 2)))
    VARIANTS[study](config)  # config.base: a run of configs/tvp_synthetic.py; its population is the study's to set
    config.base.evaluation.probes = False  # no answer of a study is made of them
    return config
