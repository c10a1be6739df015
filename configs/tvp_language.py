"""The TVP-loss as a fine-tuning objective of a language model, on text tasks, some of them held out. [ours]

The model is SmolLM2-135M, which is fetched once; with :small a small model that is trained here first. With :study
SmolLM2 is tuned at several layers and weights of the loss, over three seeds, one member after another.
"""

import text_model
from ml_collections import ConfigDict

from tvjax.errors import reject
from tvjax.experiments.models import ModelConfig
from tvjax.experiments.tvp_language.settings import AskingConfig, TunedConfig, TuningConfig
from tvjax.parallel.mesh import MeshConfig
from tvjax.settings import defaults
from tvjax.text.bench import VectorConfig
from tvjax.train.state import OptimizerConfig
from tvjax.vectors.tvp import TVPConfig


def _small(config: ConfigDict) -> None:
    """As it stands below."""


def _smollm2(config: ConfigDict) -> None:
    config.model.path = "smollm2"
    config.tasks.train = ("past_tense", "gerund", "plural", "capitalize", "first_letter", "last_letter", "length")
    config.tasks.train += ("opposite", "next_letter", "uppercase")
    config.tasks.heldout = (
        "third_person",
        "capital",
        "continent",
        "capitalize_adjective",
        "first_of_two",
        "next_number",
    )
    config.template.start = "\n"
    config.population.prescribed_layer = (20,)
    config.population.learning_rate = (1e-5,)
    config.train.at_once = 1
    config.train.batch = 4
    config.train.steps = 60
    config.train.log_every = 5
    config.train.evaluate_every = 10
    config.train.checkpoint_every = 30
    config.train.keep_checkpoints = 1
    config.optimizer.warmup_steps = 5
    config.optimizer.decay = "constant"
    config.vectors.prompts = 12
    config.vectors.questions = 16
    config.evaluation.training_prompts = 16
    config.evaluation.layers = (2, 5, 8, 11, 14, 17, 20, 23, 24, 26, 29)
    config.evaluation.shifts = 8


def _study(config: ConfigDict) -> None:
    _smollm2(config)
    arms = {"icl": (0.0, 20, "vector"), "control": (1.0, 20, "demonstrations")}
    arms |= {f"tvp{layer}": (1.0, layer, "vector") for layer in (20, 14, 8, 24)}
    arms |= {"tvp20_x0.3": (0.3, 20, "vector"), "tvp20_x3": (3.0, 20, "vector")}
    rows = [(f"{name}_s{seed}", seed, *arm) for seed in (0, 1, 2) for name, arm in arms.items()]
    p = config.population
    p.name, p.seed, p.tvp_weight, p.prescribed_layer, p.answered_from = zip(*rows, strict=True)


VARIANTS = {"smollm2": _smollm2, "small": _small, "study": _study}


def get_config(model: str = "smollm2") -> ConfigDict:
    if model not in VARIANTS:
        raise reject("--config argument", model, ", ".join(VARIANTS))
    config = ConfigDict()
    config.experiment = "tvp_language"

    config.tasks = ConfigDict()
    # The model is trained and fine-tuned on these.
    config.tasks.train = ("next_number", "double", "digits", "next_letter", "uppercase", "plural", "capitalize")
    config.tasks.train += ("first_letter", "length", "opposite", "capitalize_adjective", "first_of_two", "past_tense")
    config.tasks.train += ("gerund", "capital", "continent", "sentence_noun", "sentiment")
    # Only asked. Each asks something else of the inputs of a task above, and its answers are words or letters of them.
    config.tasks.heldout = ("previous_number", "previous_letter", "last_letter", "second_of_two", "third_person")
    config.tasks.heldout += ("sentence_adjective",)

    # float32: parameters, which are tuned, are that whatever the folder has.
    config.model = ConfigDict(defaults(ModelConfig, dtype="float32", trained="runs/tvp_language_base"))

    config.training = text_model.get_config()  # of the small model; used if model.path is "" and it is not there yet
    config.training.data.tasks = config.tasks.get_ref("train")  # it follows: held-out tasks are seen by nothing

    config.data = text_model.get_config().data
    config.template = ConfigDict(config.training.template.to_dict())
    tvp = defaults(TVPConfig)
    config.tvp = ConfigDict({name: value for name, value in tvp.items() if name != "answered_from"})
    config.population = ConfigDict(
        defaults(
            TunedConfig,
            name=("icl", "tvp"),
            seed=(0,),
            tvp_weight=(0.0, 1.0),
            prescribed_layer=(2,),
            learning_rate=(5e-4,),
        )
    )
    config.train = ConfigDict(
        defaults(
            TuningConfig,
            demonstrations=6,
            batch=32,
            steps=300,
            log_every=25,
            evaluate_every=50,
            checkpoint_every=100,
        )
    )
    config.optimizer = ConfigDict(defaults(OptimizerConfig, warmup_steps=20, weight_decay=1e-2, clip_norm=1.0, b2=0.99))
    vectors = defaults(VectorConfig, prompts=30, questions=60)  # of config.train.demonstrations
    config.vectors = ConfigDict(vectors)
    config.evaluation = ConfigDict(defaults(AskingConfig, training_prompts=128))
    config.mesh = ConfigDict(defaults(MeshConfig))  # devices along each axis
    VARIANTS[model](config)
    return config
