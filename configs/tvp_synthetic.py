"""Task vectors in a small model trained from scratch: ICL loss alone, beside ICL loss + TVP-loss.

The argument chooses the task: linear (default), linear_map, sinusoid, token_offset, quadratic, relu_network,
decision_tree or linear_classification; or a family that a module of --plugins registers. Sizes are for two CPU cores
and a few minutes.
"""

from ml_collections import ConfigDict

from tvjax import tasks
from tvjax.errors import reject
from tvjax.settings import defaults


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
    config.task.grid_width = 0.08  # standard deviation of the oracle's likelihood where labels have no noise
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
    "sinusoid": _sinusoid,
    "token_offset": _token_offset,
    "quadratic": _quadratic,
    "relu_network": _relu_network,
    "decision_tree": _decision_tree,
    "linear_classification": _linear_classification,
}


def get_config(task: str = "linear") -> ConfigDict:
    others = [name for name in tasks.FAMILIES if name not in tasks.BUILT_IN]
    if task not in (*TASKS, *others):
        raise reject("--config argument", task, ", ".join((*TASKS, *others)))
    config = ConfigDict()
    config.experiment = "tvp"  # which experiment reads this config

    config.task = ConfigDict()  # the family and its settings: see above

    config.prompt = ConfigDict()
    config.prompt.layout = "xzy"  # order of a demonstration: xzy (read at the placeholder z) or xy (read at x)
    config.prompt.demonstrations = 8  # K, demonstrations before the last query

    config.curriculum = ConfigDict()
    config.curriculum.dimensions = ConfigDict()  # input dimensions that are not zero, growing with training
    config.curriculum.dimensions.start = 1
    config.curriculum.dimensions.increment = 1
    config.curriculum.dimensions.interval = 0  # steps between two increments; 0: no curriculum
    config.curriculum.pairs = ConfigDict()  # pairs of a prompt that count in the loss, likewise
    config.curriculum.pairs.start = 1
    config.curriculum.pairs.increment = 1
    config.curriculum.pairs.interval = 0

    config.model = ConfigDict()
    config.model.num_layers = 4  # L
    config.model.width = 64  # D, of the residual stream
    config.model.num_heads = 2  # H
    config.model.num_kv_heads = 0  # G, key/value heads; 0: as many as heads
    config.model.head_width = 0  # C, channels a head; 0: width / num_heads
    config.model.hidden_width = 0  # F, of the MLP; 0: 4 * width
    config.model.max_positions = 64  # the longest prompt that learned positions allow
    config.model.norm = "layernorm"  # layernorm, rmsnorm
    config.model.norm_epsilon = 1e-5
    config.model.positions = "learned"  # learned, rotary, none
    config.model.rotary_base = 10_000.0  # of rotary positions
    config.model.mlp = "gelu"  # gelu, gated_silu
    config.model.bias = True  # biases in linear maps and norms
    config.model.unroll = 0  # layers unrolled in one iteration of the scan over layers; 0: all (fastest on a CPU)
    config.model.remat = (
        "none"  # activations that the backward pass computes again: none, full, dots (all but products)
    )
    config.model.dtype = "float32"  # of activations, and so what is computed in: float32, bfloat16
    config.model.param_dtype = "float32"  # of parameters and Adam's moments: nothing else, since they are trained
    # Of products of float32: highest (exact to float32), high, default. On a GPU the others are TF32; on a TPU highest,
    # high and default are 6, 3 and 1 passes of bfloat16. No difference on a CPU, or to products of bfloat16 or float16.
    config.model.matmul_precision = "highest"

    config.tvp = ConfigDict()  # the choices of the TVP-loss; all are ours
    config.tvp.demonstrations = ()  # S: numbers of demonstrations after which theta is trained; (): 1..K
    config.tvp.query = "fresh"  # one x' for each position in S (fresh), or one a prompt (shared)
    config.tvp.edit = "replace"  # theta replaces the state at z, or is added to it (add)
    config.tvp.gradient = True  # whether the gradient flows through theta into its prompt
    config.tvp.start_step = 0  # the TVP-loss is off before this step
    config.tvp.answered_from = "vector"  # or, as a control, the same x' from their prompt's demonstrations

    config.population = ConfigDict()  # members trained side by side: one entry a member, or one for all
    config.population.name = ("icl", "tvp")
    config.population.seed = (0,)  # initial parameters and batches; members of one seed share both
    config.population.tvp_weight = (0.0, 1.0)  # lambda in ICL loss + lambda * TVP-loss
    config.population.prescribed_layer = (2,)  # l*, 1..L-1
    config.population.learning_rate = (1e-3,)  # peak

    config.train = ConfigDict()
    config.train.batch = 32  # prompts a step
    config.train.micro_batches = 1  # parts of a batch, one after another: less memory
    config.train.steps = 3500
    config.train.log_every = 50  # steps in one dispatch to the device, and in one line of metrics
    config.train.evaluate_every = 100  # steps between two evaluations of all layers
    config.train.checkpoint_every = 500
    config.train.keep_checkpoints = 2  # the newest that are kept
    config.train.tensorboard = True  # also write TensorBoard events

    config.optimizer = ConfigDict()  # AdamW
    config.optimizer.warmup_steps = 200
    config.optimizer.decay = "cosine"  # cosine, constant
    config.optimizer.final_fraction = 0.0  # of the peak learning rate, at the end of the decay
    config.optimizer.weight_decay = 1e-4  # of kernels
    config.optimizer.clip_norm = 1.0  # largest global norm of a gradient; 0: no clipping
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.99

    config.evaluation = ConfigDict()
    config.evaluation.training_prompts = 256  # prompts of each evaluation during training
    config.evaluation.prompts = 1024  # prompts of the final evaluation and of each shift
    config.evaluation.seed = 1000  # of the evaluation prompts
    config.evaluation.shifts = True  # whether to evaluate out of distribution
    config.evaluation.probes = True  # whether to probe theta: decodability, dummy queries, swaps, mixes, rank
    config.evaluation.probe_prompts = 256  # prompts of the probes that run the model

    config.mesh = ConfigDict()  # devices along each axis; the product may be at most the number of devices
    config.mesh.member = 1  # share the members
    config.mesh.data = 1  # share the batch
    config.mesh.fsdp = 1  # share the batch and the parameters, of which each device gathers a layer when it needs it
    config.mesh.tensor = 1  # share the heads and hidden channels

    if task in TASKS:
        TASKS[task](config)
    else:
        config.task = ConfigDict({"name": task, **defaults(tasks.FAMILIES[task])})
    return config
