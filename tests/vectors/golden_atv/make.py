"""What PyTorch makes of adaptive task vectors: one training step of tiny models, written plainly, without tvjax.

    python tests/vectors/golden_atv/make.py     # writes TARGET_POSITIONS.safetensors beside itself

Needs the `parity` extra. Target and generator are golden folders of tests/nn/golden. Every prompt goes through alone
and unpadded; vectors are added by forward hooks. The tests read these files where torch is not installed, and make new
ones where it is.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MODELS = Path(__file__).parents[2] / "nn" / "golden"
GENERATOR = "gpt2"
CASES = tuple((target, positions) for target in ("llama3", "gpt2_untied") for positions in ("all", "last"))
SCALES = (0.3, 0.2, 0.1)  # lambda, a layer each
LEARNING_RATE, L2 = 5e-4, 1e-5
STEPS = 3

# What the generator reads of each query, and its (prompt, answer) in each of the templates: token ids.
EXAMPLES = (
    ([5, 9, 13, 2], (([40, 33, 7, 61, 22], [18]), ([8, 3, 50, 19, 1, 30, 62], [18, 4, 27]))),
    ([31, 30, 29, 11, 12, 44, 2], (([44, 12, 0, 6], [51, 9]), ([63, 44], [51, 9]))),
    ([17], (([35], [20, 58, 36]), ([10, 14, 15, 16, 21, 23, 24, 25, 26], [57]))),
    ([48, 5, 5, 39, 60], (([37, 38, 41, 42, 43, 45], [46, 47]), ([2, 49, 52, 53, 54], [46, 47]))),
)


def load(name: str) -> Any:
    """A golden folder as a `transformers` model, dropout off."""
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(MODELS / name, attn_implementation="eager").eval()


@contextlib.contextmanager
def adding(blocks: Any, v_LD: Any, at: slice) -> Iterator[None]:
    """While this lasts, each block's output is ``h^l + lambda^l v^l`` at the tokens `at`."""

    def hook(added_D: Any) -> Any:
        def write(module: Any, args: Any, out: Any) -> Any:
            h_BTD = (out[0] if isinstance(out, tuple) else out).clone()
            h_BTD[:, at] = h_BTD[:, at] + added_D
            return (h_BTD, *out[1:]) if isinstance(out, tuple) else h_BTD

        return write

    pairs = zip(blocks, SCALES, v_LD, strict=True)
    handles = [block.register_forward_hook(hook(scale * v_D)) for block, scale, v_D in pairs]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def train(target_name: str, positions: str) -> dict[str, Any]:
    """The first step: logits at the answers' tokens, gradients, changes; and the losses of the first STEPS steps.

    Gradients are of the loss alone, without what L2 adds to them.
    """
    import torch

    target, generator = load(target_name).requires_grad_(False), load(GENERATOR).transformer
    blocks = next(m for n, m in target.named_modules() if n.split(".")[-1] in ("h", "layers"))
    depth, width = len(blocks), target.config.hidden_size
    torch.manual_seed(0)
    expansion = torch.nn.Linear(generator.config.hidden_size, depth * width)
    trained = {f"generator.{n}": p for n, p in generator.named_parameters()}
    trained |= {f"expansion.{n}": p for n, p in expansion.named_parameters()}
    adam = torch.optim.Adam(trained.values(), lr=LEARNING_RATE, weight_decay=L2)

    def loss(said: dict[str, Any]) -> Any:
        of_examples = []
        for i, (reading, prompts) in enumerate(EXAMPLES):
            u_S = generator(torch.tensor([reading])).last_hidden_state[0, -1]
            v_LD = expansion(u_S).reshape(depth, width)
            of_templates = []
            for p, (prompt, answer) in enumerate(prompts):
                last = len(prompt) - 1
                with adding(blocks, v_LD, slice(None) if positions == "all" else slice(last, last + 1)):
                    logits_TV = target(torch.tensor([prompt + answer])).logits[0]
                logits_AV = logits_TV[last : last + len(answer)]
                said[f"logits.{i}.{p}"] = logits_AV.detach()
                of_templates.append(torch.nn.functional.cross_entropy(logits_AV, torch.tensor(answer)))
            of_examples.append(torch.stack(of_templates).mean())
        return torch.stack(of_examples).mean()

    said: dict[str, Any] = {f"start.{n}": p.detach().clone() for n, p in expansion.named_parameters()}
    losses = []
    for step in range(STEPS):
        adam.zero_grad()
        now = loss(said if step == 0 else {})
        now.backward()
        before = {n: p.detach().clone() for n, p in trained.items()}
        if step == 0:
            said |= {f"gradient.{n}": p.grad.clone() for n, p in trained.items()}
        adam.step()
        if step == 0:
            said |= {f"change.{n}": p.detach() - before[n] for n, p in trained.items()}
        losses.append(now.detach())
    said["losses"] = torch.stack(losses)
    return {name: value.numpy().copy() for name, value in said.items()}


def write(folder: Path, target: str, positions: str) -> Path:
    """The file of one case, in `folder`."""
    from safetensors.numpy import save_file

    file = folder / f"{target}_{positions}.safetensors"
    save_file(train(target, positions), file)
    return file


if __name__ == "__main__":
    for case in CASES:
        made = write(Path(__file__).parent, *case)
        print(made.name, made.stat().st_size, "bytes")
