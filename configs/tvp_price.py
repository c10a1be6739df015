"""What does the TVP-loss cost in-context learning? Weights, layers and schedules beside the ICL loss alone.

The argument chooses the task, as in configs/tvp_synthetic.py: token_offset (default), linear or sinusoid. A sweep of
it: all combinations of tvp_weight, prescribed_layer and schedule ("late": constant, from the middle of the training
on), and a control of each weight, which answers the same fresh queries from the demonstrations. All of it is ours.
"""

import tvp_synthetic
from ml_collections import ConfigDict

from tvjax.errors import one_of, reject
from tvjax.experiments.sweep.settings import CutConfig
from tvjax.settings import defaults

STEPS = {"token_offset": 2000, "linear": 5000, "sinusoid": 5000}
WEIGHTS = (0.0, 0.03, 0.1, 0.3, 1.0)
SEEDS = (0, 1, 2, 3)


def get_config(task: str = "token_offset") -> ConfigDict:
    if task not in STEPS:
        raise reject("--config argument", task, one_of(STEPS))
    config = ConfigDict()
    config.experiment = "sweep"
    base = config.base = tvp_synthetic.get_config(task)
    base.train.steps = STEPS[task]
    base.train.tensorboard = False
    base.evaluation.probes = False
    base.population.name = ("tvp",)
    base.population.tvp_weight = (1.0,)

    members = {"tvp_weight": WEIGHTS, "prescribed_layer": tuple(range(1, base.model.num_layers)), "seed": SEEDS}
    config.sweep = ConfigDict({"tvp": {"schedule": ("constant", "up", "down")}, "population": members})
    config.also = ConfigDict()  # further combinations, each of fields of the base as config.sweep
    config.also.late = ConfigDict({"tvp": {"start_step": (STEPS[task] // 2,)}, "population": members})
    control = {"tvp_weight": WEIGHTS, "seed": SEEDS}
    config.also.control = ConfigDict({"tvp": {"answered_from": ("demonstrations",)}, "population": control})
    config.cut = ConfigDict(defaults(CutConfig, most_members=16))
    return config
