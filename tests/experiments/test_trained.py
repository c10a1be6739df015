"""What must hold of a model that was really trained: token offset with the TVP-loss at layer 2 of 4."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.conftest import SMALL, changed
from tvjax.evals.measure import Measure
from tvjax.experiments.tvp.settings import TVPSettings
from tvjax.experiments.tvp.training import make_trainer
from tvjax.nn.model import Model
from tvjax.tasks import NO_SHIFT
from tvjax.vectors import tvp

pytestmark = pytest.mark.slow
L, PRESCRIBED, STEPS = 4, 2, 1000


@pytest.fixture(scope="module")
def trained():
    config = changed(
        SMALL,
        task={"name": "token_offset"},
        model={"num_layers": L, "width": 64, "num_heads": 2, "max_positions": 32},
        population__name=("tvp",),
        population__tvp_weight=(1.0,),
        prompt__demonstrations=8,
        train={"batch": 32, "steps": STEPS, "log_every": 100, "evaluate_every": STEPS, "checkpoint_every": STEPS},
        optimizer__warmup_steps=200,
        optimizer__b2=0.99,
    )
    settings = TVPSettings.from_config(config)
    trainer = make_trainer(settings)
    with jax.set_mesh(trainer.mesh):
        init, dispatch, _ = trainer.compile()
        state = init(trainer.hyper, {})
        for _ in range(STEPS // 100):
            state, _ = dispatch(state, {}, trainer.hyper)
    return settings, jax.device_get(state.params)


@pytest.fixture(scope="module")
def entry(trained):
    s, params = trained
    found, _ = Measure(
        Model(params, s.decoder), s.task, s.layout, s.prompt.demonstrations, edit="replace", prompts=512, seed=7
    )(NO_SHIFT)
    return found | found["members"][0]


def test_the_vector_stands_at_the_prescribed_layer_and_nowhere_else(entry):
    accuracy = entry["tvp_accuracy_by_layer"]
    assert accuracy[PRESCRIBED] >= 0.9, accuracy
    assert max(a for layer, a in enumerate(accuracy) if layer != PRESCRIBED) <= 0.5, accuracy
    assert entry["icl_accuracy"][-1] >= 0.9


def test_the_ends_of_the_stream_are_no_better_than_the_prior(entry):
    """Layer 0 carries no task and layer L cannot see x': whatever was learned, their risk is at least the prior's."""
    for layer in (0, L):
        assert entry["tvp_risk_by_layer"][layer] >= 0.98 * entry["prior_risk"]
    assert entry["zero_shot_risk"] >= 0.98 * entry["prior_risk"]


def test_swapped_vectors_answer_for_the_task_they_were_made_from(trained):
    """Theta of task A asked with x' gives A's answer, not that of the task B in whose prompt x' came."""
    s, params = trained
    member = Model(jax.tree.map(lambda p: p[0], params), s.decoder)
    made = s.task.sample(jax.random.key(1), 256, s.prompt.demonstrations, s.layout)
    from_b = s.task.sample(jax.random.key(2), 256, s.prompt.demonstrations, s.layout)
    x = from_b.x[:, -1]
    _, theta = tvp.run_prompt(member, made)
    out = tvp.prompt_with(member, s.task, s.layout, theta[PRESCRIBED, :, -1], PRESCRIBED, x)
    answers_a = s.task.answers(jax.random.key(3), made.parameters, x[:, None])[:, 0]
    answers_b = s.task.answers(jax.random.key(3), from_b.parameters, x[:, None])[:, 0]
    shown = s.task.shown()[np.asarray(made.parameters["c"]), np.asarray(x)]
    differ = shown & np.asarray(answers_a != answers_b)
    said = np.asarray(jnp.argmax(out, -1))
    assert differ.mean() > 0.6
    assert (said == np.asarray(answers_a))[differ].mean() >= 0.9
    assert (said == np.asarray(answers_b))[differ].mean() <= 0.05
