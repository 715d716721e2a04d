import json
import math

import pytest

from ringworld.training.metrics import MetricsFile, Pace, count, duration, read_metrics, step_line


def step(number: int, **values) -> dict:
    return {"kind": "step", "stage": "a", "stage_step": number, "step": number, **values}


def test_records_are_read_back_bit_for_bit(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsFile(path, step=0) as metrics:
        metrics.write(step(1, loss=0.1 + 0.2))
        metrics.sync()
        assert list(read_metrics(path)) == [step(1, loss=0.1 + 0.2)]  # there before the file is closed


def test_what_is_not_finite_is_null(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsFile(path, step=0) as metrics:
        metrics.write(step(1, loss=math.nan, gradient_norm=math.inf, skipped=1.0))
    assert list(read_metrics(path)) == [step(1, loss=None, gradient_norm=None, skipped=1.0)]


def test_a_continued_run_drops_what_came_after_its_checkpoint(tmp_path):
    path = tmp_path / "metrics.jsonl"
    evaluation = {"kind": "evaluation", "stage": "a", "stage_step": 2, "step": 2, "results": {"x": 1.0}}
    later = {**evaluation, "stage": "b", "step": 3}
    lines = [json.dumps(record) + "\n" for record in (step(1), step(2), evaluation, step(3), later)]
    path.write_text("".join(lines) + '{"kind": "st')  # the process died in the middle of a line
    with MetricsFile(path, step=2) as metrics:
        assert metrics.evaluated == {"a"}
        metrics.write(step(3, loss=1.0))
    assert list(read_metrics(path)) == [step(1), step(2), evaluation, step(3, loss=1.0)]


def test_pace_leaves_out_pauses():
    pace = Pace()
    pace.pause()
    assert pace.units_per_second is None
    assert pace.step(100.0, 50) == 0.0  # it compiled
    assert pace.units_per_second is None
    assert pace.step(102.0, 50) == 2.0
    assert pace.units_per_second == 25.0
    pace.start(500.0)  # an evaluation has ended
    assert pace.step(501.0, 70) == 1.0
    assert pace.units_per_second == 40.0


def test_pace_forgets_what_is_older_than_its_window():
    pace = Pace(window=10.0)
    pace.start(0.0)
    pace.step(9.0, 9)
    pace.step(11.0, 100)
    assert pace.units_per_second == 50.0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0s"),
        (59.4, "59s"),
        (59.6, "1m00s"),
        (185, "3m05s"),
        (3600, "1h00m"),
        (8040, "2h14m"),
        (86400, "1d00h"),
        (273600, "3d04h"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("number", "text"), [(950.4, "950"), (25_140, "25.1K"), (1_048_576, "1.05M"), (999_900, "1000K"), (3e9, "3B")]
)
def test_counts(number, text):
    assert count(number) == text


def test_a_step_is_one_line():
    record = step(40, loss=2.34567, accuracy=0.41239, gradient_norm=0.93, skipped=0.0)
    line = step_line(
        record, stage="2/8 len-128", steps=250, skipped=0, unit="tokens", units_per_second=None, seconds_left=None
    )
    assert line == "stage 2/8 len-128  step 40/250  loss 2.3457  accuracy 0.412  gradient 0.93  - tokens/s"
    line = step_line(
        record | {"loss": math.nan, "skipped": 1.0},
        stage="2/8 len-128",
        steps=250,
        skipped=3,
        unit="tokens",
        units_per_second=25_140.0,
        seconds_left=185.0,
    )
    assert line == (
        "stage 2/8 len-128  step 40/250  loss nan  accuracy 0.412  gradient 0.93  25.1K tokens/s  at most 3m05s left  "
        "SKIPPED  3 skipped in all"
    )
