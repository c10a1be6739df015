"""What does a population cost? python benchmarks/population.py [--members=8] [--rounds=7] [--steps=20] [--weight=1]

Sides, each in a process of its own, run in turn so that a machine whose speed drifts treats them alike:
  population  one step of `members` equal members, trained as one program
  alone       the step of a single member, `members` times one after another
The work is that of configs/tvp_synthetic.py: 4 layers, width 64, 2 heads, linear regression with d = 2 and K = 8, a
batch of 32 for each member, ICL loss + `weight` times the TVP-loss (0: the ICL loss alone). Other sizes: --layers,
--width, --batch. Prints milliseconds a step of one member and the ratio of the times, as median [min..max] over rounds;
compiling, which a population does once and single runs each for themselves, is not in it.
"""

import argparse
import sys

import turns
from programs import training


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--weight", type=float, default=1.0)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    options = parser.parse_args()
    sizes = {"num_layers": options.layers, "width": options.width, "num_heads": 2, "batch": options.batch}
    if options.side:
        members = options.members if options.side == "population" else 1
        work = {"inputs": 2, "pairs": 9, "layout": "xzy", "weight": options.weight}
        run = training(steps=options.steps, members=members, **work, **sizes)
        turns.serve(lambda: run(options.steps * options.members // members))
        return
    command = [sys.executable, __file__]
    command += [f"--{name}={value}" for name, value in vars(options).items() if name not in ("side", "rounds")]
    seconds = turns.measure(command, ["population", "alone"], options.rounds)
    for name, values in seconds.items():
        each = [1e3 * value / options.steps / options.members for value in values]
        print(f"{name:10s} {turns.spread(each, 2)} ms a step of a member")
    turns.ratio(f"time of {options.members} members together / one after another", seconds, "population", "alone")


if __name__ == "__main__":
    main()
