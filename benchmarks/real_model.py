"""How fast is a real language model? python benchmarks/real_model.py [--model=smollm2] [--rounds=5] [--works=..]

The model is what --model names of the llama family, in float32: SmolLM2-135M (30 layers, width 576, 9 heads of which 3
have keys, 49152 tokens), which is fetched once, or another name, a GGUF file or a Hugging Face folder.
  forward    the logits of every position, of 1 x 16 and of 8 x 128 tokens
  generate   64 new tokens after 16, greedy, with a cache, for 1 and for 8 prompts; a token's share of the whole call
  sweep      the logits of the last position with a vector in its place at each of h^0..h^L in turn, of 64 x 8 and of
             16 x 64 tokens. transformers: a pass a layer with a forward hook
  heads      the indirect effect of every head on 25 prompts of 64 tokens, about ten demonstrations. transformers: a
             pass a head with a hook before the output projection, of which 3 are timed and the rest reckoned
  memory     resident memory over the parameters' own: after the load, and after the logits of two tokens; of what
             --model names itself, also seconds of the load
  first      seconds of the first call in a new process, whose programs an earlier process has compiled, or none
The sides of a work, transformers and tvjax, and llama.cpp where there is no write, run in turn on the same float32
weights, each in a process of its own and with as many threads as there are cores. Prints milliseconds and ratios of
speed as median [min..max] over rounds, and that all say the same.
"""

import argparse
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

WORKS = {
    "forward": ("forward-1x16", "forward-8x128"),
    "generate": ("generate-1x16", "generate-8x16"),
    "sweep": ("sweep-64x8", "sweep-16x64"),
    "heads": ("heads-25x64",),
}
ALONE = ("memory", "first")
"""Works that are not timed in turn: each number is of a process of its own."""
GGUF = "model.gguf"
UNEDITED = ("forward", "generate")
"""Works that llama.cpp can do too."""
NEW = 64
TIMED_PASSES = 3
"""Of the torch side's one pass without a write and one a head."""


def make_folder(model: str, folder: str) -> str:
    """The model as a folder that all sides read, in float32, with a GGUF file in it."""
    import tvjax

    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tests.nn.gguf_files import NO_VOCAB, write_gguf

    tvjax.export(tvjax.load(model, dtype="float32"), folder)
    size = json.loads(Path(folder, "config.json").read_text())["vocab_size"]
    write_gguf(Path(folder, GGUF), Path(folder), tokenizer={**NO_VOCAB, "llama.vocab_size": size})
    return folder


def draws(work: str, model: Any) -> tuple[str, np.ndarray, np.ndarray]:
    """The kind of work, token ids ``[B, T]``, and vectors ``[L+1, B, D]``: the same on both sides."""
    kind, _, size = work.partition("-")
    batch, length = map(int, size.split("x"))
    random = np.random.default_rng(0)
    ids = random.integers(0, model["vocab_size"], (batch, length))
    shape = (model["num_hidden_layers"] + 1, batch, model["hidden_size"])
    return kind, ids, random.standard_normal(shape).astype(np.float32)


def torch_side(folder: str, work: str) -> Callable[[], np.ndarray]:
    import torch
    from transformers import LlamaForCausalLM

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    c = model.config
    model.generation_config.eos_token_id = None
    blocks, channels = model.model.layers, c.hidden_size // c.num_attention_heads
    kind, ids, vectors = draws(work, c.to_dict())
    ids, vectors = torch.tensor(ids), torch.tensor(vectors)

    def last() -> torch.Tensor:
        return model(ids, logits_to_keep=1, use_cache=False).logits[:, 0]

    def swept(layer: int) -> torch.Tensor:
        edit = lambda h: torch.cat([h[:, :-1], vectors[layer][:, None]], 1)  # noqa: E731
        if layer == 0:
            hook = blocks[0].register_forward_pre_hook(lambda m, args: (edit(args[0]), *args[1:]))
        else:
            hook = blocks[layer - 1].register_forward_hook(lambda m, args, out: edit(out))
        out = last()
        hook.remove()
        return out

    def effect(layer: int, head: int) -> torch.Tensor:
        """The probability of token 0 where a head's last output is the vector's part of its own."""

        def put(module: Any, args: tuple) -> tuple:
            x, place = args[0].clone(), slice(head * channels, (head + 1) * channels)
            x[:, -1, place] = vectors[layer, 0, place]
            return x, *args[1:]

        hook = blocks[layer].self_attn.o_proj.register_forward_pre_hook(put)
        out = last().softmax(-1)[:, 0].mean()
        hook.remove()
        return out

    @torch.no_grad()
    def run() -> np.ndarray:
        if kind == "forward":
            return model(ids, use_cache=False).logits.numpy()
        if kind == "generate":
            mask = torch.ones_like(ids)
            out = model.generate(ids, attention_mask=mask, max_new_tokens=NEW, do_sample=False, pad_token_id=0)
            return out[:, ids.shape[1] :].numpy()
        if kind == "sweep":
            return torch.stack([swept(layer) for layer in range(c.num_hidden_layers + 1)]).numpy()
        base = last().softmax(-1)[:, 0].mean()
        return torch.stack([effect(i, i % c.num_attention_heads) - base for i in range(TIMED_PASSES - 1)]).numpy()

    return run


def tvjax_side(folder: str, work: str) -> Callable[[], np.ndarray]:
    import jax
    import jax.numpy as jnp

    import tvjax
    from tvjax.nn.answers import Questions
    from tvjax.nn.tokens import pad
    from tvjax.parallel.batches import Batches
    from tvjax.vectors.above import head_effects

    model = tvjax.load(folder, dtype="float32")
    c = model.config
    sizes = {"vocab_size": c.vocab_size, "num_hidden_layers": c.num_layers, "hidden_size": c.width}
    kind, ids, vectors = draws(work, sizes)
    batch, length = ids.shape
    ids_BT = jnp.asarray(ids)
    if kind == "forward":
        return lambda: np.asarray(tvjax.run(model, ids_BT))
    if kind == "generate":
        return lambda: np.asarray(tvjax.generate(model, ids_BT, max_new_tokens=NEW, stop=()).ids_BT)
    if kind == "sweep":
        return lambda: np.asarray(tvjax.sweep(model, ids_BT, vectors))
    none, one = jnp.zeros((batch, 1), jnp.int32), jnp.ones((batch, 1), bool)
    q = Questions(pad(ids.tolist(), side="right"), jnp.full(batch, length - 1), none, one)
    mean_LHC = jnp.asarray(vectors[:-1, 0].reshape(c.num_layers, c.num_heads, c.channels))
    batches = Batches(1.0, 64)  # as configs/task_vectors_hf.py has it
    effects = jax.jit(head_effects)

    def heads() -> np.ndarray:
        effects_LH = np.asarray(batches(effects, (), (model.bare, mean_LHC), q)).mean(0)
        return np.stack([effects_LH[i, i % c.num_heads] for i in range(TIMED_PASSES - 1)])

    return heads


def llama_side(folder: str, work: str) -> Callable[[], np.ndarray]:
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tests.nn.llama_cpp import LlamaCpp

    config = json.loads(Path(folder, "config.json").read_text())
    kind, ids, _ = draws(work, config)
    more, threads = NEW if kind == "generate" else 0, len(os.sched_getaffinity(0))
    size = len(ids) if kind == "generate" else 1
    llama = LlamaCpp(Path(folder, GGUF), context=size * (ids.shape[1] + more), sequences=size, threads=threads)
    if kind == "generate":
        return lambda: llama.generate(ids, NEW)
    return lambda: np.stack([llama.logits(row) for row in ids.tolist()])


SIDES = {"torch": torch_side, "llama": llama_side, "tvjax": tvjax_side}
"""Of several the last is compared with each of the others."""


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def memory_of(library: str, folder: str) -> None:
    """Print the growth of resident memory over the parameters' own: after the load, and after a pass of 2 tokens."""
    seconds: list[float] = []
    if library == "torch":
        import torch
        from transformers import LlamaForCausalLM

        torch.set_num_threads(len(os.sched_getaffinity(0)))
        before = resident()
        model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        size, loaded = sum(p.nbytes for p in model.parameters()), resident()
        with torch.no_grad():
            model(torch.tensor([[1, 2]]))
    else:
        import jax
        import jax.numpy as jnp

        import tvjax

        jnp.zeros(1).block_until_ready()
        before = resident()
        begun = time.perf_counter()
        model = tvjax.load(folder, dtype="float32")
        seconds = [time.perf_counter() - begun]
        size, loaded = sum(p.nbytes for p in jax.tree.leaves(model.params)), resident()
        jax.block_until_ready(tvjax.run(model, [[1, 2]]))
    print((loaded - before) / size, (resident() - before) / size, *seconds)


def first_calls(folder: str) -> None:
    """Print the seconds of the load, and of the first pass, generation and sweep."""
    import jax.numpy as jnp

    import tvjax

    jnp.zeros(1).block_until_ready()
    begun = time.perf_counter()
    model = tvjax.load(folder, dtype="float32")
    seconds = [time.perf_counter() - begun]
    random, c = np.random.default_rng(0), model.config
    ids = random.integers(0, c.vocab_size, (1, 16))
    vectors = random.standard_normal((c.num_layers + 1, 1, c.width)).astype(np.float32)
    for call in (
        lambda: tvjax.run(model, ids),
        lambda: tvjax.generate(model, ids, max_new_tokens=2, stop=()).ids_BT,
        lambda: tvjax.sweep(model, ids, vectors),
    ):
        begun = time.perf_counter()
        call().block_until_ready()
        seconds.append(time.perf_counter() - begun)
    print(*seconds)


def alone(command: list[str], side: str, **environment: str) -> list[float]:
    """What a process of its own prints."""
    env = {**os.environ, **environment}
    done = subprocess.run([*command, f"--side={side}"], stdout=subprocess.PIPE, text=True, check=True, env=env)
    return [float(word) for word in done.stdout.split()]


def show_alone(command: list[str], work: str, libraries: list[str], rounds: int, model: str) -> None:
    """Memory or first calls, `rounds` processes each; memory also of what the user named, by tvjax."""
    if work == "memory":
        of = {name: [alone(command, f"{name}-memory") for _ in range(rounds)] for name in libraries if name != "llama"}
        named = [*(word for word in command if not word.startswith("--model=")), f"--model={model}"]
        of |= {model: [alone(named, "tvjax-memory") for _ in range(rounds)]} if "tvjax" in libraries else {}
        for name, rows in of.items():
            loaded, used, *seconds = zip(*rows, strict=True)
            print(f"{name:6s} resident memory / parameters: {turns.spread(loaded, 2)}, {turns.spread(used, 2)} in use")
            for values in seconds:
                print(f"{name:6s} load {turns.spread(values, 2)} s")
        return
    with tempfile.TemporaryDirectory() as cache:
        keep = {"JAX_COMPILATION_CACHE_DIR": cache}
        rows = [alone(command, "tvjax-first", **keep) for _ in range(rounds + 1)]
    for name, cold, *warm in zip(("load", "run", "generate", "sweep"), *rows, strict=True):
        print(f"first {name:8s} {cold:.2f} s, of a later process {turns.spread(warm, 2)} s")


def show(command: list[str], work: str, libraries: list[str], rounds: int, scratch: str, config: dict) -> None:
    """Time both sides of a work in turn, and say how far what they give is apart."""
    able = [library for library in libraries if library != "llama" or work.startswith(UNEDITED)]
    *others, ours = names = [f"{library}-{work}" for library in able]
    seconds = turns.measure(command, names, rounds)
    found = {name: np.load(f"{scratch}/{name}.npy") for name in names}
    for name in others:
        if work.startswith("generate"):
            print(f"{work}: {np.mean(found[name] == found[ours]):.0%} of the tokens are the same as of {name}")
        else:
            print(f"{work}: largest difference to {name} {np.abs(found[name] - found[ours]).max():.2g}")
    if work.startswith("heads"):
        passes = 1 + config["num_hidden_layers"] * config["num_attention_heads"]
        if "torch" in libraries:
            name = f"torch-{work}"
            seconds[name] = [value / TIMED_PASSES * passes for value in seconds[name]]
    for name, values in seconds.items():
        unit = 1e3 / NEW if work.startswith("generate") else 1e3
        what = "ms a token" if work.startswith("generate") else "ms"
        digits = 1 if statistics.median(values) * unit < 100 else 0
        print(f"{name:20s} {turns.spread([unit * value for value in values], digits)} {what}")
    for library, name in zip(able, others, strict=False):
        turns.ratio(f"speed of {able[-1]} / {library}, {work}", seconds, name, ours)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2", help="what tvjax.load takes, of the llama family")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--works", default=",".join([*WORKS, *ALONE]), help="which of the works above")
    parser.add_argument("--sides", default=",".join(SIDES), help="one or more, the last compared with the others")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--scratch", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        library, _, work = options.side.partition("-")
        if work == "memory":
            memory_of(library, options.model)
        elif work == "first":
            first_calls(options.model)
        else:
            run = SIDES[library](options.model, work)
            np.save(f"{options.scratch}/{options.side}.npy", run())
            turns.serve(run)
        return
    libraries = options.sides.split(",")
    with tempfile.TemporaryDirectory() as scratch:
        folder = make_folder(options.model, f"{scratch}/model")
        config = json.loads(Path(folder, "config.json").read_text())
        command = [sys.executable, __file__, f"--model={folder}", f"--scratch={scratch}"]
        print(f"{len(os.sched_getaffinity(0))} threads a side; {options.model}", flush=True)
        for name in options.works.split(","):
            for work in WORKS.get(name, ()):
                show(command, work, libraries, options.rounds, scratch, config)
            if name in ALONE:
                show_alone(command, name, libraries, options.rounds, options.model)


if __name__ == "__main__":
    main()
