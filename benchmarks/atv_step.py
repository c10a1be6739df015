"""How fast are ATV's training and injection? python benchmarks/atv_step.py [--rounds=5] [--batch=32] [--steps=4]

A random Llama-like target, frozen, and a random GPT-2-like generator, float32, the same weights on all sides; by
default of the sizes of configs/atv_text.py, larger with --layers=6 --width=256 --query=10,60. Examples have queries of
2..12 tokens, 3 templates around each, answers of 1..3 tokens. Generator and expansion are trained with
Adam (L2 in the gradient), vectors are added at all tokens after every block, dropout is off.
  tvjax         the training step of a run: a batch of examples with all their prompts, padded to the longest of all
  torch         as the released code trains: one example a step, its prompts one by one, forward hooks on the blocks
  torch-sum     the same, but an optimizer step for a whole batch of examples: the steps that tvjax takes
  torch-padded  these steps again, with the batch padded as one: what hooks could do
  inject        tvjax alone: a forward pass of the target over a batch of queries without vectors, and with vectors,
                which are given, at all tokens or at the last; the passes take turns in one process
First every side says the loss of each example of the first batch: no figure is printed unless they agree.
Prints examples a second and ratios of speed, as median [min..max] over rounds. The sides of PyTorch need the `parity`
extra (pip install -e '.[parity]') and are left out where it is not installed.
"""

import argparse
import functools
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import turns

ANSWER, READING = (1, 3), (3, 3)
TEMPLATES = ((2, 2), (4, 3), (1, 6))  # tokens before and after a query
BATCHES = 4  # different ones
SCALE, LEARNING_RATE, L2 = 1.0, 5e-4, 1e-5  # lambda is large, that the losses depend on the vectors
TOLERANCE = 1e-3
Example = tuple[list[int], list[tuple[list[int], list[int]]]]


def examples(o: argparse.Namespace) -> list[Example]:
    """What the generator reads of each query, and its prompt and answer in each template: the same on all sides."""
    random = np.random.default_rng(0)
    ids = lambda low, high: random.integers(1, o.vocab, random.integers(low, high + 1)).tolist()  # noqa: E731
    frames = [(ids(before, before), ids(after, after)) for before, after in (READING, *TEMPLATES)]
    made = []
    for _ in range(BATCHES * o.batch):
        query, answer = ids(*o.query), ids(*ANSWER)
        reading, *prompts = (before + query + after for before, after in frames)
        made.append((reading, [(prompt, answer) for prompt in prompts]))
    return made


def make_models(folder: Path, o: argparse.Namespace) -> None:
    """The folders `target` and `generator` with random weights, and those of the expansion as tvjax begins."""
    import jax

    from tvjax.nn.decoder import DecoderConfig
    from tvjax.nn.model import Model
    from tvjax.nn.pretrained import save_model
    from tvjax.train.state import INIT, member_key

    shared = {"num_outputs": o.vocab, "inputs": "tokens", "vocab_size": o.vocab}
    heads = max(2, o.width // 32)
    target = DecoderConfig(
        **shared,
        num_layers=o.layers,
        width=o.width,
        num_heads=heads,
        num_kv_heads=heads // 2,
        hidden_width=3 * o.width,
        norm="rmsnorm",
        positions="rotary",
        mlp="gated_silu",
        bias=False,
    )
    generator = DecoderConfig(
        **shared,
        num_layers=o.generator_layers,
        width=o.generator_width,
        num_heads=max(2, o.generator_width // 32),
        max_positions=128,
        tied_readout=True,
        unbiased=("readout",),
    )
    for name, config in (("target", target), ("generator", generator)):
        (folder / name).mkdir()
        model = Model(None, config)
        params = model.decoder.init(jax.random.key(len(name)), np.zeros((1, 2), np.int32))["params"]
        save_model(Model(params, config), folder / name)
    experiment, hyper = tvjax_experiment(folder, o)
    one = {name: value[0] for name, value in hyper.items()}
    expansion = experiment.init(member_key(one, INIT), experiment.data())["expansion"]["up"]
    np.savez(folder / "expansion.npz", **{name: np.asarray(value) for name, value in expansion.items()})


def tvjax_experiment(folder: Path, o: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    """What tvjax trains, and the numbers of its one member."""
    import jax
    import jax.numpy as jnp

    from tvjax.methods.atv import ATV
    from tvjax.nn.answers import Questions
    from tvjax.nn.pretrained import load_model
    from tvjax.nn.tokens import pad
    from tvjax.text.adapting import AdapterExperiment, ExampleConfig
    from tvjax.text.examples import Examples

    target, generator = load_model(folder / "target"), load_model(folder / "generator")
    data = examples(o)
    prompts = [one for _, prompts in data for one in prompts]
    answers = pad([answer for _, answer in prompts], side="right")
    last_B = jnp.array([len(prompt) - 1 for prompt, _ in prompts])
    q = Questions(pad([p + a for p, a in prompts], side="right"), last_B, answers.ids_BT, answers.valid_BT)
    readings = pad([reading for reading, _ in data], side="right")
    made = Examples(
        jax.tree.map(lambda a: a[:, None], readings),
        jax.tree.map(lambda a: a.reshape(len(data), len(TEMPLATES), *a.shape[1:]), q),
        jnp.zeros(len(data), jnp.int32),
        jnp.arange(len(data)),
    )
    layers = tuple(range(1, o.layers + 1))
    experiment = AdapterExperiment(
        ExampleConfig(batch=o.batch, examples=len(data), shuffled=False),
        ATV(target.config, generator.config, layers, positions="all"),
        {"target": target.bare, "generator": generator.params},
        made,
        jax.tree.map(lambda a: a[: o.batch], made),
        fewest=len(data),
    )
    hyper = {
        "seed": jnp.array([0]),
        "learning_rate": jnp.array([LEARNING_RATE]),
        "scale": jnp.full((1, len(layers)), SCALE),
        "examples": jnp.array([len(data)]),
    }
    return experiment, hyper


def tvjax_side(folder: Path, o: argparse.Namespace) -> tuple[Callable[[], None], Callable[[], np.ndarray]]:
    """What trains a few steps, and what says the losses of the first batch."""
    import jax
    import jax.numpy as jnp

    from tvjax.nn.answers import risk
    from tvjax.parallel.mesh import make_mesh
    from tvjax.text.adapting import over_prompts
    from tvjax.train.loop import Trainer
    from tvjax.train.state import OptimizerConfig, TrainConfig

    experiment, hyper = tvjax_experiment(folder, o)
    data = experiment.data()
    config = TrainConfig(steps=o.steps, log_every=o.steps, evaluate_every=o.steps, checkpoint_every=o.steps)
    adam = OptimizerConfig(decay="constant", l2=L2)
    trainer = Trainer(experiment, config, adam, make_mesh(), ("one",), hyper, jax.random.key(0))
    with jax.set_mesh(trainer.mesh):
        init, dispatch, _ = trainer.compile()
        state = init(hyper, data)

    def run() -> None:
        nonlocal state
        with jax.set_mesh(trainer.mesh):
            state, metrics = dispatch(state, data, hyper)
            jax.block_until_ready(metrics)

    @jax.jit
    def of_first(params: Any) -> jax.Array:
        queries, q = data["train"].rows(jnp.arange(o.batch))
        with jax.default_matmul_precision("highest"):
            return over_prompts(experiment.adapter, risk, params, data["frozen"], queries, q, hyper["scale"][0]).mean(0)

    return run, lambda: np.asarray(of_first(jax.tree.map(lambda p: p[0], state.params)))


def released_side(o: argparse.Namespace) -> tuple[Callable[[], None], Callable[[], np.ndarray]]:
    """As `tvjax_side`."""
    from atv_released import Released

    fixed = {"scale": SCALE, "learning_rate": LEARNING_RATE, "l2": L2}
    released = Released(o.folder, examples(o), argparse.Namespace(**vars(o), **fixed))
    return released.run, released.losses


def inject_side(folder: Path, o: argparse.Namespace) -> None:
    """Print, as JSON, for "all" and "last" the rounds' ratios to a pass without vectors, and its milliseconds."""
    import jax

    from tvjax.nn.answers import Questions
    from tvjax.nn.model import Model, forward
    from tvjax.nn.pretrained import load_model
    from tvjax.nn.tokens import pad
    from tvjax.vectors.atv import inject

    target = load_model(folder / "target")
    config, layers = target.config, tuple(range(1, o.layers + 1))
    tokens = pad([prompts[0][0] for _, prompts in examples(o)[: o.batch]], side="right")
    q = Questions(tokens, tokens.last_B, tokens.ids_BT[:, :1], tokens.valid_BT[:, :1])
    v_BND = 0.1 * jax.random.normal(jax.random.key(0), (o.batch, o.layers, o.width))

    @functools.partial(jax.jit, static_argnums=0)
    def ask(positions: Any, params: Any, q: Questions, v_BND: jax.Array) -> jax.Array:
        edits = inject(v_BND, layers, positions, config, q) if positions else None
        where = {"at": q.last_B[:, None], "positions_BT": q.tokens.positions_BT}
        return forward(Model(params, config), q.tokens.ids_BT, edits=edits, **where)[0]

    def seconds(positions: Any) -> float:
        begun = time.perf_counter()
        jax.block_until_ready(ask(positions, target.params, q, v_BND))
        return time.perf_counter() - begun

    sides = (None, "all", "last")
    outs = [np.asarray(ask(positions, target.params, q, v_BND)) for positions in sides]
    assert all(np.abs(outs[0] - out).max() > 1e-3 for out in outs[1:]), "the vectors change nothing"
    found: dict[str, list[float]] = {"bare": [], "all": [], "last": []}
    for _ in range(o.rounds):
        times: dict[Any, list[float]] = {positions: [] for positions in sides}
        for turn in range(o.passes):
            for i in range(len(sides)):  # each goes first, second and last equally often
                positions = sides[(turn + i) % len(sides)]
                times[positions].append(seconds(positions))
        found["bare"].append(1e3 * statistics.median(times[None]))
        for positions in sides[1:]:
            found[positions].append(statistics.median(np.divide(times[positions], times[None])))
    print(json.dumps(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=32, help="examples in a batch, and queries in a pass")
    parser.add_argument("--steps", type=int, default=4, help="batches of examples in a round")
    parser.add_argument("--passes", type=int, default=12, help="of each kind, in a round of `inject`")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--generator-layers", type=int, default=2)
    parser.add_argument("--generator-width", type=int, default=64)
    parser.add_argument("--vocab", type=int, default=3000)
    parser.add_argument("--query", type=turns.pair, default=(2, 12), help="fewest and most tokens of a query")
    parser.add_argument("--sides", default="tvjax,torch,torch-sum,torch-padded,inject")
    parser.add_argument("--device", default="cpu", help="of the torch sides: cpu or cuda; jax takes what it finds")
    parser.add_argument("--threads", type=int, default=0, help="of PyTorch; 0: as many as there are cores")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    o = parser.parse_args()
    if o.side == "make":
        make_models(o.folder, o)
    elif o.side == "inject":
        inject_side(o.folder, o)
    elif o.side:
        run, losses = tvjax_side(o.folder, o) if o.side == "tvjax" else released_side(o)
        before = losses()
        run()
        np.save(o.folder / f"{o.side}.npy", np.stack([before, losses()]))
        turns.serve(run)
    else:
        compare(o)


def compare(o: argparse.Namespace) -> None:
    """Start the sides and print what they say."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the sides share an accelerator
    names = o.sides.split(",")
    if not all(importlib.util.find_spec(name) for name in ("torch", "transformers")):
        print("torch or transformers is not installed: tvjax alone")
        names = [name for name in names if not name.startswith("torch")]
    training = [name for name in names if name != "inject"]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, f"--folder={folder}"]
        command += [
            f"--{k.replace('_', '-')}={turns.said(v)}"
            for k, v in vars(o).items()
            if k not in ("sides", "side", "folder")
        ]
        subprocess.run([*command, "--side=make"], env={**os.environ, "JAX_PLATFORMS": "cpu"}, check=True)
        if training:
            seconds = turns.measure(command, training, o.rounds)
            say_losses({name: np.load(f"{folder}/{name}.npy") for name in training})
            for name, values in seconds.items():
                print(f"{name:13s} {turns.spread([o.steps * o.batch / v for v in values], 1)} examples a second")
            turns.ratio("speed of tvjax / torch, one example a step", seconds, "torch", "tvjax")
            turns.ratio("speed of tvjax / torch, a batch a step, example by example", seconds, "torch-sum", "tvjax")
            turns.ratio("speed of tvjax / torch, a batch a step, padded as one", seconds, "torch-padded", "tvjax")
        if "inject" in names:
            out = subprocess.run([*command, "--side=inject"], stdout=subprocess.PIPE, text=True, check=True).stdout
            found = json.loads(out)
            print(f"a pass over {o.batch} queries without vectors: {turns.spread(found['bare'], 1)} ms")
            for where, text in (("all", "all tokens"), ("last", "the last token")):
                more = turns.spread([100 * (value - 1) for value in found[where]], 1)
                print(f"time that vectors at {text} of every layer add: {more} %")


def say_losses(losses: dict[str, np.ndarray]) -> None:
    """Print how far the sides' losses are apart; end here if that is too far.

    After steps of a whole batch too: then gradients and Adam are the same. Those steps may be rounded as an accelerator
    rounds products by default, so how far the losses are apart then is only said.
    """
    for name, (before, after) in losses.items():
        print(f"{name}: loss of the first batch {before.mean():.5f}, after the first steps {after.mean():.5f}")
        if name == "tvjax" or "tvjax" not in losses:
            continue
        apart = [np.abs(mine - yours).max() for mine, yours in zip((before, after), losses["tvjax"], strict=True)]
        if not apart[0] < TOLERANCE:
            sys.exit(f"{name}: the loss of an example differs from tvjax's by {apart[0]:.2g}: nothing is compared")
        later = "" if name == "torch" else f", after the first steps {apart[1]:.2g}"
        print(f"{name}: the loss of an example differs from tvjax's by {apart[0]:.2g} at most{later}")


if __name__ == "__main__":
    main()
