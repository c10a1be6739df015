"""The door of a notebook: what is no model is refused with the way to one, and what is shown is short."""

import shutil

import jax.numpy as jnp
import numpy as np
import pytest

import tvjax
from tests.nn.golden import GOLDEN
from tvjax.errors import UserError
from tvjax.nn.tokens import pad

GPT2 = GOLDEN / "gpt2"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current and the home folder, with a model, a file, an empty folder and runs that hold none."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(GPT2, tmp_path / "gpt2_small")
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    for name, config in (
        ("odd", '{"a": 1}'),
        ("typo", '{"experiment": "tpv"}'),
        ("other", '{"experiment": "text_model"}'),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(config)
    shutil.copytree(GPT2, tmp_path / "other" / "model")
    return tmp_path


@pytest.mark.parametrize(
    ("path", "options", "parts"),
    [
        ("gpt2", {}, ("gpt2: no such folder", "save_pretrained", "snapshot_download")),
        ("gpt2_smal", {}, ("no such folder", "did you mean 'gpt2_small'?")),
        ("file", {}, ("file: a file", "save_pretrained")),
        ("empty", {}, ("empty/config.json: missing", "save_pretrained")),
        ("odd", {}, ("odd/config.json", "neither model_type nor experiment")),
        ("typo", {}, ("config.experiment: given 'tpv'", "--plugins=MODULE", "did you mean 'tvp'?")),
        ("other", {}, ("a run of text_model", "other/model")),
        ("~/nothing", {}, ("~/nothing: no such folder",)),
        ("~no-such-user/a", {}, ("path: given '~no-such-user/a'", "home folder")),
        ("a" * 300, {}, ("no such folder",)),
        ("a\0b", {}, ("path: given",)),
        (None, {}, ("path: given None",)),
        ("gpt2_small", {"member": "tvp"}, ("member: given 'tvp'", "one model")),
        ("gpt2_small", {"dtype": "blfoat16"}, ("dtype: given 'blfoat16'", "did you mean 'bfloat16'?")),
        ("gpt2_small", {"dtype": object}, ("dtype: given", "float32")),
        ("gpt2_small", {"dtype": jnp.int32}, ("dtype: given 'int32'", "float32")),
    ],
)
def test_what_is_no_model_is_refused_with_the_way_to_one(path, options, parts, folder):
    with pytest.raises(UserError) as caught:
        tvjax.load(path, **options)
    line = str(caught.value)
    assert "\n" not in line and all(part in line for part in parts), line


@pytest.mark.parametrize("option", [{"dtype": "bfloat16"}, {"unroll": 1}], ids=str)
def test_a_run_is_not_loaded_otherwise_than_it_was_trained(option, folder):
    (folder / "run").mkdir()
    (folder / "run" / "config.json").write_text('{"experiment": "tvp"}')
    with pytest.raises(UserError, match=f"^{next(iter(option))}: given .* for a run"):
        tvjax.load("run", **option)


@pytest.mark.parametrize("dtype", ["bfloat16", jnp.bfloat16, np.dtype("bfloat16")])
def test_a_dtype_is_a_name_or_a_dtype(dtype, folder):
    assert tvjax.load("~/gpt2_small", dtype=dtype).config.dtype == "bfloat16"


def test_layers_are_rolled_up_unless_more_is_asked_for(folder):
    assert tvjax.load("gpt2_small").config.unroll == 1
    assert tvjax.load("gpt2_small", unroll=0).config.unroll == 0


def test_export_takes_the_home_folder_and_no_file(folder):
    model = tvjax.load("gpt2_small")
    tvjax.export(model, "~/exported")
    assert (folder / "exported" / "config.json").is_file()
    with pytest.raises(UserError, match=r"^path: given 'file'"):
        tvjax.export(model, "file")


def test_the_package_lists_what_it_offers():
    assert set(tvjax.__all__) < set(dir(tvjax))
    assert all(hasattr(tvjax, name) for name in dir(tvjax))
    with pytest.raises(AttributeError, match="did you mean 'capture'"):
        tvjax.captur  # noqa: B018


def test_what_a_notebook_shows_is_short():
    model = tvjax.load(GPT2, unroll=1)
    shown = repr(model)
    assert len(shown.splitlines()) <= 4 and len(shown) < 500
    assert "11,920 parameters in float32" in shown and str(GPT2) in shown and "3 layers" in shown
    tokens = pad([[1, 2], [3]])
    made = tvjax.generate(model, tokens, max_new_tokens=2, addresses=["blocks/resid"])
    for value in (tokens, made, tvjax.replace(jnp.zeros(16), layers=[1, 2]), tvjax.load(GPT2).config):
        assert len(repr(value)) < 1000 and "0., 0." not in repr(value)
    assert repr(tokens) == "Tokens(ids_BT=int32[2, 2], valid_BT=bool[2, 2])"
    assert "layers=(1, 2)" in repr(tvjax.replace(jnp.zeros(16), layers=[1, 2]))
