"""ATV on a TVP-trained model: a writer that never sees theta, for a target whose true task is known. [ours]

The argument chooses the target's task, as in tvp_synthetic.py: linear (default), sinusoid and the others.
"""

import tvp_synthetic
from ml_collections import ConfigDict

from tvjax.experiments.atv_tvp.settings import TargetConfig, WriterConfig, WriterEvaluation, WriterTraining
from tvjax.parallel.mesh import MeshConfig
from tvjax.settings import defaults
from tvjax.train.state import OptimizerConfig

TASKS = tvp_synthetic.TASKS


def get_config(task: str = "linear") -> ConfigDict:
    training = tvp_synthetic.get_config(task)
    config = ConfigDict()
    config.experiment = "atv_tvp"  # which experiment reads this config

    trained = "runs/atv_tvp_target" + ("" if task == "linear" else f"_{task}")
    config.target = ConfigDict(defaults(TargetConfig, trained=trained))

    config.training = training  # of the target; used if there is no run: the main job's, one member, nothing measured
    config.training.population.name = ("tvp",)
    config.training.population.tvp_weight = (1.0,)
    config.training.evaluation.shifts = False
    config.training.evaluation.probes = False

    # A generator as large as what theta is made by, in float32, and one linear map to the prescribed layer.
    config.writer = ConfigDict(defaults(WriterConfig, num_layers=2, width=64, num_heads=2))
    config.train = ConfigDict(
        defaults(
            WriterTraining,
            batch=32,
            seeds=(0, 1, 2),
            learning_rate=1e-3,
            steps=2000,
            log_every=50,
            evaluate_every=250,
            checkpoint_every=500,
        )
    )
    config.optimizer = ConfigDict(
        defaults(OptimizerConfig, warmup_steps=100, weight_decay=1e-4, clip_norm=1.0, b2=0.99)
    )
    # The seed is the main job's own, so that theta's numbers are its own.
    config.evaluation = ConfigDict(defaults(WriterEvaluation, training_prompts=256, prompts=1024))
    config.mesh = ConfigDict(defaults(MeshConfig))  # devices along each axis; `member` are the writers
    return config
