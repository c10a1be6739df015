"""Methods that live outside of the package, each in one file: the config, a run, the table, the page and the plan know
them by their records alone.
"""

import dataclasses
import json
import sys
import textwrap
import types

import jax.numpy as jnp
import numpy as np
import pytest

import tvjax
from tests.conftest import changed
from tests.experiments.test_atv import CONFIG, LED, SEEN, model_folder
from tvjax import methods, plugins
from tvjax.errors import RunError, UserError
from tvjax.experiments import planned
from tvjax.experiments.atv import run as atv
from tvjax.experiments.atv.settings import ATVSettings
from tvjax.experiments.pages import summary_table, write_report
from tvjax.experiments.task_vectors import run as task_vectors
from tvjax.experiments.task_vectors import settings
from tvjax.methods.base import NoSettings, Prompted
from tvjax.methods.trained import Trained
from tvjax.methods.vector import TaskVectors, VectorMethod
from tvjax.nn.model import Model
from tvjax.tasks.suite import suite
from tvjax.tasks.text import Template, some
from tvjax.text.adapting import over_prompts
from tvjax.vectors.adapters import Adapter, Change
from tvjax.vectors.edits import edit_at

MODULE = '''
"""A prompt, a vector and a trained method of somebody else's."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from tvjax import methods
from tvjax.methods.base import Prompted
from tvjax.methods.trained import Trained, TrainedSettings
from tvjax.methods.vector import TaskVectors, VectorMethod
from tvjax.settings import setting
from tvjax.vectors.adapters import Adapter, Change
from tvjax.vectors.atv import inject


@dataclasses.dataclass(frozen=True)
class LoudFields:
    """Of config.loud_vector."""

    scales: tuple[float, ...] = setting((0.5, 2.0), "factors", above=0, entries=1, distinct=True)


def loud(bench, own):
    """The mean state of few-shot prompts at every layer, to be added at all of them and at all tokens."""
    return TaskVectors({name: bench.shown(name)["states"] for name in bench.tasks})


@dataclasses.dataclass(frozen=True)
class Shift(Adapter):
    """One vector for everything, at layer 1."""

    target: object
    size: float

    def init(self, key, frozen):
        return jnp.full(self.target.width, self.size)

    def read(self, params, frozen, queries, scale_L, key):
        return jnp.broadcast_to(params, (queries.task_B.shape[0], 1, self.target.width))

    def change(self, params, frozen, reading, q):
        return Change(frozen["target"], inject(reading, (1,), "last", self.target, q))


@dataclasses.dataclass(frozen=True)
class Idle(Shift):
    """The same vector, beside numbers that it does not read."""

    def init(self, key, frozen):
        return {"vector": super().init(key, frozen), "gate": {"kernel": jnp.ones((2, 2))}}

    def read(self, params, frozen, queries, scale_L, key):
        return super().read(params["vector"], frozen, queries, scale_L, key)


@dataclasses.dataclass(frozen=True)
class ShiftFields(TrainedSettings):
    """Of config.shift."""

    start: float = setting(0.0, "each number at the start", least=0)


methods.register(
    Prompted(
        name="twice_asked",
        label="asked twice",
        knows="query",
        prompts=lambda bench, task: [x + " " + x for x, _ in bench.sample(task, "test")],
        source="Nobody's.",
    ),
    VectorMethod(
        name="loud_vector",
        label="loud vector",
        settings=LoudFields,
        make=loud,
        scales=lambda own: own.scales,
        everywhere=True,
        positions="all",
    ),
    Trained(
        name="shift",
        label="one shift",
        knows="query",
        settings=ShiftFields,
        adapter=lambda context, own: Shift(context.target.config, own.start),
    ),
    Trained(
        name="idle",
        label="one shift, and a gate that is not read",
        knows="query",
        adapter=lambda context, own: Idle(context.target.config, 0.0),
    ),
)
'''
NAMES = ("zero_shot", "twice_asked", "vector", "loud_vector", "shift")


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """The module, imported, and forgotten afterwards."""
    folder = tmp_path_factory.mktemp("theirs")
    (folder / "their_methods.py").write_text(textwrap.dedent(MODULE))
    before = dict(methods.METHODS)
    sys.path.insert(0, str(folder))
    plugins.load("their_methods")
    yield methods.METHODS
    sys.path.remove(str(folder))
    sys.modules.pop("their_methods")
    for name in [name for name in methods.METHODS if name not in before]:
        methods.METHODS.pop(name)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = model_folder(tmp_path_factory.mktemp("model") / "target", 32, 2, 0)
    small = changed(CONFIG, methods=NAMES, templates=LED, train__seeds=(0,), train__steps=10, train__evaluate_every=10)
    return changed(small, target__path=path, generator={"kind": "target"})


@pytest.fixture(scope="module")
def done(theirs, config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    return folder, atv.run(changed(config, shift={"start": 0.25}), folder, "train", lambda line: None)


class TestTheirs:
    def test_a_run_its_table_and_its_page_have_them(self, done):
        folder, summary = done
        assert [m["name"] for m in summary["methods"]] == list(NAMES)
        assert {m["name"]: m["trainable_parameters"] for m in summary["methods"]}["shift"] == 32
        table, page = summary_table(summary), write_report(folder).read_text()
        for label, knows in (("asked twice", "query"), ("loud vector", "task"), ("one shift", "query")):
            assert any(line.startswith(label) and knows in line for line in table.splitlines())
            assert label in page
        assert "Nobody&#x27;s." in page or "Nobody's." in page

    def test_a_vector_at_all_layers_and_tokens_answers_as_one_that_is_added_by_hand(self, theirs, done, config):
        target = tvjax.load(config["target"]["path"])
        tokenizer, template = target.source.tokenizer, Template(*LED[0])
        _, context = atv.open_context(config, done[0], "eval", lambda line: None)
        method, (bench,) = methods.METHODS["loud_vector"], context.benches
        made = method.make(bench, context.own["loud_vector"])
        vectors_LD = made.vectors[SEEN[1]]
        found = method.swept(bench, SEEN[1], "test", vectors_LD, [None], (0.5, 2.0))
        assert found.first.shape == (5, 1, 2)
        for row, (x, y) in enumerate(some(suite()[SEEN[1]].questions("test"), 5)):
            prompt, answer = tokenizer.encode([template.prompt([], x), template.prompt([], x) + template.answer(y)])
            for column, scale in enumerate((0.5, 2.0)):
                edits = tvjax.add(jnp.asarray(scale * vectors_LD[1:])[:, None], layers=[1, 2], positions="all")
                count = len(answer) - len(prompt)
                ids = np.asarray(tvjax.generate(target, jnp.array([prompt]), max_new_tokens=count, edits=edits).ids_BT)[
                    0
                ]
                right = ids[0] == answer[len(prompt)], list(ids) == answer[len(prompt) :]
                assert right == (found.first[row, 0, column], found.whole[row, 0, column])

    def test_a_parameter_that_changes_nothing_is_named(self, theirs, config, done, tmp_path):
        asked = changed(config, methods=("zero_shot", "idle"), optimizer__weight_decay=0.1)
        with pytest.warns(UserWarning, match="method idle: no gradient has reached gate/kernel in training"):
            summary = atv.run(asked, tmp_path / "run", "train", lambda line: None)
        assert summary["methods"][1]["unreached"] == ["gate/kernel"]
        assert "one shift, and a gate that is not read: no gradient has reached gate/kernel" in summary_table(summary)
        assert not any("unreached" in m for m in done[1]["methods"])

    def test_what_is_trained_can_be_planned(self, theirs, config, tmp_path):
        said = []
        planned.plan(changed(config, methods=("shift",)), tmp_path / "plan", said.append)
        assert json.loads((tmp_path / "plan" / "plan.json").read_text())["what"] == "atv" and said

    def test_its_fields_are_checked_by_their_own_bounds(self, theirs, config, tmp_path):
        with pytest.raises(UserError, match=r"config\.shift\.start: given -1\.0; accepted: 0 or more"):
            atv.run(changed(config, shift={"start": -1.0}), tmp_path / "run", "train", lambda line: None)
        with pytest.raises(UserError, match=r"config\.shift\.size: given 1; accepted: no such field; .* rate, start"):
            atv.run(changed(config, shift={"size": 1}), tmp_path / "run", "train", lambda line: None)

    def test_their_vectors_are_measured_beside_ours(self, theirs, config, tmp_path):
        asked = {
            "experiment": "task_vectors",
            "model": {"path": config["target"]["path"]},
            "data": {"tasks": SEEN},
            "template": {"start": "\n", "before": "", "between": " ->", "after": "\n"},
            "vectors": {"demonstrations": 2, "prompts": 2, "questions": 4},
            "methods": ("vector", "loud_vector"),
        }
        summary = task_vectors.run(asked, tmp_path / "run", "train", lambda line: None)
        entry = summary["tasks"][SEEN[0]]
        assert entry["loud_vector_layer"] is None and entry["loud_vector_scale"] in (0.5, 2.0)
        assert entry["loud_vector_by_layer_test"] == [None] * 3 and None not in entry["vector_by_layer_test"][1:]
        page = write_report(tmp_path / "run").read_text()
        assert "loud vector" in summary_table(summary)
        assert "Otherwise: loud vector, added at every layer and all tokens" in page
        vectors, about = tvjax.load_vectors(tmp_path / "run" / "vectors" / f"{SEEN[0]}.safetensors")
        assert vectors["loud_vector"].shape == (3, 32) and about["loud_vector.layer"] == "all"


class TestRegister:
    @pytest.mark.parametrize(
        ("fields", "said"),
        [
            ({"name": "few_shot"}, "method few_shot: given a name of this package"),
            ({"name": "new", "group": "lora"}, "method new: group: given 'lora', in which lora has other fields"),
            ({"name": "new", "group": "train"}, "method new: group: given 'train', .* accepted: none of experiment, "),
            ({"name": "model"}, "method model: group: given 'model', which experiments have fields in"),
        ],
    )
    def test_names_and_groups_are_their_own(self, fields, said):
        with pytest.raises(UserError, match=said):
            methods.register(Prompted(label="x", knows="query", prompts=lambda bench, name: [], **fields))

    @pytest.mark.parametrize("kind", [ATVSettings, settings.TaskVectorSettings])
    def test_no_group_is_one_of_an_experiment(self, kind):
        assert set(kind.__dataclass_fields__) - {"own"} <= set(methods.TAKEN)

    def test_what_it_knows_is_one_of_three(self):
        with pytest.raises(UserError, match="method new: knows: given 'all'; accepted: query, demonstrations, task"):
            Prompted(name="new", label="x", knows="all", prompts=lambda bench, name: [])

    @pytest.mark.parametrize(
        ("fields", "said"),
        [({"everywhere": True, "keep": 0.0}, "keep: given 0.0"), ({"positions": "all"}, "positions")],
    )
    def test_what_would_be_ignored_is_refused(self, fields, said):
        with pytest.raises(UserError, match=f"method new: {said}"):
            VectorMethod(name="new", label="x", make=lambda bench, own: None, **fields)

    def test_of_a_plugin_that_is_not_there_one_line(self):
        with pytest.raises(UserError, match="--plugins: given 'no_such_module', which raised ModuleNotFoundError"):
            plugins.load("no_such_module")


def test_methods_that_make_no_vectors_are_refused_where_vectors_are_measured():
    with pytest.raises(UserError, match=r"config\.methods: given 'lora'; accepted: methods that make vectors: vector"):
        settings._methods(("vector", "lora"))
    with pytest.raises(UserError, match="'vector' among them"):
        settings._methods(("function_vector",))


def test_every_method_says_what_its_fields_are():
    for group, kind in methods.groups().items():
        for name, field in kind.__dataclass_fields__.items():
            assert field.metadata.get("about"), (group, name)
    assert all(
        isinstance(m, VectorMethod) == (m.kind == "vectors" and m.name != "elicit") for m in methods.METHODS.values()
    )


@dataclasses.dataclass(frozen=True)
class Loose:
    """Fields of a trained method that inherit nothing."""

    start: float = 0.0


class TestWhatTheyMake:
    """What a method of somebody else's gives back is checked before anything is measured with it."""

    BENCH = types.SimpleNamespace(
        tasks=("a", "b"), layers=[0, 1, 2], model=types.SimpleNamespace(config=types.SimpleNamespace(width=4))
    )

    def method(self, result, **fields):
        return VectorMethod(name="theirs", label="theirs", make=lambda bench, own: result, **fields)

    def test_vectors_of_every_task_pass(self):
        made = TaskVectors({name: np.ones((3, 4)) for name in "ab"})
        assert self.method(made).vectors(self.BENCH, None) is made

    @pytest.mark.parametrize(
        ("result", "line"),
        [
            ({"a": np.ones((3, 4))}, r"given a dict; accepted: a methods\.vector\.TaskVectors"),
            (TaskVectors({"a": np.ones((3, 4))}), "given no vector of b; accepted: one of each task"),
            (TaskVectors(dict.fromkeys("ab", np.ones((2, 4)))), r"a: given shape \(2, 4\); accepted: \(3, 4\)"),
            (TaskVectors(dict.fromkeys("ab", np.ones(4))), r"a: given shape \(4,\); accepted: \(3, 4\)"),
        ],
    )
    def test_what_does_not_fit_is_refused(self, result, line):
        with pytest.raises(UserError, match=f"method theirs: make: {line}"):
            self.method(result).vectors(self.BENCH, None)

    def test_nothing_is_measured_with_what_is_not_finite(self):
        with pytest.raises(RunError, match="the vectors of b are not finite"):
            self.method(TaskVectors({"a": np.ones((3, 4)), "b": np.full((3, 4), np.nan)})).vectors(self.BENCH, None)

    def test_fields_of_the_record_are_checked(self):
        with pytest.raises(UserError, match="positions: given 'everything'; accepted: last, all"):
            self.method(None, everywhere=True, positions="everything")
        with pytest.raises(UserError, match=r"settings: given .*; accepted: a dataclass, the class"):
            self.method(None, settings=int)
        for kind in (Loose, NoSettings):
            with pytest.raises(
                UserError, match=f"settings: given {kind.__name__}, which has no rate; accepted: .* under"
            ):
                Trained(name="theirs", label="theirs", knows="query", settings=kind, adapter=lambda context, own: None)

    @pytest.mark.parametrize(
        ("change", "line"),
        [
            (lambda model: (model, None), r"Wrong\.change: given 'tuple'; accepted: a vectors\.adapters\.Change"),
            (lambda model: Change(model, edit_at("blocks/attn", jnp.ones((2, 1, 1, 32)))), "blocks/attn_out"),
        ],
    )
    def test_a_change_at_no_address_is_refused(self, change, line):
        """It would train nothing: all gradients were 0, and nobody said so."""

        class Wrong(Adapter):
            def read(self, params, frozen, queries, scale_L, key):
                return None

            def change(self, params, frozen, reading, q):
                return change(frozen["target"])

        with pytest.raises(UserError, match=line):
            over_prompts(Wrong(), print, None, {"target": Model({}, None)}, None, jnp.zeros((1, 2)), None)
