"""ATV on a TVP-trained model: a writer that never sees theta, for a target whose true task is known. [ours]

The argument chooses the target's task, as in tvp_synthetic.py: linear (default), sinusoid and the others.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

# By path: neither the working directory nor how this file is loaded makes a difference.
_TRAINING = runpy.run_path(str(Path(__file__).with_name("tvp_synthetic.py")))
TASKS = _TRAINING["TASKS"]


def get_config(task: str = "linear") -> ConfigDict:
    training = _TRAINING["get_config"](task)
    config = ConfigDict()
    config.experiment = "atv_tvp"  # which experiment reads this config

    config.target = ConfigDict()  # the frozen model
    config.target.run = ""  # the workdir of a TVP run; "": that of config.training
    config.target.trained = "runs/atv_tvp_target"  # where it is, or is trained once; used if run is ""
    config.target.trained += "" if task == "linear" else f"_{task}"
    config.target.member = ""  # which of its population; "": the last

    config.training = training  # of the target; used if there is no run: the main job's, one member, nothing measured
    config.training.population.name = ("tvp",)
    config.training.population.tvp_weight = (1.0,)
    config.training.evaluation.shifts = False
    config.training.evaluation.probes = False

    config.writer = ConfigDict()  # ATV: a generator, from scratch, and one linear map to the prescribed layer
    config.writer.num_layers = 2  # of the generator: as many as theta is made by
    config.writer.width = 64
    config.writer.num_heads = 2  # all in float32, at the target's matmul_precision
    config.writer.objective = "risk"  # of the answer with the vector (risk); or distance from theta, as a control
    config.writer.demonstrations = ()  # numbers of demonstrations after which it is trained; (): the target's own S

    config.train = ConfigDict()
    config.train.batch = 32  # prompts a step
    config.train.seeds = (0, 1, 2)  # writers, trained side by side
    config.train.learning_rate = 1e-3  # peak
    config.train.steps = 2000
    config.train.log_every = 50  # steps in one dispatch to the device, and in one line of metrics
    config.train.evaluate_every = 250
    config.train.checkpoint_every = 500
    config.train.keep_checkpoints = 2  # the newest that are kept
    config.train.tensorboard = True  # also write TensorBoard events

    config.optimizer = ConfigDict()  # AdamW
    config.optimizer.warmup_steps = 100
    config.optimizer.decay = "cosine"  # cosine, constant
    config.optimizer.final_fraction = 0.0  # of the peak learning rate, at the end of the decay
    config.optimizer.weight_decay = 1e-4  # of kernels
    config.optimizer.clip_norm = 1.0  # largest global norm of a gradient; 0: no clipping
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.99

    config.evaluation = ConfigDict()
    config.evaluation.training_prompts = 256  # prompts of each evaluation during training
    config.evaluation.prompts = 1024  # prompts of the final evaluation
    config.evaluation.seed = 1000  # of the evaluation prompts; the main job's own, so that theta's numbers are its own

    config.mesh = ConfigDict()  # devices along each axis; the product may be at most the number of devices
    config.mesh.member = 1  # share the writers
    config.mesh.data = 1  # share the batch
    config.mesh.fsdp = 1  # share the batch and the parameters, of which each device gathers a layer when it needs it
    config.mesh.tensor = 1  # share the heads and hidden channels of the generator
    return config
