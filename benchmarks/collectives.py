"""What goes over the network? python benchmarks/collectives.py [--devices=8,32,128,1024] [--hardware=tpu-v5p]

For each axis of the mesh alone, and each number of devices along it, the training step of a small decoder is compiled
for a slice that is not here, and the bytes that one device sends to others in a step are read from the program:
  member  a member more for each device
  data    prompts more for each device (--batch, 4), all parameters on each
  fsdp    the same, but each device holds a part of the parameters
  tensor  the heads and hidden channels of --batch prompts
The decoder has --layers=4 of --width=1024, with 1,024 heads of two channels, so that `tensor` can be cut as finely; the
loss is the ICL loss of linear regression. Prints the bytes, and draws them to
docs/figures/collectives.png (--figure=FILE; "" draws nothing).
"""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

HEADS = 1024
AXES = ("member", "data", "fsdp", "tensor")
SAYS = {
    "member": "members: one a device",
    "data": "data: parameters on every device",
    "fsdp": "fsdp: parameters cut",
    "tensor": "tensor: heads and channels cut",
}


def settings(axis: str, count: int, o: argparse.Namespace) -> Any:
    """What is trained on `count` devices along `axis`."""
    from tvjax.experiments.tvp.settings import TVPSettings

    members, batch = (count if axis == "member" else 1), o.batch * (count if axis in ("data", "fsdp") else 1)
    sizes = {"num_layers": o.layers, "width": o.width, "num_heads": HEADS, "head_width": 2}
    return TVPSettings.from_config(
        {
            "task": {"name": "linear", "input_width": 4},
            "prompt": {"layout": "xzy", "demonstrations": 20},
            "curriculum": {"dimensions": {}, "pairs": {}},
            "model": {**sizes, "max_positions": 64, "unroll": 1},
            "tvp": {},
            "population": {
                "name": tuple(f"m{i}" for i in range(members)),
                "seed": tuple(range(members)),
                "tvp_weight": (0.0,),
                "prescribed_layer": (1,),
                "learning_rate": (1e-3,),
            },
            "train": {"batch": batch, "steps": 1, "log_every": 1, "evaluate_every": 1, "checkpoint_every": 1},
            "optimizer": {},
            "evaluation": {"training_prompts": 1, "prompts": 1, "shifts": False},
            "mesh": {axis: count},
        }
    )


def sent(axis: str, count: int, o: argparse.Namespace) -> float:
    """Bytes that a device sends in a step."""
    import jax

    from tvjax.experiments.tvp.training import make_trainer
    from tvjax.parallel.mesh import compiler_options, make_mesh
    from tvjax.parallel.programs import read
    from tvjax.parallel.topology import chip_named, devices_of

    s = settings(axis, count, o)
    mesh = make_mesh(**dataclasses.asdict(s.mesh), devices=devices_of(chip_named(o.hardware), count))
    trainer = make_trainer(s, mesh)
    with jax.set_mesh(mesh):
        hyper = jax.eval_shape(lambda: trainer.hyper)
        compiled = trainer.dispatch.lower(trainer.abstract, trainer.data, hyper).compile(compiler_options())
    return sum(one.sent for one in read(compiled.as_text(), mesh).collectives)


def draw(found: dict[str, list[float]], devices: list[int], path: Path) -> None:
    """Bytes a device against devices; an axis that sends nothing stands on the floor."""
    from matplotlib.lines import Line2D

    from tvjax.report.style import HUES, MARKERS, bottom_legend, open_figure, quiet

    about = "bytes that one device sends to others in a training step, by the compiled program"
    figure = open_figure(6.8, 3.6, "What each axis of the mesh costs in communication", about)
    ax = figure.add_subplot()
    handles = []
    for (axis, values), color, marker in zip(found.items(), HUES, MARKERS, strict=False):
        how = {"color": color, "marker": marker, "linewidth": 2}
        ax.plot(devices, [value / 1e6 for value in values], clip_on=False, zorder=3, **how)
        handles.append(Line2D([], [], label=SAYS[axis], **how))
    ax.set_xscale("log", base=2)
    ax.set_yscale("symlog", linthresh=1)
    ax.set_ylim(0, 2e-6 * max(max(values) for values in found.values()))
    ax.set_yticks([0, 1, 10, 100, 1000], ["0", "1", "10", "100", "1,000"])
    ax.set_xticks(devices, [f"{n:,}" for n in devices])
    quiet(ax, "devices along the axis (logarithmic)", "MB a device and step\n(logarithmic from 1 on)")
    bottom_legend(figure, handles)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    numbers = lambda text: [int(n) for n in text.split(",")]  # noqa: E731
    parser.add_argument("--devices", type=numbers, default=[8, 32, 128, 1024])
    parser.add_argument("--hardware", default="tpu-v5p", help="a row of tvjax/parallel/hardware.py")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--figure", default="docs/figures/collectives.png")
    o = parser.parse_args()
    print(f"bytes that a device sends in a step, {o.hardware}, by devices along one axis")
    print(f"{'':8s}" + "".join(f"{n:>14,}" for n in o.devices))
    found: dict[str, list[float]] = {}
    for axis in AXES:
        found[axis] = [sent(axis, count, o) for count in sorted(o.devices, reverse=True)][::-1]
        print(f"{axis:8s}" + "".join(f"{value:14,.0f}" for value in found[axis]), flush=True)
    if o.figure:
        draw(found, o.devices, Path(o.figure))
        print(o.figure)


if __name__ == "__main__":
    main()
