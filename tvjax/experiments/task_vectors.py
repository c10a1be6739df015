"""Task vectors of a language model on text tasks: how well they replace demonstrations, and at which layer.

Vectors are made from the train split (`bench.METHODS`) and written at the last token of zero-shot prompts. The layer
is chosen on the dev split, everything else is measured on the test split.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from tvjax.evals.statistics import with_interval
from tvjax.experiments import rundir, text_model
from tvjax.experiments.bench import METHODS, Bench, VectorConfig, Vectors, best_layer, check_vectors, state_vectors
from tvjax.experiments.settings import build, group, groups
from tvjax.experiments.text_data import DataConfig, keep_tasks
from tvjax.files import user_path, write_json
from tvjax.nn.decoder import Precision
from tvjax.nn.model import Model
from tvjax.nn.pretrained import load_model
from tvjax.nn.pretrained.sources import find
from tvjax.tasks.text import Template
from tvjax.vectors import store
from tvjax.vectors.from_prompts import vocabulary


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A Hugging Face folder; where it is empty, the model of the run `trained`, made if absent.

    dtype: of parameters and activations; "" is that of the folder's tensors. matmul_precision: as in `DecoderConfig`.
    """

    path: str = ""
    dtype: Literal["", "float32", "bfloat16", "float16"] = ""
    matmul_precision: Precision = "highest"
    trained: str = "runs/text_model"


@dataclasses.dataclass(frozen=True)
class TaskVectorSettings:
    """The whole experiment, checked."""

    model: ModelConfig
    data: DataConfig
    template: Template
    vectors: VectorConfig

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "TaskVectorSettings":
        """Read a config. Raises `UserError` with one line for the first thing that is wrong."""
        kinds = {"model": ModelConfig, "data": DataConfig, "template": Template, "vectors": VectorConfig}
        groups(config, kinds, also=("training",))
        s = cls(**{name: build(kind, config[name], f"config.{name}") for name, kind in kinds.items()})
        check_vectors(s.vectors)
        if not s.model.path:
            text_model.TextModelSettings.from_config(group(config.get("training"), "config.training"))
        return s


def _chosen(bench: Bench, name: str, kind: str, vectors_LD: np.ndarray) -> dict[str, Any]:
    """Accuracy with vectors of `kind`, at every layer and at the one that is best on the dev split."""
    by_layer = {split: bench.by_layer(name, split, kind, vectors_LD) for split in ("dev", "test")}
    layer = best_layer(by_layer["dev"])
    return {
        **with_interval(kind, by_layer["test"][:, layer]),
        f"{kind}_layer": layer,
        **{f"{kind}_by_layer_{split}": values.mean(0).tolist() for split, values in by_layer.items()},
    }


def _measure(bench: Bench, name: str, made: Mapping[str, Vectors]) -> dict[str, Any]:
    """What the summary says of a task."""
    test = bench.sample(name, "test")
    bare, said = bench.zero_shot(test), bench.accepted(name, test)
    entry: dict[str, Any] = {
        "pairs": {split: len(bench.sample(name, split)) for split in ("dev", "test")},
        **with_interval("zero_shot", bench.right(bare, said, bench.short)),
        **with_interval("few_shot", bench.right(bench.few_shot(name, test), said, bench.long)),
        **with_interval("shuffled_shot", bench.right(bench.few_shot(name, test, shuffled=True), said, bench.long)),
    }
    for kind in METHODS:
        entry |= _chosen(bench, name, kind, made[kind][name])
    layer, model = entry["vector_layer"], bench.model
    control = bench.right_with(bare, said, made["shuffled_vector"][name][[layer]], [layer], bench.short)
    top = np.asarray(vocabulary(model.decoder, model.params, jnp.asarray(made["vector"][name][[layer]])))[0]
    words = [bench.tokenizer.decode([i]) for i in np.argsort(-top)[: bench.config.words]]
    return entry | with_interval("shuffled_vector", control[:, 0]) | {"words": words}


def _conflict(bench: Bench, shown: str, moved: str, theta_D: np.ndarray, layer: int) -> dict[str, Any] | None:
    """Prompts that demonstrate `shown`, with the vector of `moved` written in: whose answers do they give?

    Of the inputs of the test split that both tasks have and have no right answer in common for; None where there are
    too few.
    """
    both = {x for x, _ in bench.sample(moved, "test")}
    ours, theirs = (bench.tasks[name].answers for name in (shown, moved))
    asked = [(x, y) for x, y in bench.sample(shown, "test") if x in both and not set(ours[x]) & set(theirs[x])]
    if len(asked) < bench.config.conflicts:
        return None
    prompts = bench.few_shot(shown, asked)
    answers = {"shown": bench.accepted(shown, asked), "moved": bench.accepted(moved, asked)}
    entry: dict[str, Any] = {"shown": shown, "moved": moved, "pairs": len(asked), "layer": layer}
    for whose, outputs in answers.items():
        with_vector = bench.right_with(prompts, outputs, theta_D[None], [layer], bench.long)[:, 0]
        entry |= with_interval(f"says_{whose}", with_vector)
        entry |= with_interval(f"says_{whose}_without", bench.right(prompts, outputs, bench.long))
    return entry


ACCURACIES = ("zero_shot", "few_shot", "shuffled_shot", *METHODS, "shuffled_vector")


def open_model(config: Mapping[str, Any], m: ModelConfig, say: Callable[[str], None]) -> Model:
    """The model that `m`, config.model, names; that of config.training is trained first, once, where it names none."""
    how: dict[str, Any] = {"dtype": m.dtype or None, "matmul_precision": m.matmul_precision}
    if m.path:
        return load_model(find(m.path, "config.model.path"), **how)
    where = {"place": "config.training", "names": "config.model.trained"}
    folder = user_path(m.trained, where["names"])
    return text_model.small_model(config["training"], folder, say, **where, **how)


def _save(path: Path, bench: Bench, name: str, entry: Mapping[str, Any], made: Mapping[str, Vectors]) -> None:
    """The vectors of a task, with what one must know to use them."""
    c = bench.config
    about = {
        "made_by": f"{c.prompts} prompts of {c.demonstrations} demonstrations of {name}",
        **{f"{kind}.layer": entry[f"{kind}_layer"] for kind in METHODS},
        **{f"{kind}.edit": "add" if method.keep else "replace" for kind, method in METHODS.items()},
    }
    store.save_vectors(
        path,
        {kind: made[kind][name] for kind in METHODS},
        model=bench.model,
        address="embed, blocks/resid",
        layers=range(bench.model.config.num_layers + 1),
        template=dataclasses.asdict(bench.template),
        about=about,
    )


def run(config: Mapping[str, Any], folder: Path, mode: str, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Measure task vectors of a model in `folder`: eval/summary.json, vectors/*.safetensors; return the summary.

    Raises `UserError` for a config, a model or a folder of tasks that does not fit. There is nothing to train but the
    small model, so both modes do the same.
    """
    s = TaskVectorSettings.from_config(config)
    tasks = s.data.of_run(folder)
    rundir.prepare(folder, config, new=mode == "train")
    keep_tasks(tasks, folder, say)
    model = open_model(config, s.model, say)
    bench = Bench(model, s.vectors, s.template, tasks)
    made = {"shuffled_vector": state_vectors(bench, shuffled=True)[0]}
    about: dict[str, Any] = {}
    for kind, method in METHODS.items():
        say(f"making vectors: {kind.replace('_', ' ')}")
        made[kind], more = method.make(bench)
        about |= more
    entries: dict[str, Any] = {}
    for name in tasks:
        e = entries[name] = _measure(bench, name, made)
        kinds = ", ".join(f"{k.replace('_', ' ')} {e[k]:.2f} at layer {e[f'{k}_layer']}" for k in METHODS)
        say(f"{name}: zero-shot {e['zero_shot']:.2f}, {s.vectors.demonstrations}-shot {e['few_shot']:.2f}, {kinds}")
        _save(folder / "vectors" / f"{name}.safetensors", bench, name, e, made)
    conflicts = [
        _conflict(bench, a, b, made["vector"][b][entries[b]["vector_layer"]], entries[b]["vector_layer"])
        for a in tasks
        for b in tasks
        if a != b
    ]
    summary = {
        "experiment": "task_vectors",
        "model": {"path": str(model.source.path), "model_type": model.source.values["model_type"]},
        "num_layers": model.config.num_layers,
        "num_demonstrations": s.vectors.demonstrations,
        "num_prompts": s.vectors.prompts,
        **about,
        "mean": {kind: float(np.mean([e[kind] for e in entries.values()])) for kind in ACCURACIES},
        "tasks": entries,
        "conflicts": [entry for entry in conflicts if entry],
    }
    write_json(folder / "eval" / "summary.json", summary)
    return summary
