"""Task vectors of a pretrained model on text tasks; with :small of a small model that is trained here first.

With :all every method that makes vectors, those of --plugins too, beside what others have published of other models.

--config.model.path=FOLDER --config.data.path=TASKS
"""

import text_model
from ml_collections import ConfigDict

from tvjax import methods
from tvjax.errors import reject
from tvjax.experiments.models import ModelConfig
from tvjax.experiments.task_vectors.settings import MeasuredConfig
from tvjax.methods.vector import VectorMethod
from tvjax.settings import defaults


def _smollm2(config: ConfigDict) -> None:
    config.model.path = "smollm2"
    config.data.tasks = ("past_tense", "gerund", "plural", "capitalize", "first_letter")
    config.data.tasks += ("opposite", "capital", "continent")
    config.template.start = "\n"
    config.vectors.demonstrations = 10
    config.vectors.prompts = 16
    config.vectors.questions = 32
    config.function_vector.shuffled_prompts = 10
    config.learned_vector.steps = 20
    config.learned_vector.rate = 0.1  # so few steps are long ones: at 0.03 they end on the way


def _small(config: ConfigDict) -> None:
    config.model.path = ""


def _all(config: ConfigDict) -> None:
    _smollm2(config)
    config.data.tasks += ("third_person", "digits", "last_letter", "capitalize_adjective")
    config.methods = tuple(name for name, method in methods.METHODS.items() if isinstance(method, VectorMethod))
    config.distributed_function_vector.shuffled_prompts = config.function_vector.shuffled_prompts  # found once for both


VARIANTS = {"smollm2": _smollm2, "small": _small, "all": _all}


def get_config(model: str = "smollm2") -> ConfigDict:
    if model not in VARIANTS:
        raise reject("--config argument", model, ", ".join(VARIANTS))
    config = ConfigDict()
    config.experiment = "task_vectors"

    config.model = ConfigDict(defaults(ModelConfig))
    config.data = text_model.get_config().data

    config.training = text_model.get_config()  # of the small model; used if model.path is "" and it is not there yet
    # A query in a prompt's first token cannot be read: `start` puts another there.
    config.template = ConfigDict(config.training.template.to_dict())
    config.vectors = ConfigDict(defaults(MeasuredConfig, demonstrations=6, prompts=30))
    config.methods = ("vector", "function_vector", "learned_vector")  # that make vectors; "vector" among them
    # config.METHOD.FIELD, which the file of each method in tvjax/methods/ describes.
    for group, values in methods.fields(VectorMethod).items():
        config[group] = ConfigDict(values)
    VARIANTS[model](config)
    return config
