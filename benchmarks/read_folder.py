"""At what part of the disk's rate is a folder read? python benchmarks/read_folder.py [--size=10] [--rounds=3]

Makes a Llama folder of bfloat16 tensors, --size GB in shards of 1 GB, in a temporary folder, and reads it in turn, each
round anew from the disk: the kernel is asked to forget the files first.
Sides, each in a process of its own:
  disk    the bytes of the files alone, in pieces of 16 MB, kept nowhere
  tvjax   tvjax.load, until all parameters are on the device
Prints GB/s and the ratio of the rates, as median [min..max] over rounds, and the most resident memory over the files.
"""

import argparse
import json
import os
import resource
import sys
import tempfile
from pathlib import Path

import numpy as np
import turns

PIECE = 16 << 20
WIDTH, HIDDEN, VOCAB = 2048, 8192, 32_000


def write(folder: Path, size: float) -> None:
    """A Llama folder of about `size` GB of bfloat16 numbers; what they are makes no difference."""
    import ml_dtypes
    from safetensors.numpy import save_file

    layer: dict[str, tuple[int, ...]] = {
        **{f"self_attn.{part}_proj.weight": (WIDTH, WIDTH) for part in "qkvo"},
        **{f"mlp.{part}_proj.weight": (HIDDEN, WIDTH) for part in ("gate", "up")},
        "mlp.down_proj.weight": (WIDTH, HIDDEN),
        **{f"{place}_layernorm.weight": (WIDTH,) for place in ("input", "post_attention")},
    }
    held = 2 * sum(int(np.prod(shape)) for shape in layer.values())
    layers = max(1, round(size * 1e9 / held))
    pattern = np.random.default_rng(0).standard_normal(HIDDEN * WIDTH, np.float32).astype(ml_dtypes.bfloat16)
    rest = {"model.embed_tokens.weight": (VOCAB, WIDTH), "model.norm.weight": (WIDTH,)}
    named = rest | {f"model.layers.{n}.{name}": shape for n in range(layers) for name, shape in layer.items()}
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    for name, shape in named.items():
        if sum(2 * int(np.prod(shape)) for shape in shards[-1].values()) > 1e9:
            shards.append({})
        shards[-1][name] = shape
    where = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file({name: np.resize(pattern, shape) for name, shape in shard.items()}, folder / file)
        where |= dict.fromkeys(shard, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    config = {"model_type": "llama", "hidden_size": WIDTH, "intermediate_size": HIDDEN, "num_hidden_layers": layers}
    config |= {"num_attention_heads": 16, "vocab_size": VOCAB, "tie_word_embeddings": True, "dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config))


def forget(files: list[Path]) -> None:
    """Ask the kernel to keep none of the files in memory."""
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def side(name: str, folder: Path) -> None:
    """Be one side."""
    files = sorted(folder.glob("*.safetensors"))
    if name == "disk":

        def run() -> None:
            forget(files)
            piece = bytearray(PIECE)
            for file in files:
                with file.open("rb", buffering=0) as stream:
                    while stream.readinto(piece):
                        pass

        turns.serve(run)
        return
    import jax

    import tvjax

    def run() -> None:
        forget(files)
        model = tvjax.load(folder, unroll=1)
        jax.block_until_ready(model.params)

    turns.serve(run)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    held = sum(file.stat().st_size for file in files)
    print(f"tvjax: most resident memory {peak / held:.2f} times the files", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=float, default=10.0, help="GB")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scratch", help="where the folder is made (default: where temporary files are)")
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        side(options.side, Path(options.folder))
        return
    with tempfile.TemporaryDirectory(dir=options.scratch) as made:
        write(Path(made), options.size)
        size = sum(file.stat().st_size for file in Path(made).glob("*.safetensors")) / 1e9
        seconds = turns.measure([sys.executable, __file__, f"--folder={made}"], ["disk", "tvjax"], options.rounds)
        for name, values in seconds.items():
            print(f"{name:6s} {turns.spread([size / value for value in values], 2)} GB/s of {size:.2f} GB")
        turns.ratio("rate of tvjax / rate of the disk", seconds, "disk", "tvjax")


if __name__ == "__main__":
    main()
