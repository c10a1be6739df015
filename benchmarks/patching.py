"""How fast are layer sweeps and edited generation? python benchmarks/patching.py [--rounds=3] [--sides=sweep,generate]

Both sides have the same random weights of GPT-2's small size (12 layers, width 768, 12 heads, 50257 tokens, float32).
  sweep     batch 32, prompts of 32 tokens: the logits of the last position with a vector in its place at h^0..h^12
            torch: 13 passes of transformers' GPT2LMHeadModel with a forward hook; tvjax: `tvjax.sweep`
  generate  batch 8, prompts of 32 tokens, 32 new ones, with a vector of its own added to each prompt, at h^6 of every
            position. torch: `generate` with a forward hook; tvjax: `tvjax.generate`; both with a cache, greedy
Prints milliseconds and ratios of speed, as median [min..max] over rounds; first, that both sides say the same.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable

import numpy as np
import turns

LAYERS, WIDTH, TOKENS = 12, 768, 50257
LENGTH, SWEEP_BATCH, BATCH, NEW, LAYER = 32, 32, 8, 32, 6


def draws() -> tuple[np.ndarray, np.ndarray]:
    """Token ids ``[B, T]`` and vectors ``[L+1, B, D]``, the same on both sides."""
    random = np.random.default_rng(0)
    ids = random.integers(0, TOKENS, (SWEEP_BATCH, LENGTH))
    return ids, random.standard_normal((LAYERS + 1, SWEEP_BATCH, WIDTH)).astype(np.float32)


def make_folder(folder: str) -> None:
    """A folder with random weights."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(bos_token_id=0, eos_token_id=None)).save_pretrained(folder)


def torch_side(folder: str, work: str, device: str) -> Callable[[], np.ndarray]:
    import torch
    from transformers import GPT2LMHeadModel

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model = GPT2LMHeadModel.from_pretrained(folder).to(device).eval()
    ids, vectors = (torch.tensor(a, device=device) for a in draws())
    blocks = model.transformer.h

    def at(layer: int, edit: Callable) -> object:
        """A hook that edits h^layer."""
        if layer == 0:
            return blocks[0].register_forward_pre_hook(lambda m, args: (edit(args[0]), *args[1:]))
        after = lambda m, args, out: (edit(out[0]), *out[1:]) if isinstance(out, tuple) else edit(out)  # noqa: E731
        return blocks[layer - 1].register_forward_hook(after)

    @torch.no_grad()
    def sweep() -> np.ndarray:
        rows = []
        for layer in range(LAYERS + 1):
            hook = at(layer, lambda h, v=vectors[layer]: torch.cat([h[:, :-1], v[:, None]], 1))
            rows.append(model(ids, logits_to_keep=1, use_cache=False).logits[:, 0])
            hook.remove()
        return torch.stack(rows).cpu().numpy()

    @torch.no_grad()
    def generate() -> np.ndarray:
        hook = at(LAYER, lambda h: h + vectors[LAYER, :BATCH, None])
        prompts = ids[:BATCH]
        mask = torch.ones_like(prompts)
        out = model.generate(prompts, attention_mask=mask, max_new_tokens=NEW, do_sample=False, pad_token_id=0)
        hook.remove()
        return out[:, LENGTH:].cpu().numpy()

    return {"sweep": sweep, "generate": generate}[work]


def tvjax_side(folder: str, work: str) -> Callable[[], np.ndarray]:
    import jax.numpy as jnp

    import tvjax

    model = tvjax.load(folder)
    ids, vectors = (jnp.asarray(a) for a in draws())
    if work == "sweep":
        return lambda: np.asarray(tvjax.sweep(model, ids, vectors))
    write = tvjax.add(vectors[LAYER, :BATCH], layers=LAYER, positions="all")
    return lambda: np.asarray(tvjax.generate(model, ids[:BATCH], max_new_tokens=NEW, edits=write).ids_BT)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sides", default="sweep,generate")
    parser.add_argument("--device", default="cpu", help="of the torch side: cpu or cuda; jax takes what it finds")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        library, work = options.side.split("-")
        run = (
            torch_side(options.folder, work, options.device) if library == "torch" else tvjax_side(options.folder, work)
        )
        np.save(f"{options.folder}/{options.side}.npy", run())
        turns.serve(run)
        return
    with tempfile.TemporaryDirectory() as folder:
        make_folder(folder)
        command = [sys.executable, __file__, f"--device={options.device}", f"--folder={folder}"]
        for work in options.sides.split(","):
            names = [f"torch-{work}", f"tvjax-{work}"]
            seconds = turns.measure(command, names, options.rounds)
            first, second = (np.load(f"{folder}/{name}.npy") for name in names)
            print(f"{work}: largest difference between the sides {np.abs(first - second).max():.2g}")
            for name, values in seconds.items():
                print(f"{name:15s} {turns.spread([1e3 * v for v in values], 0)} ms")
            turns.ratio(f"speed of tvjax / torch, {work}", seconds, *names)


if __name__ == "__main__":
    main()
