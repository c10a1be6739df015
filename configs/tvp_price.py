"""What does the TVP-loss cost in-context learning? Weights and schedules beside the ICL loss alone and a control.

The argument chooses the task, as in configs/tvp_synthetic.py: token_offset (default), linear or sinusoid. A sweep of
it: all combinations of tvp_weight and schedule ("late": constant, from the middle of the training on) at the middle
layer, and a control of each weight, which answers the same fresh queries from the demonstrations. Other layers:
--config.sweep.population.prescribed_layer='(1,2,3)'; longer: --config.base.train.steps=3000. All of it is ours.
"""

import tvp_synthetic
from ml_collections import ConfigDict

from tvjax.errors import one_of, reject
from tvjax.experiments.sweep.settings import CutConfig
from tvjax.settings import defaults

TASKS = ("token_offset", "linear", "sinusoid")
WEIGHTS = (0.0, 0.03, 0.1, 0.3, 1.0)
SEEDS = (0, 1, 2, 3)


def get_config(task: str = "token_offset") -> ConfigDict:
    if task not in TASKS:
        raise reject("--config argument", task, one_of(TASKS))
    config = ConfigDict()
    config.experiment = "sweep"
    base = config.base = tvp_synthetic.get_config(task)
    base.train.tensorboard = False
    base.evaluation.probes = False
    base.population.name = ("tvp",)
    base.population.tvp_weight = (1.0,)
    steps = base.train.steps

    members = {"tvp_weight": WEIGHTS, "prescribed_layer": (base.model.num_layers // 2,), "seed": SEEDS}
    config.sweep = ConfigDict({"tvp": {"schedule": ("constant", "up", "down")}, "population": members})
    config.also = ConfigDict()  # further combinations, each of fields of the base as config.sweep
    config.also.late = ConfigDict({"tvp": {"start_step": (steps // 2,)}, "population": members})
    config.also.control = ConfigDict({"tvp": {"answered_from": ("demonstrations",)}, "population": members})
    config.cut = ConfigDict(defaults(CutConfig, most_members=16))
    return config
