"""Tasks in files: every format gives the same pairs, one check refuses the rest, and no link out is followed."""

import csv
import json
import shutil
from pathlib import Path

import pytest

from tests.tasks.golden_data import make
from tvjax.errors import UserError
from tvjax.settings import build
from tvjax.tasks import folders
from tvjax.tasks.folders import Fields, read_folder
from tvjax.text.data import DataConfig

REAL = Path(__file__).parents[2].parent / "shared" / "data" / "function_vectors"
GOLDEN = Path(make.__file__).parent
FORMATS = ("json", "jsonl", "csv", "parquet", "saved")
CHOICES = {"input": "question", "output": "answer", "options": ("choices",)}


def write(folder, records, form="json", name="task"):
    """Records as a file of a format; a column is of what its values are. The path of the file."""
    path = folder / (name if form == "saved" else f"{name}.{form}")
    if form == "json":
        path.write_text(records if isinstance(records, str) else json.dumps(records))
    elif form == "jsonl":
        path.write_text("\n".join(map(json.dumps, records)) + "\n")
    elif form == "csv":
        with path.open("w", newline="") as file:
            rows = csv.DictWriter(file, list(records[0]))
            rows.writeheader()
            rows.writerows(records)
    else:
        arrow = pytest.importorskip("pyarrow.parquet")
        table = pytest.importorskip("pyarrow").Table.from_pylist(records)
        if form == "parquet":
            arrow.write_table(table, path)
        else:
            path.mkdir()
            saved(path, table)
    return path


def saved(folder, table, name="data.arrow"):
    """A table as `save_to_disk` lays it out."""
    arrow = pytest.importorskip("pyarrow")
    with arrow.ipc.new_stream(str(folder / name), table.schema) as stream:
        stream.write_table(table)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
    (folder / "dataset_info.json").write_text(json.dumps({"features": {}}))


def refused(folder, **options):
    """The line of the error."""
    with pytest.raises(UserError) as error:
        read_folder(folder, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


class TestPairs:
    def test_they_are_read_and_repetitions_dropped(self, tmp_path):
        pairs = [(" a ", "b"), ("x", "y"), ("a", "c"), ("a", "b\n")]
        write(tmp_path, [{"input": x, "output": y, "more": 1} for x, y in pairs])
        write(tmp_path, [{"input": "x", "output": "y"}], "csv", "other")
        tasks = read_folder(tmp_path)
        assert {name: task.pairs for name, task in tasks.items()} == {
            "other": (("x", "y"),),
            "task": (("a", "b"), ("x", "y"), ("a", "c")),
        }
        assert list(read_folder(tmp_path, ["task"])) == ["task"]
        assert read_folder(tmp_path, ["task"], most=1)["task"].pairs == (("a", "b"), ("a", "c"))

    @pytest.mark.parametrize("form", FORMATS)
    def test_every_format_gives_the_same(self, tmp_path, form):
        pairs = [('Été, "one"', "a\nb"), ("3.80", "  3.8 "), ("\u2028x", "null"), ("-1", "y")]
        path = write(tmp_path, [{"q": x, "rest": 7, "a": y} for x, y in pairs], form)
        fields = Fields(input="q", output="a")
        expected = tuple((x.strip(), y.strip()) for x, y in pairs)
        assert read_folder(tmp_path, fields=fields)["task"].pairs == expected
        assert read_folder(path, fields=fields)["task"].pairs == expected
        assert read_folder(path, fields=Fields("{q} / {a}", "{a}!"))["task"].pairs[3] == ("-1 / y", "y!")

    @pytest.mark.parametrize("form", FORMATS)
    @pytest.mark.skipif(not REAL.is_dir(), reason="the real task files are not here")
    def test_the_real_tasks_read(self, tmp_path, form):
        tasks = read_folder(REAL)
        assert len(tasks) >= 18 and dict(tasks["antonym"].pairs)["flawed"] == "perfect"
        for name in tasks:
            write(tmp_path, json.loads((REAL / f"{name}.json").read_text()), form, name)
        assert read_folder(tmp_path) == tasks

    def test_json_is_utf_8_with_or_without_a_mark(self, tmp_path):
        for form in ("json", "jsonl"):
            text = json.dumps({"input": "été", "output": "hiver"}, ensure_ascii=False)
            path, text = tmp_path / f"task.{form}", f"[{text}]" if form == "json" else text
            for encoding in ("utf-8", "utf-8-sig"):
                path.write_bytes(text.encode(encoding))
                assert read_folder(tmp_path)["task"].pairs == (("été", "hiver"),)
            for encoding in ("latin-1", "utf-16"):
                path.write_bytes(text.encode(encoding))
                assert f"task.{form}: not whole JSON" in refused(tmp_path)
            path.unlink()


class TestRefused:
    @pytest.mark.parametrize(
        ("value", "says"),
        [
            ("[", "not whole JSON"),
            ({"input": "a"}, "no list of pairs"),
            ([], "no list of pairs"),
            ([{"input": "a", "output": "b"}, {"input": "a"}], "record 1"),
            ([{"input": "a", "output": ["b"]}], "record 0"),
            ([{"input": "", "output": "b"}], "record 0"),
            (["a"], "record 0"),
            ([{"input": "a", "output": 3.80}], "record 0"),
            ([{"input": 7, "output": "b"}], "record 0"),
            ('[{"input": "a", "output": NaN}]', "record 0"),
            ([{"input": "a", "output": None}], "record 0"),
            ([{"input": "a", "output": "\ud800"}], "record 0"),
            ('[{"input": "a", "output": "b", "input": "c"}]', "stands twice"),
            ("[" * 100_000, "not whole JSON"),
        ],
    )
    def test_other_json_in_one_line(self, tmp_path, value, says):
        write(tmp_path, value)
        line = refused(tmp_path)
        assert says in line and "task.json" in line

    @pytest.mark.parametrize("form", FORMATS)
    @pytest.mark.parametrize("wrong", [None, " ", 3.8, 7, True, ["b"], {"text": "b"}], ids=repr)
    def test_every_format_by_the_same_check(self, tmp_path, form, wrong):
        """A null, a blank, a number, a truth value, a list, an object: the second record of each."""
        if form == "csv" and not (wrong is None or wrong == " "):
            pytest.skip("a cell of CSV is a text")
        records = [{"input": "a", "output": wrong}] * 2
        if form in ("json", "jsonl", "csv") or wrong in (None, " "):
            records[0] = {"input": "a", "output": "b"}
        path = write(tmp_path, records, form)
        line = refused(tmp_path)
        number = 1 if records[0] != records[1] else 0
        assert line.startswith(str(path)) and f": record {number}" in line
        assert "'output': given" in line and "accepted: a text that is not blank" in line

    @pytest.mark.parametrize("form", FORMATS)
    def test_a_record_without_the_field_names_those_that_there_are(self, tmp_path, form):
        write(tmp_path, [{"input": "a", "answer": "b"}], form)
        line = refused(tmp_path)
        assert "task" in line and "'output'" in line and "answer" in line and "config.data.fields" in line

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("input,output\na,b,c\n", "record 0 (line 2): given ['a', 'b', 'c']; accepted: 2 cells"),
            ("input,output\na,b\n\na\n", "record 1 (line 4): given ['a']"),
            ("input,output,input\na,b,c\n", "different names"),
            ('input,output\n"a"b,c\n', "task.csv: not whole CSV (line 2"),
            ('input,output\n"a,c\n', "task.csv: not whole CSV (line 2"),
            ("input,output\n" + "a" * 200_000 + ",b", "task.csv: not whole CSV (line 2"),
            ("input;output\na;b\n", "the columns of"),
            ("input,output\n", "no list of pairs"),
            ("", "config.data.fields.input"),
        ],
    )
    def test_other_csv(self, tmp_path, text, says):
        (tmp_path / "task.csv").write_text(text)
        assert says in refused(tmp_path)

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ('{"input": "a", "output": "b"}\n\n{"input": "a"', "not whole JSON lines (line 3"),
            ('{"input": "a", "output": "b"}\n\n7\n', "record 1 (line 3): given 7"),
            ('{"input": "a", "output": "b", "input": "c"}', "line 1: a name stands twice"),
            ("\n", "no list of pairs"),
        ],
    )
    def test_other_lines_of_json(self, tmp_path, text, says):
        (tmp_path / "task.jsonl").write_text(text)
        assert says in refused(tmp_path)

    def test_tables_that_are_cut_off(self, tmp_path):
        for form, name in (("parquet", "task.parquet"), ("saved", "task/data.arrow")):
            write(tmp_path, [{"input": str(n), "output": "b"} for n in range(100)], form)
            whole = (tmp_path / name).read_bytes()
            for length in (0, 3, len(whole) // 2, len(whole) - 8, len(whole) - 1):
                (tmp_path / name).write_bytes(whole[:length])
                assert f"not whole {'data set' if form == 'saved' else form}" in refused(tmp_path / name.split("/")[0])

    def test_what_is_not_there(self, tmp_path):
        assert "NAME.json" in refused(tmp_path)
        assert "NAME.json" in refused(tmp_path / "nowhere")
        (tmp_path / "task.txt").write_text("a b")
        assert "a file of another kind" in refused(tmp_path / "task.txt")
        write(tmp_path, [{"input": "a", "output": "b"}])
        assert "those of" in refused(tmp_path, names=["nowhere"])
        (tmp_path / ".task.csv").write_text("a hidden file is none of the user's")
        assert list(read_folder(tmp_path)) == ["task"]

    def test_two_files_of_one_task(self, tmp_path):
        for form in ("json", "csv"):
            write(tmp_path, [{"input": "a", "output": "b"}], form)
        write(tmp_path, [{"input": "a", "output": "b"}], name="other")
        assert "task.csv and task.json are one task" in refused(tmp_path)
        assert list(read_folder(tmp_path, ["other"])) == ["other"]

    def test_without_pyarrow_the_extra_is_named(self, tmp_path, monkeypatch):
        write(tmp_path, [{"input": "a", "output": "b"}], "parquet")
        write(tmp_path, [{"input": "a", "output": "b"}], name="plain")
        monkeypatch.setattr(folders.importlib.util, "find_spec", lambda name: None)
        assert "pip install 'tvjax[data]'" in refused(tmp_path, names=["task"])
        assert list(read_folder(tmp_path, ["plain"])) == ["plain"]


class TestLinks:
    @pytest.mark.parametrize("form", FORMATS)
    def test_none_out_of_the_folder_is_followed(self, tmp_path, form):
        (tmp_path / "far").mkdir()
        (tmp_path / "here").mkdir()
        path = write(tmp_path / "far", [{"input": "a", "output": "b"}], form)
        (tmp_path / "here" / path.name).symlink_to(path)
        assert f"has a link out of it, '{path.name}'" in refused(tmp_path / "here")
        write(tmp_path / "here", [{"input": "a", "output": "b"}], form, "own")
        (tmp_path / "here" / path.name).unlink()
        (tmp_path / "here" / path.name).symlink_to(path.name.replace("task", "own"))
        assert set(read_folder(tmp_path / "here")) == {"task", "own"}
        assert list(read_folder(path)) == ["task"]

    @pytest.mark.parametrize("file", ["../far.arrow", "/etc/passwd", "..", "", 7, None])
    def test_nor_a_path_of_a_data_set(self, tmp_path, file):
        path = write(tmp_path, [{"input": "a", "output": "b"}], "saved")
        shutil.copy(path / "data.arrow", tmp_path / "far.arrow")
        (path / "state.json").write_text(json.dumps({"_data_files": [{"filename": file}]}))
        assert "task" in refused(tmp_path)
        (path / "dataset_dict.json").write_text(json.dumps({"splits": [file]}))
        assert "task" in refused(tmp_path)

    @pytest.mark.parametrize("file", ["state.json", "dataset_info.json", "data.arrow"])
    def test_nor_a_link_in_a_data_set(self, tmp_path, file):
        path = write(tmp_path, [{"input": "a", "output": "b"}], "saved")
        (path / file).rename(tmp_path / "far")
        (path / file).symlink_to(tmp_path / "far")
        assert f"has a link out of it, '{file}'" in refused(path)


class TestDatasets:
    """What the library itself wrote."""

    @pytest.fixture(autouse=True)
    def _reader(self):
        pytest.importorskip("pyarrow")

    @pytest.mark.parametrize("path", [GOLDEN / "reviews", GOLDEN / "tables"], ids=lambda path: path.name)
    def test_a_class_label_is_its_name_and_records_without_one_are_counted(self, path):
        with pytest.warns(UserWarning, match="1 records have no label"):
            (task,) = read_folder(path, fields=Fields("text", "label")).values()
        read = {"reviews": (("a fine film", "good"), ("so dull", "bad"), ("no end of it", "bad"))}
        assert task.name == "reviews" and task.pairs == read.get(path.name, read["reviews"][2:])

    def test_all_shards_of_chosen_rows(self):
        task = read_folder(GOLDEN / "capitals", fields=Fields("country", "city"))["capitals"]
        assert task.pairs == tuple(pair for pair in make.CAPITALS if pair[1] != "none")

    def test_a_choice_of_rows_beside_them_is_refused(self, tmp_path):
        shutil.copytree(GOLDEN / "capitals", tmp_path / "capitals")
        path = tmp_path / "capitals" / "state.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "_indices_data_files": [{"filename": "i.arrow"}]}))
        assert "_indices_data_files" in refused(tmp_path, fields=Fields("country", "city"))

    @pytest.mark.parametrize("fields", [("answer", "choices"), ("answer", "labelled"), ("answerKey", "labelled")])
    def test_the_output_says_which_option(self, fields):
        task = read_folder(GOLDEN / "exam", fields=Fields("question", fields[0], fields[1:]))["exam"]
        assert task.pairs == (("1 + 1", "2"), ("2 + 2", "4"))

    def test_a_label_beyond_its_names_is_refused(self, tmp_path):
        shutil.copytree(GOLDEN / "reviews" / "train", tmp_path / "reviews")
        for names in (["bad"], None, "good", {}):
            features = {"label": {"_type": "ClassLabel", "names": names}}
            (tmp_path / "reviews" / "dataset_info.json").write_text(json.dumps({"features": features}))
            assert "record 0, 'label': given 1" in refused(tmp_path, fields=Fields("text", "label"))

    def test_the_library_still_writes_them_so(self, tmp_path):
        pytest.importorskip("datasets")
        make.write(tmp_path)
        for name, fields in (("capitals", Fields("country", "city")), ("exam", Fields("question", "answerKey"))):
            assert read_folder(tmp_path / name, fields=fields) == read_folder(GOLDEN / name, fields=fields)


class TestOptions:
    @pytest.mark.parametrize("output", ["Paris", "B", 1])
    def test_by_text_by_label_or_by_place(self, tmp_path, output):
        one = {"question": "France", "answer": output}
        write(tmp_path, [{**one, "choices": {"label": ["A", "B"], "text": ["Rome", " Paris"]}}], name="labels")
        write(tmp_path, [{**one, "A": "Rome", "B": "Paris"}], name="columns")
        asked = ["labels"], Fields(**CHOICES)
        assert read_folder(tmp_path, *asked)["labels"].pairs == (("France", "Paris"),)
        fields = Fields("{question} ({A}, {B})", "answer", ("A", "B"))
        assert read_folder(tmp_path, ["columns"], fields)["columns"].pairs == (("France (Rome, Paris)", "Paris"),)

    @pytest.mark.parametrize(
        ("choices", "output"),
        [
            (["a", "b"], "c"),
            (["a", "b"], 2),
            (["a", "b"], -1),
            (["a", "b"], True),
            (["a", "b"], None),
            (["a", 7], "a"),
            (["a", " "], "a"),
            ([], 0),
            ("ab", "a"),
            (None, "a"),
            ({"text": ["a", "b"]}, "a"),
            ({"label": ["A"], "text": ["a", "b"]}, "a"),
            ({"label": [1, 0], "text": ["a", "b"]}, 0),
            ({"label": ["A", "B"], "text": ["B", "A"]}, "A"),
        ],
    )
    def test_what_says_none_or_two_is_refused(self, tmp_path, choices, output):
        write(tmp_path, [{"question": "q", "choices": choices, "answer": output}], "jsonl")
        line = refused(tmp_path, fields=Fields(**CHOICES))
        assert "task.jsonl: record 0 (line 1), '" in line and "accepted: " in line


class TestConfig:
    def test_the_fields_of_a_config(self, tmp_path):
        write(
            tmp_path,
            [{"question": "q", "choices": ["a", "b"], "answer": 1}, {"question": "r", "choices": ["c"], "answer": 0}],
        )
        values = {"path": str(tmp_path), "fields": {**CHOICES, "options": ["choices"]}, "most": 1}
        assert build(DataConfig, values, "config.data").read()["task"].pairs == (("q", "b"),)

    @pytest.mark.parametrize(
        ("fields", "says"),
        [
            ({"input": ""}, "config.data.fields.input"),
            ({"input": "x {"}, "a format string"),
            ({"output": "{a!r}"}, "without a format"),
            ({"output": "{}"}, "without a format"),
            ({"output": "{{a}}"}, "a text with fields in braces"),
            ({"options": ["a", "a"]}, "names of different fields"),
            ({"options": ["a"], "output": "{a} {b}"}, "one field"),
            ({"optoins": ["a"]}, "did you mean 'options'"),
        ],
    )
    def test_other_fields_are_refused(self, fields, says):
        with pytest.raises(UserError) as error:
            build(DataConfig, {"path": "tasks", "fields": fields}, "config.data")
        assert says in str(error.value)

    def test_without_a_folder_they_would_change_nothing(self):
        with pytest.raises(UserError, match=r"only where config\.data\.path is given"):
            DataConfig(fields=Fields("question")).read()
