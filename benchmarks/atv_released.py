"""ATV's training as the released code does it, by PyTorch with forward hooks: one side of atv_step.py."""

import argparse
import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModel, AutoModelForCausalLM, logging

Example = tuple[list[int], list[tuple[list[int], list[int]]]]


class Released:
    """The models in `folder`, their hooks and their optimizer; `o` has the arguments of atv_step.py.

    o.side: "torch" takes a step for each example, "torch-sum" sums the gradients of a batch, "torch-padded" asks all
    prompts of a batch in one pass.
    """

    def __init__(self, folder: Path, data: list[Example], o: argparse.Namespace) -> None:
        logging.disable_progress_bar()
        logging.set_verbosity_error()
        torch.set_num_threads(o.threads or len(os.sched_getaffinity(0)))
        self.o, self.data, self.done = o, data, 0
        target = AutoModelForCausalLM.from_pretrained(folder / "target")
        self.target = target.to(o.device).eval().requires_grad_(False)
        self.generator = AutoModel.from_pretrained(folder / "generator").to(o.device).eval()
        self.blocks, self.width = self.target.model.layers, target.config.hidden_size
        size = len(self.blocks) * self.width
        self.expansion = torch.nn.Linear(self.generator.config.hidden_size, size).to(o.device)
        with np.load(folder / "expansion.npz") as start, torch.no_grad():
            self.expansion.weight.copy_(torch.tensor(start["kernel"].T))
            self.expansion.bias.copy_(torch.tensor(start["bias"]))
        parameters = [*self.generator.parameters(), *self.expansion.parameters()]
        self.adam = torch.optim.Adam(parameters, lr=o.learning_rate, weight_decay=o.l2)
        rows = self.on_device
        self.ready = [(rows([r]), [(rows([p + a]), rows([a])[0]) for p, a in prompts]) for r, prompts in data]

    def on_device(self, rows: list[list[int]]) -> torch.Tensor:
        """Rows padded on the right."""
        longest = max(map(len, rows))
        return torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=self.o.device)

    def vectors(self, u_BS: torch.Tensor) -> torch.Tensor:
        """What is added to each block, from the generator's last states."""
        return self.o.scale * self.expansion(u_BS).view(len(u_BS), len(self.blocks), self.width).transpose(0, 1)

    @contextlib.contextmanager
    def adding(self, v_LBD: torch.Tensor) -> Iterator[None]:
        """While this lasts, a vector is added to each block's output at all tokens."""

        def hook(v_B1D: torch.Tensor) -> Callable:
            return lambda m, args, out: (out[0] + v_B1D, *out[1:]) if isinstance(out, tuple) else out + v_B1D

        hooks = [b.register_forward_hook(hook(v[:, None])) for b, v in zip(self.blocks, v_LBD, strict=True)]
        yield
        for handle in hooks:
            handle.remove()

    def one(self, i: int) -> torch.Tensor:
        """The loss of one example, its prompts one by one."""
        reading, prompts = self.ready[i]
        losses = []
        with self.adding(self.vectors(self.generator(reading, use_cache=False).last_hidden_state[:, -1])):
            for ids, answer in prompts:
                logits = self.target(ids, use_cache=False).logits[0, -len(answer) - 1 : -1]
                losses.append(torch.nn.functional.cross_entropy(logits, answer))
        return torch.stack(losses).mean()

    def padded(self, rows: list[int]) -> torch.Tensor:
        """The losses of several examples, all prompts at once: causal attention never sees what stands behind."""
        readings = [self.data[i][0] for i in rows]
        templates = len(self.data[0][1])
        prompts = [self.data[i][1][p] for p in range(templates) for i in rows]
        states = self.generator(self.on_device(readings), use_cache=False).last_hidden_state
        u_BS = states[torch.arange(len(rows)), torch.tensor([len(r) - 1 for r in readings])]
        asked = [(n, len(p) - 1 + j, token) for n, (p, a) in enumerate(prompts) for j, token in enumerate(a)]
        n, at, token = torch.tensor(asked, device=self.o.device).T
        with self.adding(self.vectors(u_BS).repeat(1, templates, 1)):
            h_BTD = self.target.model(self.on_device([p + a for p, a in prompts]), use_cache=False).last_hidden_state
        logits = self.target.lm_head(h_BTD[n, at])
        each = torch.nn.functional.cross_entropy(logits, token, reduction="none")
        summed = each.new_zeros(len(prompts)).index_add(0, n, each)
        return (summed / torch.bincount(n)).view(templates, -1).mean(0)

    def run(self) -> None:
        """Train on the next batches."""
        for _ in range(self.o.steps):
            rows = [(self.done + i) % len(self.data) for i in range(self.o.batch)]
            self.done += self.o.batch
            self.step(rows)
        if self.o.device != "cpu":
            torch.cuda.synchronize()

    def step(self, rows: list[int]) -> None:
        """Train on one batch."""
        if self.o.side == "torch":
            for i in rows:
                self.adam.zero_grad()
                self.one(i).backward()
                self.adam.step()
            return
        self.adam.zero_grad()
        if self.o.side == "torch-padded":
            self.padded(rows).mean().backward()
        else:
            for i in rows:
                (self.one(i) / len(rows)).backward()
        self.adam.step()

    @torch.no_grad()
    def losses(self) -> np.ndarray:
        """The loss of each example of the first batch."""
        rows = list(range(self.o.batch))
        found = self.padded(rows) if self.o.side == "torch-padded" else torch.stack([self.one(i) for i in rows])
        return found.cpu().numpy()
