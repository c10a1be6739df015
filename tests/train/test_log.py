"""What a run says: whole lines once each in metrics.jsonl, plain lines on a pipe, a bar on a terminal."""

import io
import json

import pytest

from tvjax.train import log
from tvjax.train.log import MetricsLog, Progress, mean_name, read_rows


def rows(step: int, **more: float) -> list[dict]:
    return [{"step": step, "member": member, "loss": 0.5, **more} for member in ("icl", "tvp")]


def steps(folder) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def write(folder, after: int, *written: int) -> None:
    record = MetricsLog(folder, after, tensorboard=False)
    for step in written:
        record.write(rows(step))
    record.close()


def test_a_line_is_one_member_at_one_step(tmp_path):
    write(tmp_path, -1, 0, 5)
    assert read_rows(tmp_path / "metrics.jsonl") == [*rows(0), *rows(5)]


def test_a_number_that_is_not_finite_is_null(tmp_path):
    """Strict readers refuse NaN and Infinity, which are not JSON; a resumed run mends those that are there."""
    refuse = lambda word: pytest.fail(word)
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0, "member": "icl", "loss": NaN}\n')
    record = MetricsLog(tmp_path, 0)
    record.write(rows(5, norm=float("nan"), curve=[1.0, float("inf"), [float("-inf")]]))
    record.close()
    read = [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]
    assert read[0]["loss"] is None and read[1]["norm"] is None and read[1]["curve"] == [1.0, None, [None]]
    assert read_rows(path) == read


def test_a_mean_over_a_prompt_has_not_the_name_of_a_risk_at_k():
    assert [mean_name("icl", score) for score in ("risk", "accuracy")] == ["icl_loss", "icl_mean_accuracy"]


def test_a_new_run_drops_what_a_run_without_a_checkpoint_left(tmp_path):
    write(tmp_path, -1, 0, 5)
    write(tmp_path, -1, 0)
    assert steps(tmp_path) == [0, 0]


def test_resuming_drops_the_lines_after_the_checkpoint_and_keeps_those_before(tmp_path):
    write(tmp_path, -1, 0, 5, 10, 15)
    write(tmp_path, 10, 15, 20)
    assert steps(tmp_path) == [0, 0, 5, 5, 10, 10, 15, 15, 20, 20]


@pytest.mark.parametrize("rest", [b'{"step": 15, "mem', b"\x00\x00\x00", b"\xff\xfe", b'{"step": 15'])
def test_a_last_line_that_is_garbled_is_dropped(tmp_path, rest):
    write(tmp_path, -1, 0, 5)
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(rest)
    assert read_rows(tmp_path / "metrics.jsonl") == [*rows(0), *rows(5)]
    write(tmp_path, 5, 10)
    assert steps(tmp_path) == [0, 0, 5, 5, 10, 10]


def test_no_file_has_no_rows(tmp_path):
    assert read_rows(tmp_path / "metrics.jsonl") == []


def test_rows_are_in_the_file_as_soon_as_they_are_written(tmp_path):
    record = MetricsLog(tmp_path, -1, tensorboard=False)
    record.write(rows(5))
    assert steps(tmp_path) == [5, 5]
    record.sync()
    record.close()


def test_tensorboard_gets_finite_numbers_by_member_and_purges_after_the_checkpoint(tmp_path, monkeypatch):
    import tensorboardX

    made, seen = [], []

    class Board:
        def __init__(self, folder: str, purge_step: int, flush_secs: int):
            made.append((folder, purge_step))

        def add_scalar(self, name: str, value: float, step: int) -> None:
            seen.append((name, value, step))

        def close(self) -> None:
            made.append("closed")

    monkeypatch.setattr(tensorboardX, "SummaryWriter", Board)
    record = MetricsLog(tmp_path, 10)
    record.write([{"step": 15, "member": "icl", "loss": 0.5, "worse": float("inf"), "curve": [1.0, 2.0]}])
    record.close()
    assert made == [(str(tmp_path / "tensorboard"), 11), "closed"]
    assert seen == [("icl/loss", 0.5, 15)]


def test_tensorboard_holds_every_row_of_the_log_after_a_kill(tmp_path):
    """What a killed process had not written to its events yet, the next one writes from the log."""
    from tensorboardX.event_file_writer import EventFileWriter

    write(tmp_path, -1, 0, 5, 10)
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "tensorboard" / "events.out.tfevents.1.host").write_bytes(b"cut sho")
    (tmp_path / "tensorboard" / "mine.txt").touch()
    added: list[tuple[int, str]] = []
    real = EventFileWriter.add_event
    patched = lambda self, event: (
        added.extend((event.step, value.tag) for value in event.summary.value),
        real(self, event),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EventFileWriter, "add_event", patched)
        record = MetricsLog(tmp_path, 5)
        record.write(rows(10))
        record.close()
    assert added == [(step, f"{member}/loss") for step in (0, 5, 10) for member in ("icl", "tvp")]
    first, second = sorted(path.name for path in (tmp_path / "tensorboard").iterdir())
    assert first.startswith("events.out.tfevents.") and not first.endswith(".1.host") and second == "mine.txt"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_off_a_terminal_a_plain_line_comes_now_and_then_and_at_the_end(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(log.time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    progress = Progress(100, 0, ("loss",), stream)
    for step in (5, 10, 15):
        now[0] += 10
        progress.update(rows(step), 2.0)
    now[0] += 1
    progress.update(rows(100), 2.0)
    progress.close()
    lines = stream.getvalue().splitlines()
    assert [line.split(" |")[0] for line in lines] == ["step 5/100", "step 15/100", "step 100/100"]
    assert "icl loss 0.5 | tvp loss 0.5 | 2.0 steps/s" in lines[0]
    assert lines[1].endswith("42 s left") and lines[2].endswith("0 s left")
    assert "\x1b" not in stream.getvalue() and "\r" not in stream.getvalue()


def test_no_speed_yet_is_no_error():
    stream = io.StringIO()
    Progress(100, 0, ("loss",), stream).update(rows(5), 0.0)
    assert stream.getvalue().startswith("step 5/100")


def test_on_a_terminal_a_bar_shows_the_step_the_risks_and_the_speed(monkeypatch):
    for name, value in {"TERM": "xterm", "COLUMNS": "160"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_COLOR", raising=False)
    stream = Terminal()
    progress = Progress(100, 40, ("loss",), stream)
    progress.update(rows(45), 2.0)
    progress.close()
    text = stream.getvalue()
    assert "training" in text and "45/100" in text and "2.0 steps/s" in text and "icl loss 0.5" in text
    assert "step 45/100" not in text


@pytest.mark.parametrize("damaged", ["[1]", "null", "3", '{"step": "1"}', '{"member": "a"}', '{"a":' * 10**5])
def test_rows_end_where_a_line_is_no_row(damaged, tmp_path):
    first = rows(5)[0]
    (tmp_path / "metrics.jsonl").write_text("\n".join([json.dumps(first), damaged, json.dumps(first)]))
    assert read_rows(tmp_path / "metrics.jsonl") == [first]
