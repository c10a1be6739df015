"""Decoders whose weights are set by hand, so that what they do at every layer is known.

The residual stream has named channels. One of them, `one`, is so large and constant that RMSNorm divides by nearly a
constant, which its scale takes back: every block reads the stream as it is.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np

from tvjax.nn.decoder import DecoderConfig
from tvjax.nn.model import Model
from tvjax.tasks import Task, TokenOffset
from tvjax.tasks.prompt import NUM_KINDS, X, Y, Z

LARGE = 3000.0
FIRM = 200.0
"""A logit of attention beside which one of 0 has no weight in float32."""


class Weights:
    """The parameters of a decoder without biases, all 0 but for what is set. Channels are named, each with a width."""

    def __init__(self, task: Task, channels: dict[str, int], *, layers: int, head_width: int, hidden: int, places: int):
        self.at, width = {}, 0
        for name, size in {**channels, "one": 1}.items():
            self.at[name] = np.arange(width, width + size)
            width += size
        given = task.decoder_inputs()
        self.config = DecoderConfig(
            num_layers=layers,
            width=width,
            num_heads=2,
            head_width=head_width,
            hidden_width=hidden,
            max_positions=places,
            norm="rmsnorm",
            mlp="relu",
            bias=False,
            unroll=1,
            attention_scale=1.0,
            **given,
        )
        scale = np.full((layers, width), LARGE / width**0.5)
        head = (layers, width, 2, head_width)
        self.front = np.zeros((given["vocab_size"] if given["inputs"] == "tokens" else self._inputs(task), width))
        self.positions = np.zeros((places, width))
        self.positions[:, self.at["one"]] = LARGE
        self.query, self.key, self.value = np.zeros(head), np.zeros(head), np.zeros(head)
        self.out = np.zeros((layers, 2, head_width, width))
        self.up, self.down = np.zeros((layers, width, hidden)), np.zeros((layers, hidden, width))
        self.readout = np.zeros((width, given["num_outputs"]))
        self.scale, self.last = scale, scale[0]

    @staticmethod
    def _inputs(task: Any) -> int:
        return task.input_width + task.num_outputs + NUM_KINDS

    def look(self, block: int, head: int, who: dict[str, float], whom: dict[str, float], slot: int = 0) -> None:
        """The logit is (sum of the channels `who` of the looking token) times (that of `whom` of the one looked at)."""
        for table, weights in ((self.query, who), (self.key, whom)):
            for name, weight in weights.items():
                table[block - 1, self.at[name], head, slot] = weight / (LARGE if name == "one" else 1)

    def copy(self, block: int, head: int, source: str, target: str) -> None:
        """What is seen of `source` is added to `target`."""
        for place, (a, b) in enumerate(zip(self.at[source], self.at[target], strict=True)):
            self.value[block - 1, a, head, place] = self.out[block - 1, head, place, b] = 1.0

    def unit(self, block: int, number: int, reads: dict[int, float], threshold: float, writes: int) -> None:
        """A hidden unit that adds ``max(0, sum of reads - threshold)`` to channel `writes`."""
        for channel, weight in reads.items():
            self.up[block - 1, channel, number] = weight
        self.up[block - 1, self.at["one"], number] = -threshold / LARGE
        self.down[block - 1, number, writes] = 1.0

    def model(self) -> Model:
        """The decoder with its parameters."""
        front = {"embedding" if self.config.inputs == "tokens" else "kernel": self.front}
        kernels = {name: {"kernel": getattr(self, name)} for name in ("query", "key", "value", "out", "up", "down")}
        norms = {name: {"scale": self.scale} for name in ("attn_norm", "mlp_norm")}
        params = {"front": front, "positions": self.positions, "blocks": {**kernels, **norms}}
        params |= {"norm": {"scale": self.last}, "readout": {"kernel": self.readout}}
        return Model(_float32(params), self.config)


def _float32(tree: Any) -> Any:
    return {k: _float32(v) for k, v in tree.items()} if isinstance(tree, dict) else jnp.asarray(tree, jnp.float32)


def token_offset(task: TokenOffset, places: int, *, theta_is_read: bool = True) -> Model:
    """Three blocks that solve token offset exactly, in layout xzy.

    1: each y copies the x of its pair and writes c = (y - x) mod V. 2: each z copies c from the y before it, evenly.
    3: each z copies the x before it and writes (x + c) mod V, which the readout says. So h^2 at z is the task, and
    nothing of the query; h^3 has answered the query.

    With `theta_is_read` False block 2 writes c where nobody reads it, and block 3 looks for c at the y's itself: h^2 at
    z holds the task, but is no task vector.
    """
    size = task.vocab_size
    sets = dict.fromkeys(("copied", "offset", "theta", "idle", "query", "answer"), size)
    channels = {"token": size + 1, "x": 1, "y": 1, "z": 1, "not_y": 1, "place": 1, **sets}
    w = Weights(task, {**channels, "word": size}, layers=3, head_width=size, hidden=size**2, places=places)
    for token in range(size + 1):
        w.front[token, w.at["token"][token]] = 1
        if token < size:
            w.front[token, w.at["word"][token]] = 1
    for place in range(places):
        kind = "xzy"[place % 3]
        w.positions[place, w.at[kind]] = 1
        w.positions[place, w.at["not_y"]] = kind != "y"
        w.positions[place, w.at["place"]] = place if kind == "x" else 0
    nearest_x = {"x": FIRM, "place": FIRM}  # of all x, the one before
    w.look(1, 0, {"y": 1}, nearest_x)
    w.look(1, 0, {"not_y": 1}, {"z": FIRM}, slot=1)  # where it sees no word
    w.copy(1, 0, "word", "copied")
    w.look(2, 0, {"z": 1}, {"y": FIRM})
    w.copy(2, 0, "offset", "theta" if theta_is_read else "idle")
    w.look(3, 0, {"z": 1}, nearest_x)
    w.copy(3, 0, "word", "query")
    if not theta_is_read:
        w.look(3, 1, {"z": 1}, {"y": FIRM})
        w.copy(3, 1, "offset", "theta")
    number = 0
    for first in range(size):
        for second in range(size):
            pair = {w.at["word"][first]: 1.0, w.at["copied"][second]: 1.0, w.at["y"][0]: 1.0}
            w.unit(1, number, pair, 2.0, w.at["offset"][(first - second) % size])
            both = {w.at["query"][first]: 1.0, w.at["theta"][second]: 1.0}
            w.unit(3, number, both, 1.0, w.at["answer"][(first + second) % size])
            number += 1
    w.readout[w.at["answer"], np.arange(size)] = 30.0
    return w.model()


def fixed_map(task: Any, matrix_YX: np.ndarray, places: int) -> Model:
    """One block that answers ``matrix x`` to the x before each z, whatever the demonstrations; the second does nothing.

    theta at layer 0 does not stand in its way: z copies x in block 1. From layer 1 on theta brings its own x along.
    """
    outputs, inputs = matrix_YX.shape
    w = Weights(
        task, {"input": inputs, "x": 1, "z": 1, "seen": inputs}, layers=2, head_width=inputs, hidden=1, places=places
    )
    w.front[np.arange(inputs), w.at["input"]] = 1
    kinds = inputs + outputs
    w.front[kinds + X, w.at["x"]] = w.front[kinds + Z, w.at["z"]] = 1
    assert Y not in (X, Z)
    w.look(1, 0, {"z": 1}, {"x": FIRM})
    w.copy(1, 0, "input", "seen")
    w.readout[w.at["seen"]] = matrix_YX.T
    return w.model()
