"""Task vectors in a small model trained from scratch: ICL loss alone, beside ICL loss + TVP-loss.

The argument chooses the task: linear (default), linear_map, bijection, sinusoid, token_offset, quadratic, relu_network,
decision_tree or linear_classification; or a family that a module of --plugins registers. Sizes are for two CPU cores
and a few minutes.
"""

from ml_collections import ConfigDict

from tvjax import tasks
from tvjax.errors import one_of, reject
from tvjax.experiments.tvp.settings import (
    CurriculumConfig,
    EvaluationConfig,
    PopulationConfig,
    PromptConfig,
    TVPTraining,
)
from tvjax.nn.decoder import FAMILY_FIELDS, DecoderConfig
from tvjax.parallel.mesh import MeshConfig
from tvjax.settings import defaults
from tvjax.train.state import OptimizerConfig
from tvjax.vectors.tvp import TVPConfig


def _linear(config: ConfigDict) -> None:
    config.task.name = "linear"
    config.task.input_width = 2  # d, the dimensions of x; w has as many
    config.task.noise = 0.0  # standard deviation of the label noise
    config.task.nonzero = 0  # nonzero weights in w; 0: all
    config.task.pool = 0  # size of a finite pool of training tasks (Raventos et al.); 0: infinite
    config.task.pool_seed = 0  # which pool
    config.task.outputs = 1  # Y, the answers to an x; with more than one y = W x, and there is no pool


def _linear_map(config: ConfigDict) -> None:
    _linear(config)
    config.task.outputs = 2


def _bijection(config: ConfigDict) -> None:
    config.task.name = "bijection"  # y = (M'b, M a) of x = (a, 0) or (0, b)
    config.task.input_width = 4  # d, the dimensions of x and of y, half of them for a
    config.task.noise = 0.0  # standard deviation of the label noise


def _sinusoid(config: ConfigDict) -> None:
    config.task.name = "sinusoid"  # y = a sin(b.x + c)
    config.task.input_width = 1  # dimensions of x
    config.task.amplitude = (0.5, 2.0)  # range of a in training
    config.task.frequency = (0.5, 1.5)  # range of |b| in training
    config.task.phase = (0.0, 6.283185307179586)  # range of c in training
    config.task.held_out_amplitude = (0.5, 2.0)  # the same for the held-out tasks
    config.task.held_out_frequency = (1.5, 2.5)
    config.task.held_out_phase = (0.0, 6.283185307179586)
    config.task.noise = 0.0  # standard deviation of the label noise
    config.task.grid = (12, 32, 48)  # points of the oracle's grid over a, b, c
    config.task.grid_width = 0.08  # standard deviation of the oracle's likelihood if labels have no noise
    config.train.steps = 2500
    config.evaluation.prompts = 512


def _token_offset(config: ConfigDict) -> None:
    config.task.name = "token_offset"
    config.task.vocab_size = 20  # V: x, y in 0..V-1 and y = (x + c) mod V
    config.task.offsets = (1, 5, 9, 13, 17)  # c in training
    config.task.held_out_offsets = (3, 7, 11)  # c never shown in training
    config.task.held_out_pairs = 2  # x that are never shown with a c, for each c
    config.task.pair_seed = 0  # which ones
    config.task.noise = 0.0  # probability that a label is replaced by a uniform token
    config.train.steps = 1000
    config.population.learning_rate = (2e-3,)


def _quadratic(config: ConfigDict) -> None:
    config.task.name = "quadratic"  # y = sum_j w_j x_j^2
    config.task.input_width = 2  # d, the dimensions of x; w has as many
    config.task.noise = 0.0  # standard deviation of the label noise


def _relu_network(config: ConfigDict) -> None:
    config.task.name = "relu_network"  # y = sum_f a_f max(0, w_f.x)
    config.task.input_width = 2  # d, the dimensions of x
    config.task.hidden_width = 100  # F, hidden units
    config.task.noise = 0.0  # standard deviation of the label noise


def _decision_tree(config: ConfigDict) -> None:
    config.task.name = "decision_tree"  # y is the leaf to which the signs of x lead
    config.task.input_width = 3  # d, the dimensions of x
    config.task.depth = 2  # nodes that are passed on the way to a leaf
    config.task.noise = 0.0  # standard deviation of the label noise
    config.prompt.demonstrations = 16
    config.model.max_positions = 128
    config.train.steps = 2500


def _linear_classification(config: ConfigDict) -> None:
    config.task.name = "linear_classification"  # y = sign(w.x), -1 or 1
    config.task.input_width = 2  # d, the dimensions of x; w has as many
    config.task.noise = 0.0  # probability that a label is replaced by a uniform one


TASKS = {
    "linear": _linear,
    "linear_map": _linear_map,
    "bijection": _bijection,
    "sinusoid": _sinusoid,
    "token_offset": _token_offset,
    "quadratic": _quadratic,
    "relu_network": _relu_network,
    "decision_tree": _decision_tree,
    "linear_classification": _linear_classification,
}


def get_config(task: str = "linear") -> ConfigDict:
    others = [name for name in tasks.names() if name not in tasks.BUILT_IN]
    if task not in (*TASKS, *others):
        raise reject("--config argument", task, one_of((*TASKS, *others)))
    config = ConfigDict()
    config.experiment = "tvp"  # which experiment reads this config

    config.task = ConfigDict()  # the family and its settings: see above

    config.prompt = ConfigDict(defaults(PromptConfig, layout="xzy", demonstrations=8))
    config.curriculum = ConfigDict(defaults(CurriculumConfig))  # of input dimensions that are not zero, and of pairs
    # Also of DecoderConfig: what the task decides, and what only pretrained families need.
    left = {"num_outputs", "inputs", "vocab_size", "tied_readout", *FAMILY_FIELDS}
    model = defaults(DecoderConfig, num_layers=4, width=64, num_heads=2, max_positions=64)
    config.model = ConfigDict({name: value for name, value in model.items() if name not in left})
    config.tvp = ConfigDict(defaults(TVPConfig))
    config.population = ConfigDict(
        defaults(
            PopulationConfig,
            name=("icl", "tvp"),
            seed=(0,),
            tvp_weight=(0.0, 1.0),
            prescribed_layer=(2,),
            learning_rate=(1e-3,),
        )
    )
    config.train = ConfigDict(
        defaults(TVPTraining, batch=32, steps=3500, log_every=50, evaluate_every=100, checkpoint_every=500)
    )
    config.optimizer = ConfigDict(
        defaults(OptimizerConfig, warmup_steps=200, weight_decay=1e-4, clip_norm=1.0, b2=0.99)
    )
    config.evaluation = ConfigDict(
        defaults(EvaluationConfig, training_prompts=256, prompts=1024, seed=1000, probes=True)
    )
    config.mesh = ConfigDict(defaults(MeshConfig))  # devices along each axis
    if task in TASKS:
        TASKS[task](config)
    else:
        config.task = ConfigDict({"name": task, **defaults(tasks.family(task))})
    return config
