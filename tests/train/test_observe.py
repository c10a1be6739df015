"""What rows say of time, speed and loss; what is counted as a floating point operation; the trace of chosen steps."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import pytest

from tests.conftest import quiet
from tvjax.parallel.hardware import CHIPS
from tvjax.parallel.mesh import make_mesh
from tvjax.train import observe
from tvjax.train.flops import flops, total
from tvjax.train.log import read_rows
from tvjax.train.loop import Trainer
from tvjax.train.observe import WALL_CLOCK, Meter, ideal_seconds, process_seconds
from tvjax.train.profile import Trace, tracing
from tvjax.train.state import OptimizerConfig, TrainConfig

CONFIG = TrainConfig(steps=20, log_every=5, evaluate_every=10, checkpoint_every=10, tensorboard=False)
GAINED = {"seconds", "steps_per_second", "step_seconds", "examples_per_second"}
LOST = {"save_seconds", "restarts", "restart_seconds", "repeated_steps"}


class Product:
    """A kernel of 4 x 8, times a batch of 3 rows."""

    batch = 3

    def init(self, key, data):
        return {"kernel": jax.random.normal(key, (4, 8))}

    def data(self):
        return {}

    def loss(self, params, data, key, step, hyper):
        loss = jnp.square(jax.random.normal(key, (self.batch, 4)) @ params["kernel"]).mean()
        return loss, {"risk": loss}

    def evaluate(self, params, data, key, hyper):
        return {"risk": jnp.square(params["kernel"]).mean()}


def trainer(**more) -> Trainer:
    hyper = {"seed": jnp.arange(2), "learning_rate": jnp.full(2, 1e-2)}
    config = dataclasses.replace(CONFIG, **more)
    return Trainer(Product(), config, OptimizerConfig(), make_mesh(), ("a", "b"), hyper, jax.random.key(0))


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The folder of a run of two members, with a trace of steps 7 to 12."""
    folder = tmp_path_factory.mktemp("observed")
    with tracing(Trace(7, 12, folder / "profile")):
        trainer().run(folder, quiet)
    return folder


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(observe.time, "monotonic", lambda: self.now)

    def meter(self, before=None, start=0, **more) -> Meter:
        more = {"steps": 5, "examples": 6, "flops": dict, "mesh": make_mesh()} | more
        return Meter(start, before or {}, **more)

    def dispatch(self, meter: Meter, step: int, seconds: float) -> None:
        """One that ends with `step` and takes so long."""
        meter.dispatched(step)
        self.now += seconds
        meter.ended(step)


@pytest.fixture
def clock(monkeypatch) -> Clock:
    return Clock(monkeypatch)


class TestTime:
    def test_a_dispatch_that_waited_for_another_begins_when_that_ends(self, clock):
        meter = clock.meter()
        meter.dispatched(5)
        clock.now += 0.25
        meter.dispatched(10)
        clock.now += 2.25
        meter.ended(5)
        assert meter.fields(5)["step_seconds"] == 2.5 / 5
        clock.now += 1
        meter.ended(10)
        assert meter.fields(10)["step_seconds"] == 1 / 5
        assert meter.fields(10)["examples_per_second"] == 6 * 5

    def test_what_lies_between_two_dispatches_is_in_neither(self, clock):
        meter = clock.meter()
        clock.dispatch(meter, 5, seconds=2)
        clock.now += 60
        clock.dispatch(meter, 10, seconds=4)
        found = meter.fields(10)
        assert found["step_seconds"] == 4 / 5
        assert found["seconds"] == 66 and found["steps_per_second"] == pytest.approx(10 / 66, rel=1e-5)

    def test_an_end_that_was_seen_before_counts_from_then(self, clock):
        """As where a program runs while it is asked for, and its row is written after the next one."""
        meter = clock.meter()
        clock.dispatch(meter, 5, seconds=2)
        clock.dispatch(meter, 10, seconds=4)
        meter.ended(5)
        assert meter.fields(5)["step_seconds"] == 4 / 5

    def test_before_the_first_dispatch_there_is_no_speed(self, clock):
        meter = clock.meter()
        clock.now += 1
        assert not {"step_seconds", "examples_per_second"} & set(meter.fields(0))

    def test_a_process_is_as_old_as_its_start(self):
        assert 0 < process_seconds() < 86_400


class TestLost:
    def test_a_new_run_has_lost_nothing(self, clock):
        meter = clock.meter()
        clock.now += 1
        found = meter.fields(0)
        assert {name: found[name] for name in LOST} == dict.fromkeys(LOST, 0)

    def test_saves_and_restarts_add_to_what_the_process_before_had_lost(self, clock, monkeypatch):
        monkeypatch.setattr(observe, "process_seconds", lambda: 30.0)
        before = {"step": 35, "save_seconds": 4.0, "restarts": 1, "restart_seconds": 10.0, "repeated_steps": 5}
        meter = clock.meter(before, start=20)
        clock.dispatch(meter, 25, seconds=2)
        with meter.saving():
            clock.now += 3
        clock.now += 1
        clock.dispatch(meter, 30, seconds=0)
        found = meter.fields(30)
        assert {name: found[name] for name in LOST} == {
            "save_seconds": 7.0,
            "restarts": 2,
            "restart_seconds": 10.0 + 30.0 - 2.0,
            "repeated_steps": 5 + 15,
        }

    def test_a_run_that_goes_on_counts_what_it_repeats(self, ran, tmp_path):
        shutil.copytree(ran, tmp_path / "run")
        shutil.rmtree(tmp_path / "run" / "checkpoints" / "20")
        trainer().run(tmp_path / "run", quiet)
        rows = read_rows(tmp_path / "run" / "metrics.jsonl")
        assert [row["restarts"] for row in rows[-2:]] == [1, 1]
        assert rows[-1]["repeated_steps"] == 10 and rows[-1]["restart_seconds"] > 0
        assert rows[-1]["save_seconds"] > 0


class TestUtilization:
    def test_it_is_the_time_that_the_chip_needs_at_its_peak_over_the_time_taken(self, clock, monkeypatch):
        chip = dataclasses.replace(CHIPS["h100"], flops={"bfloat16": 200.0, "float32": 100.0})
        monkeypatch.setattr(observe, "chip_of", lambda kind: chip)
        meter = clock.meter(flops=lambda: {"bfloat16": 400, "float32": 300}, mesh=make_mesh(data=2))
        clock.dispatch(meter, 5, seconds=10)
        assert meter.fields(5)["flops_utilization"] == (400 / 200 + 300 / 100) / 2 / 10

    def test_a_dtype_that_the_table_does_not_have_counts_as_float32(self):
        assert ideal_seconds({"float64": 50}, dataclasses.replace(CHIPS["h100"], flops={"float32": 100.0}), 1) == 0.5

    def test_where_the_chip_is_known_it_is_in_the_rows(self, tmp_path, monkeypatch):
        monkeypatch.setattr(observe, "chip_of", lambda kind: CHIPS["h100"])
        trainer(steps=5).run(tmp_path, quiet)
        row = read_rows(tmp_path / "metrics.jsonl")[-1]
        # 2 members, 5 steps, forward and for the gradient of the kernel; the inputs need none.
        ideal = 2 * 5 * 2 * (2 * 3 * 4 * 8) / CHIPS["h100"].flops["float32"]
        assert row["flops_utilization"] == pytest.approx(ideal / (5 * row["step_seconds"]), rel=1e-4)


class TestFlops:
    x, w = jnp.ones((3, 4), jnp.bfloat16), jnp.ones((4, 8), jnp.float32)

    def count(self, f, *args):
        return dict(flops(jax.make_jaxpr(f)(*args)))

    def test_a_product_by_the_dtype_of_its_operands(self):
        assert self.count(lambda w: w.T @ w, self.w) == {"float32": 2 * 8 * 4 * 8}
        assert self.count(lambda x: x @ x.T + 1, self.x) == {"bfloat16": 2 * 3 * 4 * 3}

    def test_a_batch_of_products(self):
        assert self.count(jax.vmap(lambda w: w.T @ w), jnp.ones((5, 4, 8))) == {"float32": 5 * 2 * 8 * 4 * 8}

    def test_a_loop_counts_its_body_as_often_as_it_runs(self):
        def twice_seven(w):
            inner = lambda c, _: (c @ c, None)
            return jax.lax.scan(lambda c, _: (jax.lax.scan(inner, c, length=7)[0], None), w, length=2)[0]

        assert self.count(jax.jit(twice_seven), jnp.ones((4, 4))) == {"float32": 14 * 2 * 4**3}

    def test_of_branches_the_costliest_counts(self):
        f = lambda w: jax.lax.cond(w[0, 0] > 0, lambda w: w @ w @ w, lambda w: w @ w, w)
        assert self.count(f, jnp.ones((4, 4))) == {"float32": 2 * 2 * 4**3}

    def test_what_remat_computes_again_counts_again(self):
        f = lambda w: jnp.tanh(jnp.tanh(w @ w) @ w).sum()
        plain, again = (self.count(jax.value_and_grad(g), jnp.ones((4, 4)))["float32"] for g in (f, jax.checkpoint(f)))
        assert plain == 6 * 2 * 4**3 and again == 8 * 2 * 4**3

    def test_a_loop_of_unknown_length_counts_as_often_as_is_said(self):
        f = lambda w, n: jax.lax.fori_loop(n, 9, lambda _, c: c @ c, w)
        jaxpr = jax.make_jaxpr(f)(jnp.ones((4, 4)), 3)
        assert flops(jaxpr) == {"float32": 2 * 4**3} and total(jaxpr, 2.5) == 2.5 * 2 * 4**3

    def test_a_product_of_which_nothing_is_made_does_not_count(self):
        both = jax.jit(lambda w: (w @ w, w @ w @ w))
        assert self.count(lambda w: both(w)[0], jnp.ones((4, 4))) == {"float32": 2 * 4**3}
        assert self.count(lambda w: both(w), jnp.ones((4, 4))) == {"float32": 3 * 2 * 4**3}
        scanned = lambda w: jax.lax.scan(lambda c, _: (c @ c, c @ c), w, length=3)
        assert self.count(lambda w: scanned(w)[0], jnp.ones((4, 4)))["float32"] >= 3 * 2 * 4**3


class TestRows:
    def test_every_row_has_the_fields_that_are_known_on_a_cpu(self, ran):
        rows = read_rows(ran / "metrics.jsonl")
        assert [row["step"] for row in rows] == [0, 0, 5, 5, 10, 10, 15, 15, 20, 20]
        for row in rows:
            assert set(row) & set(WALL_CLOCK) == (
                LOST | GAINED if row["step"] else LOST | {"seconds", "steps_per_second"}
            )

    def test_memory_is_of_the_fullest_device(self):
        class Device:
            def __init__(self, used):
                self.used = used

            def memory_stats(self):
                return {"bytes_in_use": self.used, "peak_bytes_in_use": 2 * self.used}

        class Devices:
            local_devices = (Device(2**30), Device(3 * 2**30))

        assert observe.memory(Devices()) == {"memory_gib": 3.0, "peak_memory_gib": 6.0}
        assert observe.memory(make_mesh()) == {}


class TestTrace:
    def test_it_is_where_it_was_asked_for(self, ran):
        assert list((ran / "profile").rglob("*.xplane.pb"))

    def test_it_covers_the_dispatches_of_its_steps_and_no_other(self, monkeypatch, tmp_path):
        calls = []
        monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: calls.append("start"))
        monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append("stop"))
        trace = Trace(7, 12, tmp_path)
        for first in (1, 6, 11, 16):
            trace.before(first, first + 4, 0)
            calls.append(first)
            trace.after(first + 4, 0)
        assert calls == [1, "start", 6, 11, "stop", 16]
        assert trace.written

    def test_a_run_that_ends_in_between_writes_what_there_is(self, tmp_path, capsys):
        with tracing(Trace(1, 1000, tmp_path / "profile")):
            trainer(steps=5).run(tmp_path / "run", quiet)
        assert list((tmp_path / "profile").rglob("*.xplane.pb"))
        assert capsys.readouterr().out.endswith(f"\nprofile: {tmp_path}/profile\n")

    def test_steps_that_are_not_trained_are_said_to_be_none(self, ran, tmp_path, capsys):
        with tracing(Trace(7, 12, tmp_path / "profile")):
            trainer().run(ran, quiet)
        assert "no step of it was trained" in capsys.readouterr().out
        assert not (tmp_path / "profile").exists()
