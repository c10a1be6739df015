"""What do the vectors of a task cost to make? python benchmarks/make_vectors.py [--model=smollm2] [--rounds=5]

Sides, each in a process of its own, run in turn:
  forward  one pass over the few-shot prompts of every task, of which the logits of the last token are kept
  vectors  the vectors of every task that are made of these prompts without a search: state vectors, their mean over
           other tasks, the means of all heads, which SITE and function vectors are made of, and the sum of given heads
           at one layer (function vectors) and at their own (distributed function vectors)
Tasks are three of the built-in ones, with --prompts prompts of --demonstrations demonstrations each. Both sides cut the
text into tokens and pad it alike. Prints milliseconds a task and the ratio of the times, as median [min..max] over
rounds.
"""

import argparse
import sys

import jax
import numpy as np
import turns

TASKS = ("opposite", "capital", "plural")
HEADS = ((1, 0), (1, 2), (2, 1))
"""Given heads: which ones makes no difference to the time."""


def side(name: str, model_name: str, prompts: int, demonstrations: int) -> None:
    """Be one side: a new bench each time, so that nothing is remembered but the compiled programs."""
    import tvjax
    from tvjax.methods import controls, state_vector
    from tvjax.nn.model import Model, forward
    from tvjax.nn.tokens import Tokens
    from tvjax.tasks.suite import suite
    from tvjax.tasks.text import Template
    from tvjax.text.bench import Bench, VectorConfig
    from tvjax.vectors.function_vectors import function_vector

    model, tasks = tvjax.load(model_name, dtype="float32"), {task: suite()[task] for task in TASKS}
    config = VectorConfig(demonstrations=demonstrations, prompts=prompts)
    template = Template("", " ->", "\n", "\n")

    @jax.jit
    def last_logits(model: Model, tokens: Tokens) -> jax.Array:
        """The logits behind each prompt, ``[B, V]``."""
        at_B1 = tokens.last_B[:, None]
        return forward(model, tokens.ids_BT, at=at_B1, positions_BT=tokens.positions_BT)[0][:, 0]

    batches = Bench(model, config, template, tasks).batches

    def run() -> None:
        bench = Bench(model, config, template, tasks, batches=batches)
        if name == "forward":
            for task in tasks:
                bench.read(last_logits, bench.few_shot(task, bench.queries(task, prompts)))
            return
        state_vector.make(bench, None)
        controls.mean_of_tasks(bench, None)
        for task in tasks:
            heads = np.asarray(bench.shown(task)["heads"])
            for chosen in (HEADS, *([head] for head in HEADS)):
                np.asarray(function_vector(model.params, heads, list(chosen)))

    turns.serve(run)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2", help="what tvjax.load takes")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--demonstrations", type=int, default=10)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        side(options.side, options.model, options.prompts, options.demonstrations)
        return
    command = [sys.executable, __file__]
    command += [f"--{name}={value}" for name, value in vars(options).items() if name not in ("side", "rounds")]
    seconds = turns.measure(command, ["forward", "vectors"], options.rounds)
    for name, values in seconds.items():
        print(f"{name:8s} {turns.spread([1e3 * value / len(TASKS) for value in values], 0)} ms a task")
    turns.ratio("time of the vectors / one pass over the same prompts", seconds, "vectors", "forward")


if __name__ == "__main__":
    main()
