"""What the format of a prompt does to a state vector: template x first token x layer x position. [ours]

A cell is a template with a text in front of the whole prompt, its *start*. In each cell every task is asked zero-shot,
in k-shot prompts, in those with shuffled labels, and zero-shot with the mean state of its k-shot prompts written in
(Hendel et al. 2023). The k-shot prompts that are asked are those that the vectors are read from: their queries are of
the train split, and none of them is among its own demonstrations. The first seed's vectors are written into questions
of the dev split at every layer, and those of all seeds into questions of the test split at the layer that dev prefers.
A vector is read and written at one position, the last token of the prompt or that of its query (`Bench.back`). How
alike the states of different queries are at these positions of zero-shot prompts says whether the query can be read.

Each cell is kept in the run's folder when it is done, and is not measured again.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tvjax.errors import reject
from tvjax.evals.learned import clearly_above
from tvjax.experiments import models, rundir
from tvjax.experiments.base import Experiment
from tvjax.experiments.formats.answers import SHOTS, summarized
from tvjax.experiments.formats.settings import FormatConfig, FormatSettings
from tvjax.experiments.models import open_model
from tvjax.experiments.progress import Progress, aloud
from tvjax.files import read_json, write_json
from tvjax.nn.answers import Questions
from tvjax.nn.model import Model, forward
from tvjax.parallel.batches import Batches
from tvjax.tasks.text import Answers, Template, TextTask, some
from tvjax.text.bench import Bench, Position, Right, best_layer_and_scale, graded
from tvjax.text.data import keep_tasks
from tvjax.vectors.tvp import STREAM, stream_at

CELLS = "cells"
"""The folder of a run that holds what has been measured of each cell."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """A template with a start: the benches of its seeds."""

    template: str
    start: str
    benches: tuple[Bench, ...]

    def path(self, folder: Path) -> Path:
        """Where the run in `folder` keeps what is measured of it."""
        return folder / CELLS / f"{self.template}.{self.start}.json"


def cells(c: FormatConfig, model: Model, tasks: Mapping[str, TextTask], tick: Callable[[str], None]) -> list[Cell]:
    """All pairs of a template and a start, which share their programs.

    Raises `UserError` for what a bench refuses, and for several starts if the tokenizer puts a token of its own
    (BOS) before every text: there a start is left out (`Template.led_by`).
    """
    shared, table = Batches(c.memory, c.batch), []
    for name, before, between, after in c.templates:
        for start, text in c.starts:
            template = Template(before, between, after, text)
            benches = [Bench(model, c.vectors(seed), template, tasks, batches=shared, tick=tick) for seed in c.seeds]
            if text != benches[0].template.start and len(c.starts) > 1:
                starts = [start for start, _ in c.starts]
                raise reject(
                    "config.formats.starts", starts, "a single one: the tokenizer puts a first token (BOS) itself"
                )
            table.append(Cell(name, start, tuple(benches)))
    return table


def run(config: Mapping[str, Any], folder: Path, mode: str, say: Callable[[str], None] = aloud) -> dict[str, Any]:
    """Measure all cells in `folder`: cells/*.json, eval/summary.json; return the summary.

    Raises `UserError` for a config, a model or a folder of tasks that does not fit. There is nothing to train but the
    small model, so both modes do the same.
    """
    s = FormatSettings.from_config(config)
    with Progress(say) as progress:
        return _run(s, config, folder, mode, progress)


def _run(s: FormatSettings, config: Mapping[str, Any], folder: Path, mode: str, progress: Progress) -> dict[str, Any]:
    began = time.monotonic()
    tasks = s.data.of_run(folder)
    rundir.prepare(folder, config, new=mode == "train")
    keep_tasks(tasks, folder, progress.say)
    model = open_model(s.model, s.training, progress.say)
    table = cells(s.formats, model, tasks, progress.tick)
    starts = _starts(s.formats, table)
    for start in starts:
        if len(start["tokens"]) > 1:
            progress.say(f"the start {start['name']!r} is {len(start['tokens'])} tokens: {' '.join(start['tokens'])}")
    todo = [cell for cell in table if not cell.path(folder).exists()]
    if len(todo) < len(table):
        progress.say(f"{len(table) - len(todo)} of {len(table)} cells are there")
    progress.plan({"task": len(todo) * len(tasks)}, {"task": 1.0})
    for cell in todo:
        measured = {name: measure(cell.benches, name, s.formats) for name in tasks}
        write_json(cell.path(folder), {"query_first": bool(cell.benches[0].sink()), "tasks": measured})
        progress.say(_line(cell, measured, s.formats))
    answers = {
        (cell.template, cell.start): read_json(cell.path(folder), "accepted: a cell of this run, or no such file")
        for cell in table
    }
    summary = {
        "experiment": "formats",
        "model": {"path": str(model.source.path), "model_type": model.source.values["model_type"]},
        "num_layers": model.config.num_layers,
        "num_demonstrations": s.formats.demonstrations,
        "num_prompts": s.formats.prompts,
        "seeds": list(s.formats.seeds),
        "templates": [
            dict(zip(("name", "before", "between", "after"), row, strict=True)) for row in s.formats.templates
        ],
        "starts": starts,
        **summarized(answers, s.formats.positions),
    }
    write_json(folder / "eval" / "summary.json", summary)
    progress.say(f"measured in {time.monotonic() - began:.0f} s")
    return summary


def _starts(c: FormatConfig, table: Sequence[Cell]) -> list[dict[str, Any]]:
    """Each start with the tokens that are its own: the name of a special token is that token, if the model has it."""
    starts = []
    for (name, text), cell in zip(c.starts, table, strict=False):  # the cells of the first template
        bench = cell.benches[0]
        prompts = bench.zero_shot([next(iter(bench.tasks.values())).pairs[0]])
        inside = [i for i, (_, end) in bench.tokenizer.encode_with_spans(prompts)[0] if 0 <= end <= len(text)]
        starts.append({"name": name, "text": text, "tokens": [bench.tokenizer.token(i) for i in inside]})
    return starts


def measure(benches: Sequence[Bench], name: str, c: FormatConfig) -> dict[str, Any]:
    """All that is measured of a task in one cell, a bench a seed: which answers are right, and how alike states are.

    "zero_shot" of test questions ``[n]``, "few_shot" and "shuffled_shot" ``[seeds x prompts]``, each "first" and
    "whole"; by position "cosine" ``[L+1]``, and of vectors "dev_first", "dev_whole" ``[L]``, means by layer, "layer",
    "works", and "first", "whole" of test questions at that layer ``[n, seeds]``.
    """
    bench, layers = benches[0], benches[0].layers[1:]  # at 0 every prompt has the same last token
    questions = {"dev": some(bench.sample(name, "dev"), c.dev), "test": some(bench.sample(name, "test"), c.questions)}
    states, alone = _answered(bench, *_bare(bench, name, [*questions["dev"], *questions["test"]]), c.positions)
    first, whole = (a[len(questions["dev"]) :] for a in alone)
    entry: dict[str, Any] = {"zero_shot": _lists(Right(first, whole))}
    shown, entry["few_shot"] = _shown(benches, name, c, shuffled=False)
    _, entry["shuffled_shot"] = _shown(benches, name, c, shuffled=True)
    vectors_SLUD = shown.reshape(len(benches), c.prompts, *shown.shape[1:]).mean(1).transpose(1, 2, 0, 3)[:, 1:]
    for position, vectors_LUD, states_BLD in zip(c.positions, vectors_SLUD, states.swapaxes(0, 1), strict=True):
        keep_LU = np.zeros(vectors_LUD.shape[:2])
        # Another question says more of a layer than the same one with another seed's vector, at the same cost.
        bare = _bare(bench, name, questions["dev"])
        dev = bench.scores(*bare, vectors_LUD[:, :1], layers, keep_LU[:, :1], position)
        best, _ = best_layer_and_scale(dev)
        at = slice(best, best + 1)
        bare = _bare(bench, name, questions["test"])
        test = bench.scores(*bare, vectors_LUD[at], layers[at], keep_LU[at], position)
        entry[position] = {
            "cosine": alike(states_BLD).tolist(),
            "dev_first": dev.first.mean((0, 2)).tolist(),
            "dev_whole": dev.whole.mean((0, 2)).tolist(),
            "layer": layers[best],
            "works": clearly_above(dev.first[:, best, 0], alone.first[: len(questions["dev"])]),
            **_lists(Right(test.first[:, 0], test.whole[:, 0])),
        }
    bench.tick("task")
    return entry


def _lists(right: Right) -> dict[str, Any]:
    return {kind: a.astype(int).tolist() for kind, a in right._asdict().items()}


def _bare(bench: Bench, name: str, pairs: Sequence[Any]) -> tuple[list[str], list[Answers]]:
    """Zero-shot prompts and what is accepted of each."""
    return bench.zero_shot(pairs), bench.accepted(name, pairs)


def _shown(
    benches: Sequence[Bench], name: str, c: FormatConfig, *, shuffled: bool
) -> tuple[np.ndarray, dict[str, Any]]:
    """The k-shot prompts of all seeds, those that `Bench.shown` reads: states ``[B, S, L+1, D]``, and what is right."""
    prompts, accepted = [], []
    for bench in benches:
        pairs = bench.queries(name, c.prompts)
        prompts += bench.few_shot(name, pairs, shuffled=shuffled)
        accepted += bench.accepted(name, pairs)
    states, right = _answered(benches[0], prompts, accepted, c.positions)
    return states, _lists(right)


@jax.jit
def _states_and_answers(model: Model, questions: tuple[Questions, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Questions in one pass: h^0..h^L at positions `read_BS`, ``[B, S, L+1, D]``, and what is said, ``[B, A]``.

    What is said is the likeliest token at each place of the answers, each read with the tokens before it in place.

    questions: with their `read_BS`.
    """
    q, read_BS = questions
    at_BA = q.last_B[:, None] + jnp.arange(q.answers_BA.shape[1])[None]
    out, activations = forward(
        model,
        q.tokens.ids_BT,
        addresses=STREAM,
        read_BS=read_BS,
        at=jnp.minimum(at_BA, q.tokens.ids_BT.shape[1] - 1),
        positions_BT=q.tokens.positions_BT,
    )
    return stream_at(activations, slice(None)).transpose(1, 2, 0, 3), out.argmax(-1)


def _answered(
    bench: Bench, prompts: Sequence[str], accepted: Sequence[Answers], positions: Sequence[Position]
) -> tuple[np.ndarray, Right]:
    """Prompts in one pass: their states at `positions` ``[B, S, L+1, D]``, and which are given a right answer."""
    q, none_B, begin = bench.ask_all(prompts, accepted)
    counts = [len(answers) for answers in accepted]
    back_BS = np.stack([np.repeat(bench.back(prompts, position), counts) for position in positions], 1)
    questions = q, np.asarray(q.last_B)[:, None] - back_BS
    states, tokens = bench.batches(_states_and_answers, (), (bench.model.bare,), questions)
    return np.asarray(states, np.float32)[begin], graded(q, np.asarray(tokens), none_B, begin)


def alike(states_BLD: np.ndarray) -> np.ndarray:
    """The mean cosine between the states of different prompts, ``[L+1]``. [ours]"""
    unit = states_BLD / np.linalg.norm(states_BLD, axis=-1, keepdims=True)
    count = len(unit)
    return (np.square(unit.sum(0)).sum(-1) - count) / (count * (count - 1))


def _line(cell: Cell, measured: Mapping[str, Any], c: FormatConfig) -> str:
    """A cell's results in one line."""

    def mean(kind: str) -> str:
        return f"{kind.replace('_', '-')} {np.mean([np.mean(e[kind]['first']) for e in measured.values()]):.2f}"

    vectors = "; ".join(f"vector at the {mean(position)}" for position in c.positions)
    return f"template {cell.template}, start {cell.start}, first tokens: {', '.join(map(mean, SHOTS))}; {vectors}"


EXPERIMENT = Experiment(name="formats", run=run, settings=FormatSettings.from_config, trainer=models.planned)
