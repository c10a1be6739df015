"""Run directories as a real run would leave them, with numbers like those of real runs, but made up."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import tvjax.report.page

LAYERS, DEMONSTRATIONS, PROMPTS, WIDTH = 4, 16, 1024, 32
SHIFTS = {
    "inputs_x3": "inputs scaled by 3",
    "inputs_third": "inputs scaled by 1/3",
    "outputs_x3": "outputs scaled by 3",
    "skewed_covariance": "input covariance with eigenvalues ~ 1/i",
    "half_subspace": "demonstrations from half of the input space",
    "orthogonal_query": "query orthogonal to the demonstrations",
    "label_noise": "Gaussian noise on the labels",
    "more_demonstrations": "twice the demonstrations of training",
    "held_out_tasks": "tasks that training never drew",
}


def interval(value: Any) -> list[Any]:
    """A 90% interval of about 5% around each value."""
    value = np.asarray(value)
    return np.stack([value * 0.95, value * 1.05], -1).tolist()


def twins(field: str, value: Any) -> dict[str, Any]:
    """A field and its interval; accuracies end at 1."""
    ends = interval(value)
    if "accuracy" in field:
        ends = np.minimum(ends, 1).tolist()
    return {field: np.asarray(value).tolist(), f"{field}_ci": ends}


def member_numbers(weight: float, layer: int, demonstrations: int, factor: float, tokens: bool) -> dict[str, Any]:
    """Scores like those of a trained member: with TVP-loss a vector at `layer`, without none."""
    counts = np.arange(demonstrations + 1)
    final = 0.08 if weight else 0.016
    icl = np.maximum(np.maximum(1 - counts / 5, 0), 0.5 * np.exp(-counts / 2)) + final * factor
    tvp = np.array([1.8, 1.3, 1.08, 1.25, 1.7]) * factor**0.5
    if weight:
        tvp = np.where(np.arange(LAYERS + 1) == layer, 0.128 * factor, tvp)
    scores = twins("icl_risk", icl) | twins("tvp_risk_by_layer", tvp) | twins("zero_shot_risk", 1.05)
    if tokens:
        scores |= twins("icl_accuracy", np.clip(1 - icl, 0, 1)) | twins("zero_shot_accuracy", 0.2)
        scores |= twins("tvp_accuracy_by_layer", np.clip(1 - tvp, 0.05, 1))
    return scores


def condition(members: list[dict[str, Any]], demonstrations: int, factor: float, tokens: bool) -> dict[str, Any]:
    oracle = np.maximum(1 - np.arange(demonstrations + 1) / 4, 0)
    tree = {"num_demonstrations": demonstrations} | twins("prior_risk", 1.02) | twins("oracle_risk", oracle)
    if tokens:
        tree |= twins("prior_accuracy", 0.2) | twins(
            "oracle_accuracy", np.minimum(1, 0.2 + np.arange(demonstrations + 1))
        )
    tree["members"] = [
        member
        | member_numbers(
            member["tvp_weight"], member["prescribed_layer"], demonstrations, factor * 1.15 ** member["seed"], tokens
        )
        for member in members
    ]
    return tree


def baselines() -> dict[str, Any]:
    """Two baselines, of which one was tried after every second demonstration alone."""
    counts = np.arange(DEMONSTRATIONS + 1)
    found = {"averaging": {"num_prompts": PROMPTS} | twins("risk", 5 / np.maximum(counts, 1))}
    found["lasso_0.1"] = {"num_prompts": 128} | twins("risk", np.exp(-counts / 3))
    for field, nothing in (("risk", None), ("risk_ci", [None, None])):
        found["lasso_0.1"][field][1::2] = [nothing] * (DEMONSTRATIONS // 2)
    return found


def summary_tree(members: list[tuple[str, int, float, int]], tokens: bool) -> dict[str, Any]:
    """A whole ``eval/summary.json`` for members (name, seed, weight, layer)."""
    entries = [
        {"name": name, "seed": seed, "tvp_weight": weight, "prescribed_layer": layer, "best_layer": 2}
        for name, seed, weight, layer in members
    ]
    for entry in entries:
        entry["best_layer"] = entry["prescribed_layer"] if entry["tvp_weight"] else 2
    tree = condition(entries, DEMONSTRATIONS, 1.0, tokens) | {
        "task": "offset" if tokens else "linear",
        "layout": "xzy",
        "num_layers": LAYERS,
        "num_prompts": PROMPTS,
        "risk_unit": "cross-entropy (nats)" if tokens else "mean squared error per output",
        "notes": ["x' is drawn fresh & independent of the prompt <by design>."],
    }
    tree["baselines"] = {} if tokens else baselines()
    tree["shifts"] = {
        name: {"summary": text}
        | condition(entries, DEMONSTRATIONS * (2 if "more" in name else 1), 1 + 2.5 * place**1.6, tokens)
        for place, (name, text) in enumerate(SHIFTS.items())
    }
    return tree


def metric_lines(summary: dict[str, Any], tokens: bool) -> Iterator[dict[str, Any]]:
    rng = np.random.default_rng(0)
    for step in range(0, 4001, 20):
        for number, member in enumerate(summary["members"]):
            line: dict[str, Any] = {"step": step, "member": member["name"]}
            done = 1 - np.exp(-step / (600 + 40 * number))
            icl, tvp = 1.02 - 0.75 * done, 1.3 - (1.1 if member["tvp_weight"] else 0.15) * done
            if step:
                noise = np.exp(0.08 * rng.normal(size=2))
                line |= {"loss": icl + tvp, "icl_loss": icl * noise[0], "tvp_loss": tvp * noise[1], "grad_norm": 1.0}
                line |= {"icl_mean_accuracy": 1 - icl, "tvp_mean_accuracy": max(0, 1 - tvp)} if tokens else {}
            if step % 500 == 0:
                end = np.array(member["tvp_risk_by_layer"])
                line["eval_tvp_risk_by_layer"] = (1.4 + (end - 1.4) * done).tolist()
                line["eval_icl_risk"] = member["icl_risk"]
            yield line


def tensors(member: dict[str, Any], tokens: bool) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(member["seed"])
    if tokens:
        parameters = {"task.c": rng.integers(0, 5, PROMPTS).astype(np.int32)}
        angle = 2 * np.pi * parameters["task.c"] / 5
        code = np.stack([np.cos(angle), np.sin(angle)], 1)
    else:
        code = rng.normal(size=(PROMPTS, 4))
        parameters = {"task.w": code.astype(np.float32)}
    signal = code @ rng.normal(size=(code.shape[1], WIDTH)) * (1.0 if member["tvp_weight"] else 0.15)
    theta = signal + rng.normal(size=(LAYERS + 1, PROMPTS, WIDTH)) * 0.4
    return parameters | {"theta": theta.astype(np.float32)}


def write_run(path: Path, members: list[tuple[str, int, float, int]], tokens: bool = False) -> Path:
    summary = summary_tree(members, tokens)
    (path / "eval").mkdir(parents=True)
    (path / "vectors").mkdir()
    config = {"task": {"name": summary["task"]}, "seed": 0, "remark": "<script>alert(1)</script>"}
    (path / "config.json").write_text(json.dumps(config))
    (path / "environment.json").write_text(json.dumps({"jax": "0.10.2", "git_commit": "abc1234"}))
    (path / "eval" / "summary.json").write_text(json.dumps(summary))
    lines = (json.dumps(line) + "\n" for line in metric_lines(summary, tokens))
    (path / "metrics.jsonl").write_text("".join(lines))
    for member in summary["members"]:
        save_file(tensors(member, tokens), path / "vectors" / f"{member['name']}.safetensors", {"layers": "0..L"})
    return path


def edit_summary(run_dir: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Rewrite the summary of `run_dir` after `change` has had it."""
    path = run_dir / "eval" / "summary.json"
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))


PAIR = [("icl", 0, 0.0, 2), ("tvp", 0, 1.0, 2)]
EIGHT = [(f"{arm}_s{seed}", seed, weight, 2) for arm, weight in (("icl", 0.0), ("tvp", 1.0)) for seed in range(4)]


@pytest.fixture
def pair_dir(tmp_path: Path) -> Path:
    """Regression, two members, to be changed at will."""
    return write_run(tmp_path / "pair", PAIR)


@pytest.fixture(scope="module")
def regression_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Regression, two members; read only (and reported into)."""
    return write_run(tmp_path_factory.mktemp("regression") / "linear-1", PAIR)


@pytest.fixture(scope="module")
def tokens_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokens, two members."""
    return write_run(tmp_path_factory.mktemp("tokens") / "offset-1", PAIR, tokens=True)


@pytest.fixture(scope="module")
def eight_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Regression, two settings with four seeds each."""
    return write_run(tmp_path_factory.mktemp("eight") / "linear-8", EIGHT)


@pytest.fixture
def edit() -> Callable[[Path, Callable[[dict[str, Any]], None]], None]:
    """``edit(run_dir, change)``: rewrite the run's summary."""
    return edit_summary


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the figures out, for tests of the text alone."""
    monkeypatch.setattr(tvjax.report.page, "write_figure", lambda exhibit, folder: (960, 480))
