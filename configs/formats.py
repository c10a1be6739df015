"""What the format of a prompt does to a state vector: template x first token x layer x position, of SmolLM2.

--config.model.path=FOLDER --config.data.path=TASKS; with :small of a small model that is trained here first.
"""

import text_model
from ml_collections import ConfigDict

from tvjax.errors import reject
from tvjax.experiments.formats.settings import FormatConfig
from tvjax.experiments.models import ModelConfig
from tvjax.settings import defaults


def _smollm2(config: ConfigDict) -> None:
    config.model.path = "smollm2"


def _small(config: ConfigDict) -> None:
    config.model.path = ""
    config.formats.demonstrations = 6


VARIANTS = {"smollm2": _smollm2, "small": _small}


def get_config(model: str = "smollm2") -> ConfigDict:
    if model not in VARIANTS:
        raise reject("--config argument", model, ", ".join(VARIANTS))
    config = ConfigDict()
    config.experiment = "formats"

    config.model = ConfigDict(defaults(ModelConfig))
    config.data = text_model.get_config().data
    config.data.tasks = ("past_tense", "gerund", "third_person", "plural", "capitalize", "first_letter")
    config.data.tasks += ("opposite", "continent", "next_letter", "first_of_two", "second_of_two", "sentence_noun")

    config.training = text_model.get_config()  # of the small model; used if model.path is "" and it is not there yet

    config.formats = ConfigDict(
        defaults(
            FormatConfig,
            templates=(
                ("arrow", "", " ->", "\n"),
                ("question", "Q: ", "\nA:", "\n\n"),
                ("input", "Input: ", "\nOutput:", "\n"),
                ("colon", "", ":", "\n"),
            ),
            starts=(  # each but the first is compared with the first
                ("nothing", ""),
                ("newline", "\n"),
                ("end-of-text", "<|endoftext|>"),
                ("full-stop", ". "),
                ("chat", "<|im_start|>"),
            ),
        )
    )
    VARIANTS[model](config)
    return config
