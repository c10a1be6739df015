"""The TVP experiment: train a population on a synthetic task, with and without the TVP-loss, and measure it."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from tvjax.errors import UserError, reject
from tvjax.evals import baselines, probes, prompting
from tvjax.evals.measure import Measure
from tvjax.experiments import rundir
from tvjax.experiments.base import Config, Experiment, PlanConfig, one_step
from tvjax.experiments.tvp_settings import TVPSettings
from tvjax.files import write_json
from tvjax.nn.decoder import Decoder
from tvjax.nn.model import Model
from tvjax.parallel import processes
from tvjax.parallel.mesh import MeshConfig, make_mesh, shard_batch
from tvjax.tasks import NO_SHIFT, Prompt, draw
from tvjax.train.log import mean_name
from tvjax.train.loop import Trainer
from tvjax.train.state import Hyper
from tvjax.vectors import origin, store, tvp

KEPT_VECTORS = 512
"""Task vectors that a run leaves behind for each member and layer: enough for a figure, small enough to share."""


BATCHED = ("inputs", "x", "targets", "parameters")
"""What of a `Prompt` has a row for each prompt."""


@dataclasses.dataclass(frozen=True)
class TVPExperiment:
    """ICL loss + tvp_weight * TVP-loss at the member's prescribed layer, on prompts sampled in the step."""

    settings: TVPSettings

    @property
    def decoder(self) -> Decoder:
        return Decoder(self.settings.decoder)

    @property
    def batch(self) -> int:
        """Examples of a step."""
        return self.settings.train.batch

    def init(self, key: jax.Array, data: Any) -> Any:
        """Fresh parameters of one member, from the layers rolled up: the same numbers, in a program of one block."""
        s = self.settings
        decoder = Decoder(dataclasses.replace(s.decoder, unroll=1))
        return decoder.init(key, s.task.sample(key, 1, s.prompt.demonstrations, s.layout).inputs)["params"]

    def data(self) -> dict[str, jax.Array]:
        """Nothing: prompts are sampled on the device."""
        return {}

    def loss(
        self, params: Any, data: Any, key: jax.Array, step: jax.Array, hyper: Hyper
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The loss of one member at `step`; the TVP-loss is left out of the program where no member has a weight.

        The batch is drawn whole. Of several micro-batches each is computed again for its gradient: the activations of
        one are held at a time.
        """
        s = self.settings
        prompt_key, query_key = jax.random.split(key)
        active_X = s.active_inputs(step)
        prompt = s.task.sample(prompt_key, s.train.batch, s.prompt.demonstrations, s.layout, active_X=active_X)
        extra = any(s.population.tvp_weight)
        asked = tvp.draw_queries(s.task, prompt, query_key, s.tvp, active_X) if extra else None
        batched = {name: getattr(prompt, name) for name in BATCHED}

        def part(drawn: Any) -> dict[str, jax.Array]:
            """The metrics of some of the prompts."""
            rows, asked = shard_batch(drawn)
            return self._scores(params, dataclasses.replace(prompt, **rows), asked, step, hyper)

        if s.train.micro_batches == 1:
            metrics = part((batched, asked))
        else:
            # Rows i, i + n, ..: each device's share of the batch is cut where it lies.
            cut = jax.tree.map(
                lambda a: a.reshape(-1, s.train.micro_batches, *a.shape[1:]).swapaxes(0, 1), (batched, asked)
            )
            metrics = jax.tree.map(lambda m: m.mean(0), jax.lax.map(jax.checkpoint(part), cut))
        if not extra:
            return metrics["icl_loss"], metrics
        weight = hyper["tvp_weight"] * (step >= s.tvp.start_step)
        return metrics["icl_loss"] + weight * metrics[f"{tvp.EXTRA[s.tvp.answered_from]}_loss"], metrics

    def _scores(self, params: Any, prompt: Prompt, asked: Any, step: jax.Array, hyper: Hyper) -> dict[str, jax.Array]:
        """The metrics of prompts, and of the queries x' that were drawn for their TVP-loss, if it has a weight."""
        s, decoder = self.settings, self.decoder
        weights_N = s.curriculum.pairs.mask(s.prompt.demonstrations + 1, step)
        given = (s.task, prompt)
        if asked and s.tvp.answered_from == "demonstrations":
            out, more = tvp.run_with_queries(decoder, params, *given, asked, s.tvp)
        else:
            out, theta = tvp.run_prompt(decoder, params, prompt)
        metrics = _weighted("icl", s.task.scores(out, prompt.targets), weights_N)
        if not asked:
            return metrics
        if s.tvp.answered_from == "vector":
            layer, lowest = hyper["prescribed_layer"], min(s.population.prescribed_layer)
            more = tvp.tvp_scores(decoder, params, *given, theta, layer, asked, s.tvp, lowest=lowest)
        chosen = tvp.positions(s.tvp, s.prompt.demonstrations + 1)
        return metrics | _weighted(tvp.EXTRA[s.tvp.answered_from], more, weights_N[jnp.array(chosen)])

    def evaluate(self, params: Any, data: Any, key: jax.Array, hyper: Hyper) -> dict[str, jax.Array]:
        """The ICL curve and TVP at every layer on fresh prompts of the training tasks, while training goes on."""
        s = self.settings
        drawn = draw(NO_SHIFT, s.task, s.layout, key, s.evaluation.training_prompts, s.prompt.demonstrations)
        scores, _ = prompting.score(self.decoder, params, s.task, drawn, s.tvp.edit)
        return {name: value.mean(0) for name, value in prompting.prompts_first(scores).items()}


def _weighted(kind: str, scores: dict[str, jax.Array], weights_N: jax.Array) -> dict[str, jax.Array]:
    """Means over the batch and over the positions that count."""
    total = jnp.maximum(weights_N.sum(), 1.0)
    return {mean_name(kind, name): (value.mean(0) * weights_N).sum() / total for name, value in scores.items()}


def make_trainer(settings: TVPSettings, mesh: Mesh | None = None) -> Trainer:
    """The programs that train this population on `mesh` or that of the settings."""
    return Trainer(
        TVPExperiment(settings),
        settings.train,
        settings.optimizer,
        mesh or make_mesh(**dataclasses.asdict(settings.mesh)),
        settings.population.name,
        settings.population.hyper,
        jax.random.fold_in(jax.random.key(settings.evaluation.seed), 0),
    )


def measure(settings: TVPSettings, params: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """`eval/summary.json` of trained members, and what was seen in distribution (theta and the tasks behind it)."""
    s = settings
    measured = Measure(
        Decoder(s.decoder),
        params,
        s.task,
        s.layout,
        s.prompt.demonstrations,
        edit=s.tvp.edit,
        prompts=s.evaluation.prompts,
        seed=s.evaluation.seed,
    )
    entry, seen = measured(NO_SHIFT)
    summary = {
        "task": s.task_name,
        "layout": s.prompt.layout,
        "num_layers": s.decoder.num_layers,
        "num_prompts": s.evaluation.prompts,
        "edit": s.tvp.edit,
        "risk_unit": s.task.risk_unit,
        **_named(entry, s),
        "baselines": baselines.summary(s.task, seen["x"], seen["shown"]),
        "shifts": {shift.name: _named(measured(shift)[0], s) for shift in s.shifts},
        "notes": _notes(s),
    }
    if s.evaluation.probes:
        for member, found in zip(summary["members"], _probed(s, params, summary["members"], seen), strict=True):
            member["probes"] = found
    return summary, seen


def _probed(
    s: TVPSettings, params: Any, members: list[dict[str, Any]], seen: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The probes of every member."""
    return probes.measure(
        Decoder(s.decoder),
        params,
        s.task,
        s.layout,
        s.prompt.demonstrations,
        {name: [member[f"{name}_layer"] for member in members] for name in ("prescribed", "best")},
        seen,
        edit=s.tvp.edit,
        prompts=s.evaluation.probe_prompts,
        seed=s.evaluation.seed,
    )


def _named(entry: dict[str, Any], s: TVPSettings) -> dict[str, Any]:
    """`entry` with each member's name and settings, and the layer at which its task vector works best."""
    spread = s.population.spread()
    members = []
    for m, scores in enumerate(entry["members"]):
        about = {name: spread[name][m] for name in ("name", "seed", "tvp_weight", "prescribed_layer")}
        about["answered_from"] = s.tvp.answered_from
        inner = scores["tvp_risk_by_layer"][1:-1]
        members.append({**about, "best_layer": 1 + inner.index(min(inner)), **scores})
    return {**entry, "members": members}


def _notes(s: TVPSettings) -> list[str]:
    edit = "replaces the state" if s.tvp.edit == "replace" else "is added to the state"
    notes = [
        f"TVP: theta is read at the last query, after {s.prompt.demonstrations} demonstrations, "
        f"and {edit} in the zero-shot prompt."
    ]
    if s.prompt.layout == "xy" and s.tvp.edit == "replace":
        notes.append(
            "Layout xy reads the answer at x itself: replacing that state deletes the query, so TVP fails at every "
            "layer by construction. The fair control is the additive edit: --config.tvp.edit=add."
        )
    return notes


def write(settings: TVPSettings, params: Any, folder: Path) -> dict[str, Any]:
    """Measure trained members and write eval/summary.json and vectors/*.safetensors, each whole."""
    summary, seen = measure(settings, params)
    names = settings.population.name
    marks = {name: origin.fingerprint(jax.tree.map(lambda p, m=m: p[m], params)) for m, name in enumerate(names)}
    summary["identical_members"] = origin.twins(marks)
    spread = settings.population.spread()
    parameters = {f"task.{name}": value[:KEPT_VECTORS] for name, value in seen["parameters"].items()}
    for m, name in enumerate(names):
        theta_LPD = seen["theta"][m, :KEPT_VECTORS].swapaxes(0, 1)
        shown, layout = settings.prompt.demonstrations, settings.prompt.layout
        store.save_vectors(
            folder / "vectors" / f"{name}.safetensors",
            {"theta": theta_LPD, **parameters},
            model=marks[name],
            address="embed, blocks/resid",
            layers=range(settings.decoder.num_layers + 1),
            about={
                "prescribed_layer": spread["prescribed_layer"][m],
                "made_by": f"extraction after {shown} demonstrations of task {settings.task_name}, layout {layout}",
            },
        )
    write_json(folder / "eval" / "summary.json", summary)
    return summary


def run(config: Mapping[str, Any], folder: Path, mode: str, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Train (or with mode "eval" only load) what `config` asks for in `folder`, measure it, and return the summary.

    Of several processes the first alone measures, and has a summary to return.
    Raises `UserError` for a config or a folder that does not fit, `RunError` where the run cannot go on.
    """
    settings = TVPSettings.from_config(config)
    trainer = make_trainer(settings)
    rundir.prepare(folder, config, new=mode == "train")
    state = rundir.trained_state(trainer, folder, mode, say)
    say("evaluating")
    with jax.set_mesh(processes.own(trainer.mesh)):
        summary: dict[str, Any] = {}
        processes.on_first(lambda: summary.update(write(settings, state.params, folder)))
    rundir.say_twins(summary.get("identical_members", []), say)
    return summary


def load(folder: Path, config: Mapping[str, Any], member: str | None = None) -> Model:
    """One member of the run in `folder`. Raises `UserError` for a member that is not there or without a checkpoint."""
    settings = dataclasses.replace(TVPSettings.from_config(config), mesh=MeshConfig())
    names = settings.population.name
    name = names[-1] if member is None else member
    if name not in names:
        raise reject("member", name, ", ".join(names))
    _, state = make_trainer(settings).restore(folder, print, rundir.run_of(folder))
    if state is None:
        raise UserError(f"{folder}: no checkpoint in it; accepted: the workdir of a run that has saved one")
    return Model(jax.tree.map(lambda p: p[names.index(name)], state.params), settings.decoder, settings)


def planned(config: Config, c: PlanConfig, mesh: Mesh) -> Trainer:
    """What a plan compiles."""
    return make_trainer(TVPSettings.from_config(one_step(config)), mesh)


EXPERIMENT = Experiment(name="tvp", run=run, settings=TVPSettings.from_config, trainer=planned, load=load)
