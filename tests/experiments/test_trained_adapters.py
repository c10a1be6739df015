"""LoRA and a prefix that an ATV run has trained leave it: for a notebook, and as folders of peft."""

import jax
import numpy as np
import pytest

import tvjax
from tests.conftest import changed
from tests.experiments.test_atv import CONFIG, model_folder
from tvjax.errors import UserError
from tvjax.experiments.atv import run as atv
from tvjax.methods.lora import LoRA
from tvjax.methods.prefix import Prefix
from tvjax.nn.answers import questions
from tvjax.nn.model import forward


@pytest.mark.slow
def test_what_a_run_has_trained_travels(tmp_path):
    config = changed(
        CONFIG,
        target__path=model_folder(tmp_path / "target", 32, 2, 0),
        methods=("zero_shot", "lora", "prefix"),
        generator={"kind": "target"},
        lora={"rank": 2},
        prefix={"length": 3},
        templates=CONFIG["templates"][:1],
        train__steps=10,
        train__evaluate_every=10,
        train__seeds=(0, 1),
    )
    atv.run(config, tmp_path / "run", "train", lambda line: None)
    model = tvjax.load(tmp_path / "target")
    prompts = ["hot ->", "tall ->"]
    q = questions(model.source.tokenizer, prompts, [" a", " b"])
    for method, adapter in (("lora", LoRA(model.config, 2)), ("prefix", Prefix(model.config))):
        params = tvjax.trained(model, tmp_path / "run", method)
        change = adapter.change(params, {"target": model.bare}, None, q)
        ids, positions_BT = q.tokens.ids_BT, q.tokens.positions_BT
        expected = forward(change.model, ids, positions_BT=positions_BT, past=change.past)[0]
        tvjax.export_adapter(tmp_path / method, params, model)
        adapted = tvjax.load_adapter(tmp_path / method, model)
        logits = tvjax.run(adapted.model, q.tokens, prefix=adapted.prefix)
        there = np.asarray(q.tokens.valid_BT)
        np.testing.assert_allclose(np.asarray(logits)[there], np.asarray(expected)[there], atol=1e-5, rtol=0)
        assert np.abs(logits - tvjax.run(model, q.tokens))[there].max() > 1e-3
        made = adapted.lora or adapted.prefix
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), made, params)
    with pytest.raises(UserError, match="method: given 'zero_shot'; accepted: lora, prefix"):
        tvjax.trained(model, tmp_path / "run", "zero_shot")
    with pytest.raises(UserError, match=r"run_dir: given|accepted: the workdir of an ATV run"):
        tvjax.trained(model, tmp_path / "target", "lora")
