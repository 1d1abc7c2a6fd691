"""The bench for GPUs, on the CPU: both routes give the same D*, and the table has what was asked for."""

from __future__ import annotations

import sys

import pytest
import torch

from bench import gpu
from bench.gpu import MODELS, engine, make_changes, measure, off, plain

CPU = torch.device("cpu")


@pytest.mark.parametrize("rank", ["full", "1/T"])
def test_both_routes_give_the_same_change(rank: str) -> None:
    ours, other = (measure(MODELS["tiny"], rank, route, CPU) for route in (engine, plain))
    assert [tuple(change.shape) for change in ours.changes] == list(MODELS["tiny"].maps)
    assert 0 < off(ours, other) < 1e-3 and ours.seconds > 0 and ours.peak_bytes == 0


def test_made_up_tasks_share_a_part() -> None:
    first, second = make_changes((80, 80), 2)
    alone = torch.randn(80, 80, generator=torch.Generator().manual_seed(1))
    assert float((first * second).sum()) / float(first.norm() * second.norm()) > 0.1
    assert abs(float((first * alone).sum())) / float(first.norm() * alone.norm()) < 0.05


def test_the_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["bench.gpu", "--device", "cpu", "--works", "tiny", "--ranks", "1/T"])
    gpu.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith("| tiny | 3 | 1/T |") and "no GPU" in lines[-1]
    assert len(lines[0].split("|")) == len(lines[1].split("|")) == len(lines[2].split("|"))
