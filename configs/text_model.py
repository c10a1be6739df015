"""A small language model of the built-in text tasks, trained here: for task vectors with no download.

Here and in all files beside this file, a group has the fields of its dataclass. docs/fields.md has their meanings and
defaults.
"""

from ml_collections import ConfigDict

from tvjax.experiments.text_model.settings import MeasureConfig, ModelConfig, TextTraining
from tvjax.settings import defaults
from tvjax.tasks.text import Template
from tvjax.text.data import DataConfig
from tvjax.train.state import OptimizerConfig


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.experiment = "text_model"
    config.data = ConfigDict(defaults(DataConfig))
    config.template = ConfigDict(defaults(Template, before="", between=" ->", after="\n"))
    config.model = ConfigDict(
        defaults(ModelConfig, vocab_size=3000, num_layers=4, width=128, num_heads=4, hidden_width=384)
    )
    config.train = ConfigDict(
        defaults(
            TextTraining,
            demonstrations=6,
            batch=32,
            seed=0,
            learning_rate=2e-3,
            steps=1600,
            log_every=50,
            evaluate_every=400,
            checkpoint_every=400,
        )
    )
    config.optimizer = ConfigDict(
        defaults(OptimizerConfig, warmup_steps=100, weight_decay=1e-2, clip_norm=1.0, b2=0.99)
    )
    config.evaluation = ConfigDict(defaults(MeasureConfig, prompts=512))
    return config
