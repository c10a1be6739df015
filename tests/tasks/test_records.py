"""Text tasks and tensorflow-datasets: what is kept comes back, and data sets are read as tasks."""

import sys

import numpy as np
import pytest

from tvjax.errors import UserError
from tvjax.tasks import records
from tvjax.tasks.suite import suite
from tvjax.tasks.text import SPLITS, TextTask, split_of

tfds = pytest.importorskip("tensorflow_datasets")


class Reviews(tfds.core.GeneratorBasedBuilder):
    """A data set as others write them: a class label, an unlabelled split, repetitions."""

    name = "tvjax_reviews"
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {"text": tfds.features.Text(), "label": tfds.features.ClassLabel(names=["bad", "good"])}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, manager):
        return {"train": self._generate_examples(0, 20), "test": self._generate_examples(15, 25, labelled=False)}

    def _generate_examples(self, start, stop, labelled=True):
        for n in range(start, stop):
            yield n, {"text": f" review {n % 12} ", "label": n % 2 if labelled else -1}


KINDS = {
    "single": (tfds.features.Scalar(np.float32), [3.8, 5.0, -0.1, 1e-10, 16777216.0, 1 / 3], []),
    "half": (tfds.features.Scalar(np.float16), [3.8, 5.0, 1e-4], []),
    "double": (tfds.features.Scalar(np.float64), [3.8, 0.1, 5.0], []),
    "count": (tfds.features.Scalar(np.int64), [7, -1, 2**40], []),
    "truth": (tfds.features.Scalar(np.bool_), [True, False], []),
    "tensor": (tfds.features.Tensor(shape=(), dtype=np.float32), [3.8], []),
    "words": (tfds.features.Text(), ["Été", "a\nb"], ["", " \n", b"\xff"]),
    "answers": (tfds.features.Sequence(tfds.features.Text()), [["a plane", "one plane"]], [[], ["a", " "]]),
    "labels": (tfds.features.Sequence(tfds.features.ClassLabel(names=["bad", "good"])), [["good", "bad"]], []),
    "numbers": (tfds.features.Sequence(np.int32), [], [[1, 2], []]),
    "many": (tfds.features.Tensor(shape=(2,), dtype=np.float32), [], [[1.0, 2.0]]),
    "lost": (tfds.features.Scalar(np.float32), [], [float("nan"), float("inf")]),
    "nested": (tfds.features.FeaturesDict({"a": tfds.features.Text()}), [], [{"a": "b"}]),
}
EXPECTED = {
    "single": ["3.8", "5.0", "-0.1", "1e-10", "16777216.0", "0.33333334"],
    "half": ["3.8", "5.0", "0.0001"],
    "double": ["3.8", "0.1", "5.0"],
    "count": ["7", "-1", "1099511627776"],
    "truth": ["True", "False"],
    "tensor": ["3.8"],
    "words": ["Été", "a\nb"],
    "answers": ["a plane", "one plane"],
    "labels": ["good", "bad"],
}


class Kinds(tfds.core.GeneratorBasedBuilder):
    """One feature of each kind; the second record of split N is the Nth value that is wrong."""

    name = "tvjax_kinds"
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [  # noqa: RUF012
        tfds.core.BuilderConfig(name=f"{kind}_{'good' if number < 0 else number}")
        for kind, (_, _, wrong) in KINDS.items()
        for number in range(-1, len(wrong))
    ]

    def _info(self):
        kind = self.builder_config.name.rpartition("_")[0]
        features = {"number": tfds.features.Scalar(np.int64), "value": KINDS[kind][0]}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        kind, _, which = self.builder_config.name.rpartition("_")
        _, right, wrong = KINDS[kind]
        for number, value in enumerate(right if which == "good" else [*right[:1], wrong[int(which)]]):
            yield number, {"number": number, "value": value}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    Reviews(data_dir=str(folder), file_format="array_record").download_and_prepare()
    return str(folder)


def read_kind(kind, folder, shown="n {number}", said="{value}"):
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    made = Kinds(config=kind, data_dir=folder, file_format="array_record")
    made.download_and_prepare(download_config=config)
    return records.read_dataset(f"tvjax_kinds/{kind}", shown, said, data_dir=folder).pairs


class TestKept:
    def test_tasks_come_back_in_their_order(self, tmp_path):
        tasks = {name: suite()[name] for name in ("uppercase", "next_letter")}
        records.keep(tasks, tmp_path)
        again = records.kept(tmp_path)
        assert again == tasks and list(again) == list(tasks)
        assert "tensorflow" not in sys.modules

    def test_its_files_are_array_records_of_the_splits(self, tmp_path):
        task = TextTask("words", tuple((f"word {n}", "é\n") for n in range(40)))
        records.keep({"words": task}, tmp_path)
        builder = tfds.builder_from_directory(str(tmp_path / "text_tasks" / "1.0.0"))
        assert builder.info.file_format.value == "array_record"
        sources = builder.as_data_source()
        for split in SPLITS:
            assert {e["input"].decode() for e in sources[split]} == {x for x, _ in task.split(split)}
            assert all(split_of(e["input"].decode()) == split for e in sources[split])
        assert records.kept(tmp_path) == {"words": task}

    def test_all_answers_come_back(self, tmp_path):
        task = TextTask("next", (("may", "june"), ("a", "b"), ("may", "might")))
        records.keep({"next": task}, tmp_path)
        assert records.kept(tmp_path) == {"next": task}

    def test_nothing_there_is_none_and_a_broken_one_is_refused(self, tmp_path):
        assert records.kept(tmp_path) is None
        records.keep({"up": suite()["uppercase"]}, tmp_path)
        for file in (tmp_path / "text_tasks" / "1.0.0").glob("*train*"):
            file.write_bytes(file.read_bytes()[:100])
        with pytest.raises(UserError, match="not a whole data set"):
            records.kept(tmp_path)


class TestValues:
    @pytest.mark.parametrize("kind", EXPECTED)
    def test_they_are_spelled_as_they_were_written(self, kind, folder):
        pairs = read_kind(f"{kind}_good", folder)  # in an order of the library's own
        assert [y for _, y in sorted(pairs, key=lambda pair: int(pair[0].removeprefix("n ")))] == EXPECTED[kind]

    @pytest.mark.parametrize("kind", ["answers", "labels"])
    def test_each_of_a_list_of_texts_or_labels_is_a_right_answer(self, kind, folder):
        assert read_kind(f"{kind}_good", folder) == tuple(("n 0", answer) for answer in EXPECTED[kind])
        with pytest.raises(UserError, match=r"\{value\} = .* in record 0 of split train"):
            read_kind(f"{kind}_good", folder, "{value}", "{number}")

    @pytest.mark.parametrize(
        "kind", [f"{kind}_{n}" for kind, (_, _, wrong) in KINDS.items() for n in range(len(wrong))]
    )
    def test_others_are_refused_by_their_record(self, kind, folder):
        """10 cases: of a list, a dict, nothing, no number."""
        good = len(KINDS[kind.rpartition("_")[0]][1][:1])
        with pytest.raises(UserError) as error:
            read_kind(kind, folder)
        assert f"in record {good} of split train of tvjax_kinds/{kind}" in str(error.value)
        assert "{value} =" in str(error.value) and "\n" not in str(error.value)

    def test_examples_without_a_label_are_counted(self, folder):
        with pytest.warns(UserWarning, match="10 examples have no label"):
            records.read_dataset("tvjax_reviews", "{text}", "{label}", data_dir=folder)


class TestByName:
    def test_a_data_set_is_a_task(self, folder):
        task = records.read_dataset("tvjax_reviews", "It says: {text}", "{label}", data_dir=folder)
        expected = {(f"It says:  review {n}", ("bad", "good")[n % 2]) for n in range(12)}
        assert set(task.pairs) == expected and len(task.pairs) == 12
        assert task.name == "tvjax_reviews"

    def test_only_as_many_as_are_asked_for(self, folder):
        task = records.read_dataset("tvjax_reviews:1.0.0", "{text}", "{label}", data_dir=folder, most=5)
        assert len(task.pairs) == 5

    @pytest.mark.parametrize(
        ("name", "shown", "said", "says"),
        [
            ("tvjax_nowhere", "{text}", "{label}", "a data set that can be read"),
            ("tvjax_reviews", "{txt}", "{label}", "in braces: text, label"),
            ("tvjax_reviews", "text", "{label}", "at least one feature"),
            ("tvjax_reviews", "{text", "{label}", "a format string"),
            ("tvjax_reviews", "{text.__class__}", "{label}", "in braces: text, label"),
            ("tvjax_reviews", "{text:.3}", "{label}", "without a format"),
            ("tvjax_reviews", "{text!r}", "{label}", "without a format"),
        ],
    )
    def test_what_is_not_there_is_refused(self, folder, name, shown, said, says):
        with pytest.raises(UserError) as error:
            records.read_dataset(name, shown, said, data_dir=folder)
        assert says in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(("name", "expected"), [("glue/sst2:2.0.0", "glue_sst2"), ("ag_news", "ag_news")])
def test_names_of_data_sets_are_names_of_files(name, expected):
    assert records.task_name(name) == expected


def test_without_the_library_it_says_so(monkeypatch):
    monkeypatch.setattr(records, "available", lambda: False)
    with pytest.raises(UserError, match="tensorflow-datasets: not installed"):
        records.read_dataset("glue/sst2", "{sentence}", "{label}")
