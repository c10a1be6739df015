"""A small language model of the built-in text tasks, trained here: for task vectors with no download."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.experiment = "text_model"

    config.data = ConfigDict()
    config.data.path = ""  # a folder of NAME.json lists of {"input", "output"}; "": the built-in suite
    config.data.tasks = ()  # names of tasks; (): all
    config.data.tfds = ()  # or data sets: (name, input, output), e.g. (("glue/sst2", "{sentence}", "{label}"),)
    config.data.tfds_dir = ""  # where they are prepared, as array_record; "": where tensorflow-datasets has them
    config.data.most = 0  # inputs that are taken of a data set, with all their answers; 0: all

    config.template = ConfigDict()  # a pair is shown as before + input + between + " " + output + after
    config.template.start = ""  # in front of a prompt, where the tokenizer puts no token of its own (BOS)
    config.template.before = ""
    config.template.between = " ->"
    config.template.after = "\n"

    config.model = ConfigDict()  # of the form of Llama
    config.model.vocab_size = 3000  # most tokens that the byte-level BPE may have; it is trained on the pairs
    config.model.num_layers = 4  # L
    config.model.width = 128  # D
    config.model.num_heads = 4  # H
    config.model.hidden_width = 384  # F
    config.model.dtype = "float32"  # of activations: float32, bfloat16; its parameters are float32, in the folder too
    config.model.matmul_precision = "highest"  # of float32 on GPUs, TPUs: highest, high, default (tvp_synthetic.py)

    config.train = ConfigDict()
    config.train.demonstrations = 6  # K: a prompt shows one more pair, and every answer counts
    config.train.batch = 32  # prompts a step
    config.train.seed = 0
    config.train.learning_rate = 2e-3  # peak
    config.train.steps = 1600
    config.train.log_every = 50
    config.train.evaluate_every = 400
    config.train.checkpoint_every = 400
    config.train.keep_checkpoints = 2
    config.train.tensorboard = True

    config.optimizer = ConfigDict()  # AdamW
    config.optimizer.warmup_steps = 100
    config.optimizer.decay = "cosine"  # cosine, constant
    config.optimizer.final_fraction = 0.0
    config.optimizer.weight_decay = 1e-2
    config.optimizer.clip_norm = 1.0
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.99

    config.evaluation = ConfigDict()
    config.evaluation.prompts = 512  # prompts of each evaluation
    return config
