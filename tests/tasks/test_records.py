"""Text tasks and tensorflow-datasets: what is kept comes back, and data sets are read as tasks."""

import sys

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


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    Reviews(data_dir=str(folder), file_format="array_record").download_and_prepare()
    return str(folder)


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

    def test_nothing_there_is_none_and_a_broken_one_is_refused(self, tmp_path):
        assert records.kept(tmp_path) is None
        records.keep({"up": suite()["uppercase"]}, tmp_path)
        for file in (tmp_path / "text_tasks" / "1.0.0").glob("*train*"):
            file.write_bytes(file.read_bytes()[:100])
        with pytest.raises(UserError, match="not a whole data set"):
            records.kept(tmp_path)


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
