"""The way a path is taken everywhere, and what JSON that cannot be read ends in; the nearest name."""

from pathlib import Path

import pytest

from tvjax.errors import UserError, near, one_of, reject
from tvjax.experiments import rundir
from tvjax.files import nearest_beside, read_json, user_path
from tvjax.nn.pretrained.shapes import shape_of
from tvjax.remote import here
from tvjax.text.data import DataConfig


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_a_tilde_is_the_home_folder(home):
    assert user_path("~") == home
    assert user_path("~/a/b") == home / "a" / "b"
    assert user_path(Path("~/a")) == home / "a"
    assert user_path("~root/a") == Path("/root/a")
    assert user_path("a/~/b") == Path("a/~/b") and user_path("./~a") == Path("./~a")
    assert here("~/run") == home / "run"


@pytest.mark.parametrize("path", ["~no-such-user", "~no-such-user/a", "a\0b", "", 3, None, b"a"])
def test_what_no_path_can_be_is_refused_by_its_field(path):
    with pytest.raises(UserError, match=r"^config\.data\.path: given "):
        user_path(path, "config.data.path")


def test_a_tilde_in_a_config_is_the_home_folder(home):
    (home / "tasks").mkdir()
    (home / "tasks" / "one.json").write_text('[{"input": "a", "output": "b"}]')
    assert DataConfig(path="~/tasks").read()["one"].pairs == (("a", "b"),)
    (home / "gpt2").mkdir()
    (home / "gpt2" / "config.json").write_text('{"model_type": "gpt2", "vocab_size": "wide"}')
    with pytest.raises(UserError, match="vocab_size: given 'wide'"):
        shape_of("~/gpt2", "config.target.path")


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1]", b"null", b"\xff", b"\0", b'{"a": ' + b"9" * 5000 + b"}", b'{"a":' * 10**5]
)
def test_json_that_cannot_be_read_is_one_line(content, tmp_path):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.json: .*; do this"):
        read_json(tmp_path / "a.json", "do this")


@pytest.mark.parametrize(("content", "line"), [('{"earlier": 3}', "earlier: given 3"), ('{"a": NaN}', "JSON has not")])
def test_an_environment_that_no_run_wrote_is_refused(content, line, tmp_path):
    config = {"mesh": {}, "any": 1}
    rundir.prepare(tmp_path, config, new=True)
    (tmp_path / "environment.json").write_text(content)
    with pytest.raises(UserError, match=rf"environment\.json: .*{line}"):
        rundir.prepare(tmp_path, config, new=True)


@pytest.mark.parametrize(
    ("given", "accepted", "name"),
    [
        ("sinusiod", "linear, sinusoid, quadratic", "sinusoid"),
        ("linaer", one_of(["sinusoid", "linear"]), "linear"),
        ("LINEAR", "one of linear, sinusoid", "linear"),
        ("float", "float32 or bfloat16", "float32"),
        ("repalce", "'replace' or 'add'", "replace"),
        ("lst", "'all', 'last', or indices", "last"),
        ("blocks/resd", "one of embed, blocks/resid, blocks/attn_out", "blocks/resid"),
        ("cuont", "those of the built-in suite: count, letters", "count"),
    ],
)
def test_a_name_that_is_nearly_right_is_said(given, accepted, name):
    assert str(reject("field", given, accepted)).endswith(f"; did you mean {name!r}?")


@pytest.mark.parametrize(
    ("given", "accepted"),
    [
        ("zzz", "linear, sinusoid"),
        (3, "linear, 3"),
        ("mre", "1 or more"),
        ("number", "a number, 0 or more"),
        ("a", "b"),
    ],
)
def test_no_name_is_made_up(given, accepted):
    assert "did you mean" not in str(reject("field", given, accepted))


def test_an_unknown_field_gets_the_nearest_field():
    line = str(reject("config.model.widht", "width", "no such field; the fields are height, width"))
    assert line.endswith("did you mean 'width'?")
    assert near("width", ["width", "with"]) == ""


def test_what_was_given_is_not_repeated_without_end():
    assert len(str(reject("field", "9" * 10**5, "a number"))) < 500


def test_the_nearest_file_beside_is_said(tmp_path):
    (tmp_path / "llama3").mkdir()
    assert nearest_beside(tmp_path / "lama3") == f"; did you mean '{tmp_path}/llama3'?"
    assert nearest_beside(tmp_path / "zzz") == "" == nearest_beside(tmp_path / "none" / "llama3")
