"""How fast is one training step? python benchmarks/train_step.py [--rounds=7] [--steps=8] [--sides=torch,icl,tvp]

Sides, each in a process of its own, run in turn so that a machine whose speed drifts treats them alike:
  torch  PyTorch eager with Hugging Face's GPT2Model (needs the `parity` extra: pip install -e '.[parity]')
  icl    tvjax, ICL loss
  tvp    tvjax, ICL loss + TVP-loss at layer L/2
The work is the setting of Garg et al. (2022) in its small form: 6 layers, width 128, 4 heads, linear regression with
d = 20, 41 points, batch 64, float32, Adam; prompts are sampled in the step. torch and icl read the same 81 tokens in
layout xy; tvp is compared with icl in layout xzy (121 tokens), since the TVP-loss needs a z.
Prints milliseconds a step and ratios of speed, as median [min..max] over rounds.
"""

import argparse
import os
import sys
from collections.abc import Callable

import turns
from programs import training

LAYERS, WIDTH, HEADS, INPUTS, POINTS, BATCH = 6, 128, 4, 20, 41, 64


def torch_side(device: str) -> Callable[[int], None]:
    """A function that takes n training steps of the PyTorch model."""
    import torch
    from transformers import GPT2Config, GPT2Model

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    length = 2 * POINTS - 1
    config = GPT2Config(
        n_positions=2 * POINTS, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
    )
    config.use_cache = False
    backbone = GPT2Model(config).to(device)
    read_in, read_out = torch.nn.Linear(INPUTS, WIDTH).to(device), torch.nn.Linear(WIDTH, 1).to(device)
    parameters = [p for module in (backbone, read_in, read_out) for p in module.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=1e-4)

    def run(steps: int) -> None:
        for _ in range(steps):
            x = torch.randn(BATCH, POINTS, INPUTS, device=device)
            w = torch.randn(BATCH, INPUTS, 1, device=device)
            y = x @ w
            shown = torch.cat([y, y.new_zeros(BATCH, POINTS, INPUTS - 1)], -1)
            inputs = torch.stack([x, shown], 2).view(BATCH, 2 * POINTS, INPUTS)[:, :length]
            out = read_out(backbone(inputs_embeds=read_in(inputs)).last_hidden_state[:, ::2])
            loss = (out - y).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        loss.item()

    return run


def tvjax_side(weight: float, layout: str, steps: int) -> Callable[[int], int]:
    """A function that takes n training steps, a multiple of `steps`, of the tvjax trainer."""
    sizes = {"num_layers": LAYERS, "width": WIDTH, "num_heads": HEADS}
    work = {"batch": BATCH, "inputs": INPUTS, "pairs": POINTS, "layout": layout}
    return training(steps=steps, members=1, weight=weight, **work, **sizes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--sides", default="torch,icl,icl-xzy,tvp")
    parser.add_argument("--device", default="cpu", help="of the torch side: cpu or cuda; jax takes what it finds")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    options = parser.parse_args()
    makers = {
        "torch": lambda: torch_side(options.device),
        "icl": lambda: tvjax_side(0.0, "xy", options.steps),
        "icl-xzy": lambda: tvjax_side(0.0, "xzy", options.steps),
        "tvp": lambda: tvjax_side(1.0, "xzy", options.steps),
    }
    if options.side:
        run = makers[options.side]()
        turns.serve(lambda: run(options.steps))
        return
    command = [sys.executable, __file__, f"--steps={options.steps}", f"--device={options.device}"]
    seconds = turns.measure(command, options.sides.split(","), options.rounds)
    for name, values in seconds.items():
        print(f"{name:8s} {turns.spread([1e3 * v / options.steps for v in values], 1)} ms a step")
    turns.ratio("speed of icl / torch", seconds, "torch", "icl")
    turns.ratio("time of tvp / icl-xzy", seconds, "tvp", "icl-xzy")


if __name__ == "__main__":
    main()
