"""The speed of this machine: measured in a moment, kept between processes, never an error."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path

import pytest
import torch

from sftm_app import machine_speed
from sftm_app.machine_speed import MachineSpeed, SpeedFile, measure_speed

SPEED = MachineSpeed(1e9, 2e9, 3e9)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The threads at each time that the machine is measured, which always finds SPEED."""
    times: list[int] = []
    monkeypatch.setattr(machine_speed, "measure_speed", lambda n_threads: (times.append(n_threads), SPEED)[1])
    return times


def test_measuring_takes_a_moment_and_gives_positive_speeds() -> None:
    before, started = torch.get_num_threads(), time.thread_time()
    found = measure_speed(before)
    assert time.thread_time() - started < 2  # a tenth of a second as a rule
    assert torch.get_num_threads() == before
    assert min(dataclasses.astuple(found)) > 0
    assert found.products > found.eigen, "an eigendecomposition is no match for a product"


def test_a_session_measures_once_and_the_next_process_not_at_all(tmp_path: Path, measured: list[int]) -> None:
    path = tmp_path / "new" / "speed.json"
    speed = SpeedFile(path, 1)
    assert not measured, "nothing is measured before it is needed"
    assert speed.get() == speed.get() == SpeedFile(path, 1).get() == SPEED
    assert len(measured) == 1 and [file.name for file in path.parent.iterdir()] == ["speed.json"]
    assert SpeedFile(None, 1).get() == SPEED and len(measured) == 2


def test_the_speed_is_that_of_one_thread(tmp_path: Path, measured: list[int]) -> None:
    path = tmp_path / "speed.json"
    assert SpeedFile(path, 3).get() == SpeedFile(path, 2).get() == SPEED
    assert measured == [3], "torch returns to these afterwards"


def test_a_damaged_file_is_measured_again(tmp_path: Path, measured: list[int]) -> None:
    path = tmp_path / "speed.json"
    SpeedFile(path, 1).get()
    (key,) = json.loads(path.read_text())
    values = dataclasses.asdict(SPEED)
    damages = ["", "{", "[1]", '{"a": 1}', json.dumps({key: [1]}), json.dumps({key: {"products": 1.0}})]
    damages += [json.dumps({key: values | change}) for change in ({"eigen": 0.0}, {"eigen": "x"}, {"more": 1.0})]
    damages += [json.dumps({key: values | {"eigen": float("nan")}}), "[" * 100_000, "\udc00"]
    for n_before, damaged in enumerate(damages, start=1):
        path.write_bytes(damaged.encode(errors="surrogatepass"))
        assert SpeedFile(path, 1).get() == SPEED, damaged[:50]
        assert len(measured) == n_before + 1, damaged[:50]


def test_a_place_that_cannot_be_written_is_no_error(tmp_path: Path, measured: list[int]) -> None:
    (tmp_path / "file").write_text("in the way")
    assert SpeedFile(tmp_path / "file" / "speed.json", 1).get() == SPEED
    assert (tmp_path / "file").read_text() == "in the way"
