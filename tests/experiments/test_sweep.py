"""A sweep: how fields' values become populations, that none is trained twice, and its numbers over seeds."""

import copy
import dataclasses
import json
import shutil
import signal

import numpy as np
import pytest

import tvjax
from tests.conftest import TINY, changed, quiet
from tests.runs import Runs
from tvjax.cli import read_flags
from tvjax.errors import UserError
from tvjax.evals.statistics import of_metric
from tvjax.experiments import rundir
from tvjax.experiments.pages import summary_table, write_report
from tvjax.experiments.sweep import report
from tvjax.experiments.sweep import run as sweep
from tvjax.experiments.sweep.settings import Part, SweepSettings
from tvjax.experiments.tvp import load as tvp_load
from tvjax.experiments.tvp import run as tvp
from tvjax.report.results import OF_LOSS
from tvjax.vectors.tvp import TVPConfig

BASE = changed(TINY, model__num_layers=3, train__tensorboard=False, train__steps=10, train__checkpoint_every=10)
BASE = changed(BASE, evaluation__shifts=True)
CONFIG = {
    "experiment": "sweep",
    "base": BASE,
    "sweep": {"population": {"tvp_weight": (0, 0.5), "prescribed_layer": (1, 2), "seed": (0, 1, 2)}},
    "cut": {"most_members": 64},
}


def parts(**fields):
    return SweepSettings.from_config(changed(CONFIG, **fields)).parts


def test_members_of_one_shape_are_one_population_and_none_is_there_twice():
    (part,) = parts()
    population = part.config["population"]
    rows = list(zip(*(population[name] for name in ("tvp_weight", "prescribed_layer", "seed")), strict=True))
    assert rows == [(0, 1, 0), (0, 1, 1), (0, 1, 2), *((0.5, layer, seed) for layer in (1, 2) for seed in (0, 1, 2))]
    assert population["name"][0] == "icl-seed0" and population["name"][-1] == "tvp0.5-layer2-seed2"
    assert population["learning_rate"] == (2e-3,) * 9


def test_what_is_not_swept_is_as_in_the_base():
    (part,) = parts(sweep={"population": {"seed": (3, 4)}})
    assert part.config["population"]["name"] == ("icl-seed3", "icl-seed4", "tvp1-layer1-seed3", "tvp1-layer1-seed4")
    assert part.config["population"]["tvp_weight"] == (0.0, 0.0, 1.0, 1.0)
    (part,) = parts(sweep={"population": {"learning_rate": (1e-3, 1e-2)}})
    assert part.config["population"]["name"][:2] == ("icl-rate0.001-seed0", "icl-rate0.01-seed0")


def test_fields_that_change_shapes_make_populations_of_their_own():
    made = parts(
        sweep={"model": {"width": (8, 16)}, "population": {"seed": (0, 1)}, "prompt": {"layout": ("xzy", "xy")}}
    )
    assert [p.name for p in made] == [f"width-{w}.layout-{name}" for w in (8, 16) for name in ("xzy", "xy")]
    assert [p.config["model"]["width"] for p in made] == [8, 8, 16, 16]
    assert made[1].values == {"model.width": 8, "prompt.layout": "xy"}
    names = [p.name for p in parts(sweep={"train": {"batch": (4, 8)}, "model": {"width": (8,)}})]
    assert names == ["batch-4.width-8", "batch-8.width-8"]


def test_many_members_are_cut():
    made = parts(cut__most_members=4)
    assert [p.name for p in made] == ["base.1", "base.2", "base.3"] and [p.members for p in made] == [4, 4, 1]
    names = [name for p in made for name in p.config["population"]["name"]]
    assert names == list(parts()[0].config["population"]["name"])


def test_further_combinations_are_added_and_what_is_the_same_training_is_there_once():
    """Without TVP-loss a schedule changes nothing, and the control reads no layer."""
    members = {"tvp_weight": (0, 0.5), "prescribed_layer": (1, 2), "seed": (0, 1)}
    made = parts(
        base=changed(BASE, tvp=dataclasses.asdict(TVPConfig())),
        sweep={"tvp": {"schedule": ("constant", "up")}, "population": members},
        also={
            "late": {"tvp": {"start_step": (5,)}, "population": members},
            "control": {"tvp": {"answered_from": ("demonstrations",)}, "population": members},
            "again": {"population": {"tvp_weight": (0.5, 2.0), "seed": (1,)}},
        },
    )
    found = [
        (
            *(p.values[f"tvp.{field}"] for field in ("schedule", "start_step", "answered_from")),
            *zip(*(p.config["population"][field] for field in ("tvp_weight", "prescribed_layer", "seed")), strict=True),
        )
        for p in made
    ]
    alone = [(0, 1, seed) for seed in (0, 1)]
    trained = [(0.5, layer, seed) for layer in (1, 2) for seed in (0, 1)]
    assert found == [
        ("constant", 0, "vector", *alone, *trained, (2.0, 1, 1)),
        ("up", 0, "vector", *trained),
        ("constant", 5, "vector", *trained),
        ("constant", 0, "demonstrations", *trained[:2]),
    ]
    assert [p.config["tvp"]["start_step"] for p in made] == [0, 0, 5, 0]
    assert set(OF_LOSS) < {f"tvp.{field.name}" for field in dataclasses.fields(TVPConfig)}
    axes = SweepSettings.from_config(changed(CONFIG, also={"more": {"train": {"batch": (4,)}}})).axes
    assert axes["train.batch"] == (4,) and axes["population.seed"] == (0, 1, 2)


def test_the_config_is_left_as_it_is():
    before = copy.deepcopy(CONFIG)
    SweepSettings.from_config(CONFIG)
    assert before == CONFIG


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"sweep": {}}, ("config.sweep", "fields of the base")),
        ({"sweep": {"population": {"sead": (0,)}}}, ("config.sweep.population.sead", "no such field", "seed")),
        ({"sweep": {"modle": {"width": (1,)}}}, ("config.sweep.modle", "no such field", "model")),
        ({"also": {"more": {}}}, ("config.also.more", "fields of the base")),
        ({"also": {"more": 3}}, ("config.also.more", "a group of fields")),
        ({"also": {"more": {"model": {"widht": (1,)}}}}, ("config.also.more.model.widht", "no such field", "width")),
        ({"sweep": {"model": 3}}, ("config.sweep.model", "a group of fields")),
        ({"sweep": {"model": {"width": ()}}}, ("config.sweep.model.width", "different values")),
        ({"sweep": {"population": {"seed": (0, 0)}}}, ("config.sweep.population.seed", "different values")),
        ({"sweep": {"population": {"name": ("a",)}}}, ("config.sweep.population.name", "names its members")),
        ({"sweep": {"model": {"width": (8, 15)}}}, ("config.sweep: width-15", "divisor of width = 15")),
        ({"sweep": {"population": {"prescribed_layer": (3,)}}}, ("config.sweep: base", "prescribed_layer", "1..2")),
        ({"base__model__width": 15}, ("config.base: model.num_heads", "divisor")),
        ({"cut__most_members": 0}, ("config.cut.most_members", "1 or more")),
        ({"base": CONFIG}, ("config.base.experiment", "'sweep'")),
    ],
)
def test_a_wrong_value_is_named(fields, words):
    with pytest.raises(UserError) as caught:
        SweepSettings.from_config(changed(CONFIG, **fields))
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep") / "run"
    said = []
    return folder, sweep.run(CONFIG, folder, "train", said.append), said


def test_it_says_first_how_it_is_cut_and_what_it_takes(ran):
    assert ran[2][:2] == ["sweep: 9 members in 1 populations", "  base: 9 members, 10 steps: 90 member-steps"]


def test_each_number_is_over_seeds(ran):
    folder, summary, _ = ran
    own = json.loads((folder / "populations" / "base" / "eval" / "summary.json").read_text())
    for weight, layer in ((0, 1), (0.5, 1), (0.5, 2)):
        mine = [m for m in own["members"] if (m["tvp_weight"], m["prescribed_layer"]) == (weight, layer)]
        setting = {"tvp_weight": weight, "prescribed_layer": layer}
        of = lambda entry, setting=setting: all(entry.get(name) == value for name, value in setting.items())
        numbers = [n for n in summary["numbers"] if of(n)]
        for layer_read in range(4):
            (entry,) = (
                n
                for n in numbers
                if n["metric"] == "tvp_risk_by_layer" and "shift" not in n and n["layer"] == layer_read
            )
            values = [m["tvp_risk_by_layer"][layer_read] for m in mine]
            assert (entry["value"], entry["value_ci"]) == of_metric(entry["metric"], values)
            assert entry["by_seed"] == {str(m["seed"]): value for m, value in zip(mine, values, strict=True)}
        under = [n for n in numbers if n.get("shift") == "input_scale_2" and n["metric"] == "icl_risk"]
        members = [own["members"].index(m) for m in mine]
        values = [own["shifts"]["input_scale_2"]["members"][i]["icl_risk"][-1] for i in members]
        assert len(under) == 1 and under[0]["value"] == of_metric(under[0]["metric"], values)[0]
    assert not any(n["metric"] in ("best_layer", "num_demonstrations") for n in summary["numbers"]), (
        "no means of counts"
    )


def test_what_is_of_no_member_is_there_once_whatever_of_the_loss_is_swept():
    of = {"run": "", "experiment": "tvp", "low": 1.0, "high": 2.0}
    rows = [
        {**of, "metric": "prior_risk", "value": 1.5},
        {**of, "metric": "icl_risk", "value": 0.5, "tvp_weight": 1.0, "prescribed_layer": 1, "seed": 0},
    ]
    point = lambda schedule, width: Part("", {"tvp.schedule": schedule, "model.width": width}, {})
    parts = [(point(schedule, width), rows) for width in (8, 16) for schedule in ("constant", "up")]
    entries = sweep.over_seeds(parts)
    priors = [entry for entry in entries if entry["metric"] == "prior_risk"]
    assert [(e["base.model.width"], e["value"], e["value_ci"]) for e in priors] == [(w, 1.5, [1, 2]) for w in (8, 16)]
    assert all("base.tvp.schedule" not in entry for entry in priors)
    assert len(entries) == 2 + 4


def test_what_the_loss_costs_is_a_ratio_of_the_same_seed(ran):
    folder, summary, _ = ran
    own = json.loads((folder / "populations" / "base" / "eval" / "summary.json").read_text())
    risks = {(m["tvp_weight"], m["prescribed_layer"], m["seed"]): m["icl_risk"][-1] for m in own["members"]}
    entries = [n for n in summary["numbers"] if n["metric"] == "relative_icl_risk" and "shift" not in n]
    assert [(n["tvp_weight"], n["prescribed_layer"]) for n in entries] == [(0.5, 1), (0.5, 2)]
    for entry in entries:
        expected = [risks[0.5, entry["prescribed_layer"], seed] / risks[0, 1, seed] for seed in (0, 1, 2)]
        assert list(entry["by_seed"].values()) == pytest.approx(expected)
        assert entry["value"] == pytest.approx(np.exp(np.log(expected).mean()))
    shifts = {n["shift"] for n in summary["numbers"] if n["metric"] == "icl_risk" and "shift" in n}
    assert shifts == {n["shift"] for n in summary["numbers"] if n["metric"] == "relative_icl_risk" and "shift" in n}


def test_curves_of_the_training_are_means_over_seeds(ran):
    folder, summary, _ = ran
    (curve,) = (c for c in summary["training"] if (c["prescribed_layer"], c["metric"]) == (2, "tvp_risk_by_layer"))
    rows = [json.loads(line) for line in (folder / "populations/base/metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["member"].startswith("tvp0.5-layer2")]
    for step, value in zip(curve["step"], curve["value"], strict=True):
        of = [row["eval_tvp_risk_by_layer"][2] for row in rows if row["step"] == step]
        assert len(of) == 3 and value == pytest.approx(np.exp(np.log(of).mean()))
    assert curve["step"][0] == 0 and curve["step"][-1] == BASE["train"]["steps"]
    frame = tvjax.results([folder])
    assert "step" not in frame.columns, "no result"


def test_a_run_that_trains_its_members_apart_is_not_followed(ran, tmp_path):
    """Its logs are in folders of their own."""
    (part,) = parts()
    assert sweep.during_training([(part, ran[0] / "populations" / "base")])
    assert sweep.during_training([(part, tmp_path)]) == []


def test_a_single_seed_keeps_its_interval_over_prompts(tmp_path):
    config = changed(CONFIG, sweep={"population": {"prescribed_layer": (1, 2)}}, base__evaluation__shifts=False)
    summary = sweep.run(config, tmp_path / "run", "train", quiet)
    own = json.loads((tmp_path / "run" / "populations" / "base" / "eval" / "summary.json").read_text())
    (entry,) = (n for n in summary["numbers"] if n["metric"] == "zero_shot_risk" and n["tvp_weight"] == 0)
    assert entry["value_ci"] == own["members"][0]["zero_shot_risk_ci"]
    assert "One seed" in summary_table(summary)


def test_a_population_is_trained_once_and_is_a_run_of_its_own(ran, monkeypatch):
    folder, summary, _ = ran

    def refuse(*args, **kwargs):
        raise AssertionError("trained again")

    monkeypatch.setattr(
        sweep, "named", lambda name: type(tvp.EXPERIMENT)(name="tvp", run=refuse, settings=lambda c: None)
    )
    assert sweep.run(CONFIG, folder, "train", quiet) == summary
    place = folder / "populations" / "base"
    model = tvp_load.load(place, json.loads((place / "config.json").read_text()), "tvp0.5-layer2-seed1")
    assert model.config.num_layers == 3
    with pytest.raises(UserError, match=r"config\.sweep\.population\.seed"):
        sweep.run(changed(CONFIG, sweep__population__seed=(0, 1)), folder, "train", quiet)


def test_the_page_and_the_table(ran):
    folder, summary, _ = ran
    page = write_report(folder).read_text()
    assert (folder / "report" / "by_layer.png").is_file() and 'src="by_layer.png"' in page
    assert "heatmap.png" not in page, "there is one axis"
    assert "ICL risk at K under each shift" in page and "Mean over 3 seeds" in page
    text = summary_table(summary)
    lines = [line for line in text.splitlines() if line.startswith(("ICL loss alone", "TVP-loss"))]
    assert [line.split("  ")[0] for line in lines] == [
        "ICL loss alone",
        "TVP-loss 0.5 at layer 1",
        "TVP-loss 0.5 at layer 2",
    ]
    assert "population.tvp_weight (2)" in text and "prior risk" in text
    first = "ICL was not learned in 3 of 3 settings: the interval of its risk"
    assert first in text.splitlines()[1] and page.index(first) < page.index('<h2 id="results">')


def test_what_has_learned_is_not_named_and_each_metric_by_layer_is_drawn(ran):
    tree = copy.deepcopy(ran[1])
    (prior,) = (n["value"] for n in tree["numbers"] if n["metric"] == "prior_risk" and "shift" not in n)
    for entry in tree["numbers"]:
        if entry["metric"] == "icl_risk" and entry["prescribed_layer"] == 2:
            entry |= {"value": 0.1 * prior, "value_ci": [0.05 * prior, 0.2 * prior]}
    assert "in 2 of 3 settings (ICL loss alone; TVP-loss 0.5 at layer 1)" in summary_table(tree)
    of_risk = [n for n in tree["numbers"] if n["metric"] == "tvp_risk_by_layer"]
    tree["numbers"] += [{**n, "metric": "tvp_accuracy_by_layer"} for n in of_risk]
    assert [e.stem for e in report._curves(tree)][:2] == ["by_layer", "tvp_accuracy_by_layer"]


def test_schedules_and_controls_are_named_and_the_least_price_of_a_usable_vector_is_said(ran):
    tree, numbers = copy.deepcopy(ran[1]), []
    (prior,) = (n["value"] for n in tree["numbers"] if n["metric"] == "prior_risk" and "shift" not in n)
    for schedule, source in (("constant", "vector"), ("up", "vector"), ("constant", "demonstrations")):
        for n in tree["numbers"]:
            weight, layer = n.get("tvp_weight"), n.get("prescribed_layer")
            if weight is None and (schedule, source) == ("constant", "vector"):
                numbers.append(n)
            if weight is None or (not weight and (schedule, source) != ("constant", "vector")):
                continue
            if source == "demonstrations" and layer == 2:
                continue
            n = {"base.tvp.schedule": schedule, "base.tvp.answered_from": source, **n}
            if n["metric"] == "tvp_risk_by_layer" and "shift" not in n:
                share = 0.1 if (schedule, layer) in (("up", 1), ("constant", 2)) and source == "vector" else 1.0
                n |= {"value": share * prior, "value_ci": [0.9 * share * prior, 1.1 * share * prior]}
            if n["metric"] == "relative_icl_risk" and "shift" not in n:
                value = 0.5 if source == "demonstrations" else {"up": 2.0, "constant": 3.0}[schedule]
                n |= {"value": value, "value_ci": [0.9 * value, 1.1 * value]}
            numbers.append(n)
    tree["numbers"] = numbers
    text = summary_table(tree)
    first = [line.split("  ")[0] for line in text.splitlines()]
    assert [line for line in first if line.startswith(("ICL loss", "TVP-loss", "control"))] == [
        "ICL loss alone",
        *(f"TVP-loss 0.5 at layer {layer}, schedule constant" for layer in (1, 2)),
        *(f"TVP-loss 0.5 at layer {layer}, schedule up" for layer in (1, 2)),
        "control 0.5, schedule constant",
    ]
    said = "The vector is usable at l* in 2 of 4 settings with TVP-loss. Of these, TVP-loss 0.5 at layer 1, schedule up"
    assert f"{said} has the least ICL risk, 2.00 [1.80, 2.20] times" in " ".join(text.split())
    (heat,) = report._heatmap(tree)
    assert "control" not in heat.alt
    curves = {exhibit.stem: exhibit for exhibit in report._curves(tree)}
    assert {"by_layer", "training_icl_risk", "training_tvp_risk"} == set(curves)
    curves["training_icl_risk"].draw()
    (price,) = report._tradeoff(tree)
    assert "TVP-loss 0.5 at layer 1, schedule up: TVP risk" in price.alt and "control 0.5" in price.alt
    (axes,) = price.draw().axes
    marks = [line for line in axes.lines if line.get_marker() not in ("None", None, "")]
    assert sorted(float(line.get_ydata()[0]) for line in marks) == [0.5, 2.0, 2.0, 3.0, 3.0]


def test_two_axes_are_a_heatmap(ran, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(ran[0], folder)
    tree = copy.deepcopy(ran[1])
    more = [{**n, "tvp_weight": 1.0, "value": 2.0} for n in tree["numbers"] if n.get("tvp_weight") == 0.5]
    tree["numbers"] += more
    (folder / "eval" / "summary.json").write_text(json.dumps(tree))
    page = write_report(folder).read_text()
    assert (folder / "report" / "heatmap.png").is_file() and 'src="heatmap.png"' in page
    assert "TVP risk at l*, TVP-loss 1 at layer 2: 2.00" in page


def test_the_icl_loss_alone_is_drawn_where_it_belongs_and_nothing_is_left_out_without_a_word(ran):
    """Ten widths, for nine of which there are panels, with that width's own members alone."""
    tree = copy.deepcopy(ran[1])
    by_layer = [n for n in tree["numbers"] if n["metric"] == "tvp_risk_by_layer" and "shift" not in n]
    tree["numbers"] = [
        {"base.model.width": w, **n, "value": n["value"] * w, "value_ci": None} for w in range(1, 11) for n in by_layer
    ]
    tree["training"] = []
    (exhibit,) = report._curves(tree)
    assert "1 more panels are left out" in exhibit.caption
    panels = [ax for ax in exhibit.draw().axes if ax.get_visible()]
    assert [ax.get_title(loc="left") for ax in panels] == [f"width {w}" for w in range(1, 10)]
    for width, ax in enumerate(panels, start=1):
        drawn = sorted(line.get_ydata()[0] / width for line in ax.lines)
        np.testing.assert_allclose(drawn, sorted(n["value"] for n in by_layer if n["layer"] == 0))


def test_its_numbers_are_rows_and_compare_with_another_sweep(ran, tmp_path):
    frame = tvjax.results([ran[0]])
    risks = frame[(frame.metric == "tvp_risk_by_layer") & (frame.tvp_weight == 0.5) & frame["shift"].isna()]
    assert len(risks) == 2 * 4 and set(risks.layer) == {0, 1, 2, 3}
    entries = {
        (n["prescribed_layer"], n["layer"]): n["value"]
        for n in ran[1]["numbers"]
        if n["metric"] == "tvp_risk_by_layer" and n.get("tvp_weight") == 0.5 and "shift" not in n
    }
    for row in risks.to_dict("records"):
        np.testing.assert_equal(entries[int(row["prescribed_layer"]), int(row["layer"])], row["value"])


CONFIG_FILE = f"--config={rundir.__file__.rsplit('/tvjax/', 1)[0]}/configs/tvp_synthetic.py"


def test_the_command_line_sweeps_any_config():
    flags = ["--sweep.population.tvp_weight=0,0.3,1", "--sweep.population.seed=0:4", "--sweep.prompt.layout=xzy,xy"]
    config, name, _, _ = read_flags(["main", CONFIG_FILE, "--config.train.steps=100", *flags])
    assert config["experiment"] == "sweep" and config["base"]["train"]["steps"] == 100
    assert config["sweep"] == {
        "population": {"tvp_weight": (0, 0.3, 1), "seed": (0, 1, 2, 3)},
        "prompt": {"layout": ("xzy", "xy")},
    }
    assert name == "tvp_synthetic-sweep"
    made = SweepSettings.from_config(config).parts
    assert [(p.name, p.members) for p in made] == [("layout-xzy", 12), ("layout-xy", 12)]


def test_all_fields_in_one_flag_are_the_same():
    long = ["--sweep.population.tvp_weight=0,.03,1", "--sweep.population.seed=0:2", "--sweep.model.width=16,32"]
    short = "--sweep=tvp_weight=0,.03,1 seed=0:2 model.width=16,32"
    assert read_flags(["main", CONFIG_FILE, short]) == read_flags(["main", CONFIG_FILE, *long])


def test_values_that_are_tuples():
    flags = ["--sweep.task.amplitude=(0.5,1.0),(0.5,2.0)", "--sweep.population.seed", "0,1"]
    config = read_flags(["main", f"{CONFIG_FILE}:sinusoid", *flags])[0]
    assert config["sweep"] == {"task": {"amplitude": ((0.5, 1.0), (0.5, 2.0))}, "population": {"seed": (0, 1)}}
    assert [p.name for p in SweepSettings.from_config(config).parts] == ["amplitude-0.5-1.0", "amplitude-0.5-2.0"]


@pytest.mark.parametrize(
    ("flag", "line"),
    [
        ("--sweep.population.seed", "--sweep.population.seed: given ''; accepted: values with commas"),
        ("--sweep.population.seed=", "--sweep.population.seed: given ''; accepted: values with commas"),
        ("--sweep=seed=1 population.seed=2", "--sweep.population.seed: given twice, '1' and '2'"),
        ("--sweep=seed", "--sweep: given 'seed'; accepted: fields with values"),
        ("--sweep=seed= 3", "--sweep: given 'seed= 3'; accepted: fields with values"),
        ("--sweeps.population.seed=1", "--sweeps.population.seed"),
    ],
)
def test_a_sweep_without_values_is_refused(flag, line):
    with pytest.raises(UserError) as caught:
        read_flags(["main", CONFIG_FILE, flag])
    assert line in str(caught.value)


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_with_the_same_bits(tmp_path):
    """Killed while its first population trains, when that is measured, and in the second one."""
    config = changed(CONFIG, sweep={"population": {"seed": (0, 1)}, "model": {"width": (8, 16)}})
    config = changed(config, base__evaluation__shifts=False, base__train__checkpoint_every=5)
    runs = Runs("sweep", config, tmp_path)
    assert runs.finish(runs.whole)[0] == 0
    killed = tmp_path / "killed"
    first, second = (killed / "populations" / f"width-{width}" for width in (8, 16))
    for moment in (first / "checkpoints" / "5", first / "vectors", second / "metrics.jsonl"):
        code, _ = runs.stop(killed, lambda folder, moment=moment: moment.exists(), signal.SIGKILL)
        assert code == -signal.SIGKILL
    assert runs.finish(killed)[0] == 0
    for name in (
        "eval/summary.json",
        "populations/width-8/eval/summary.json",
        "populations/width-16/eval/summary.json",
    ):
        assert (killed / name).read_bytes() == (runs.whole / name).read_bytes()
