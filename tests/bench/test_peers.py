"""All jobs of bench.peers on a tiny tower, with the real peers."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.ours import CACHE
from bench.peer_environment import peer_environment
from bench.peer_tables import AGAIN, FULL, TITLES, TSVM
from bench.peers import measure
from bench.reference import SMALL_TOWER


@pytest.mark.peers
def test_every_job_runs_and_ours_are_exact(tmp_path: Path) -> None:
    found = measure(SMALL_TOWER, tmp_path, peer_environment(CACHE / "env"), list(TITLES), 1, 1)
    assert found.missing == {}
    assert [run.job for run in found.runs if run.code] == []
    assert {run.job for run in found.runs} == set(TITLES)
    assert max(found.off[FULL]) < 1e-4 and max(found.off[AGAIN]) < 1e-4
    assert (tmp_path / TSVM / "model.safetensors").stat().st_size > 100_000
