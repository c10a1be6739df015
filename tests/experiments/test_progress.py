"""While a run works it says how far it is, and how long the rest will take."""

import threading
import time

from tvjax.experiments.progress import Progress


def test_it_speaks_by_itself_where_nothing_was_said():
    lines, spoke = [], threading.Event()

    def say(line):
        lines.append(line)
        spoke.set()

    with Progress(say, every=0.05) as progress:
        assert spoke.wait(5) and lines[0].startswith("at work for ")
    count = len(lines)
    time.sleep(0.15)
    assert len(lines) == count, "it is silent when the work is done"
    assert progress.line()


def test_it_is_silent_where_the_run_speaks():
    lines = []
    with Progress(lines.append, every=60.0) as progress:
        progress.say("a result")
    assert lines == ["a result"]


def test_the_time_left_is_by_what_the_work_costs(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("tvjax.experiments.progress.time.monotonic", lambda: clock[0])
    progress = Progress(print)
    progress.plan({"short": 10, "long": 2}, {"short": 1.0, "long": 5.0})
    progress.tick("long")
    clock[0] = 25.0
    assert progress.line() == "25% done, about 75 s left"
    for kind in ["long", *["short"] * 5]:
        progress.tick(kind)
    clock[0] = 600.0
    assert progress.line() == "75% done, about 3 min left"
