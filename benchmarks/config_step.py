"""How fast does a config train here? python benchmarks/config_step.py --config=configs/atv_llama3_8b.py [--rounds=5]

Any config, at its full size, with fields set as for tvjax.main (--config.FIELD=VALUE), on the devices of this machine
(config.mesh). It needs neither weights nor data: the programs are those that --mode=plan compiles, a target's weights
are random, and text is of config.plan.query_tokens and config.plan.answer_tokens.
Prints of one training step, and of one evaluation during training (forward passes alone), milliseconds and TFLOP/s of
matrix products; of the step also examples a second; the share of what the devices could do, where the chip is known
(tvjax/parallel/hardware.py); and the memory. Median [min..max] over rounds of at least a second.
"""

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import turns


def with_values(data: Any) -> Any:
    """`data` with arrays for what is only a shape: small random weights, the same in all layers; tokens that are there.

    Which numbers they are is nothing to the time; that no token is padding is: text is as long as the plan has it.
    """
    import jax
    import jax.numpy as jnp

    def made(leaf: Any) -> jax.Array:
        if not isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf

        def values() -> jax.Array:
            if not jnp.issubdtype(leaf.dtype, jnp.floating):
                return jnp.full(leaf.shape, leaf.dtype == bool, leaf.dtype)
            layer = 0.02 * jax.random.normal(jax.random.key(0), leaf.shape[-2:], leaf.dtype)
            return jnp.broadcast_to(layer, leaf.shape)

        return jax.jit(values, out_shardings=leaf.sharding)()

    return jax.tree.map(made, data)


def timed(run: Callable[[], Any], rounds: int) -> list[float]:
    """Seconds of one call, in each round."""
    import jax

    def calls(count: int) -> float:
        begun = time.perf_counter()
        for _ in range(count):
            last = run()
        jax.block_until_ready(last)
        return (time.perf_counter() - begun) / count

    calls(2)
    count = max(1, round(1 / calls(1)))
    return [calls(count) for _ in range(rounds)]


def say(name: str, seconds: list[float], flops: Mapping[str, float], mesh: Any, examples: int = 0) -> None:
    from tvjax.parallel.hardware import chip_of
    from tvjax.train.observe import ideal_seconds

    total = sum(flops.values())
    parts = [f"{turns.spread([1e3 * s for s in seconds], 1)} ms"]
    parts += [f"{turns.spread([examples / s for s in seconds], 1)} examples/s"] if examples else []
    parts += [f"{turns.spread([total / s / 1e12 for s in seconds], 3)} TFLOP/s ({', '.join(flops)})"]
    if chip := chip_of(mesh.devices.flat[0].device_kind):
        ideal = ideal_seconds(flops, chip, mesh.size)
        parts.append(f"utilization {turns.spread([ideal / s for s in seconds], 3)} of {chip.name}")
    print(f"{name:11s}" + "; ".join(parts), flush=True)


def measure(config: dict[str, Any], rounds: int) -> None:
    import jax

    from tvjax.experiments.base import PlanConfig
    from tvjax.experiments.planned import trainer_of
    from tvjax.files import flatten
    from tvjax.parallel.mesh import MeshConfig, make_mesh
    from tvjax.settings import build
    from tvjax.train.flops import flops
    from tvjax.train.observe import memory

    plan = build(PlanConfig, config.pop("plan"), "config.plan")
    mesh = make_mesh(**dataclasses.asdict(build(MeshConfig, config.get("mesh", {}), "config.mesh")))
    trainer = trainer_of(config, plan, mesh)
    with jax.set_mesh(mesh):
        begun = time.perf_counter()
        init, dispatch, evaluate = trainer.compile()
        print(f"{mesh.size} x {mesh.devices.flat[0].device_kind}, compiled in {time.perf_counter() - begun:.1f} s")
        for name, value in flatten(config).items():
            if name.endswith("matmul_precision"):
                print(f"{name} = {value}")
        data, hyper, key = with_values(trainer.data), trainer.hyper, jax.random.key(0)
        of_evaluation = flops(trainer.evaluate.trace(trainer.abstract.params, data, key, hyper).jaxpr)
        state = init(hyper, data)

        def step() -> Any:
            nonlocal state
            state, metrics = dispatch(state, data, hyper)
            return metrics

        say("step", timed(step, rounds), trainer.flops(), mesh, trainer.examples)
        say("evaluation", timed(lambda: evaluate(state.params, data, key, hyper), rounds), of_evaluation, mesh)
    for name, value in memory(mesh).items():
        print(f"{name}: {value:.2f}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    options, flags = parser.parse_known_args()
    from tvjax.cli import exit_cleanly, read_flags

    return exit_cleanly(lambda argv: measure(read_flags(argv)[0], options.rounds), [__file__, *flags, "--mode=plan"])


if __name__ == "__main__":
    sys.exit(main())
