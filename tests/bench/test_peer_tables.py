"""Tables of bench.peers, and the accounting below them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bench.accounting import spend, threads
from bench.peer_tables import FULL, TIES, TSVM, Run, goal_table, predicted_table, work_table


def runs(**seconds: float) -> list[Run]:
    return [Run(job.replace("_", "-"), 0, value, value, int(1e8 * value)) for job, value in seconds.items()]


def rows(table: str) -> dict[str, list[str]]:
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    return {row[0]: row[1:] for row in cells}


def test_medians_and_ratios_stand_in_the_row_of_their_job() -> None:
    measured = runs(tsvm=10.0, ties=8.0, mergekit_ta=2.0)
    measured += [Run(FULL, 0, seconds, 9.0, 150_000_000, 1e-6) for seconds in (3.0, 4.0, 9.0)]
    row = rows(work_table(measured, {}, {FULL: [1e-5, 3e-5, 2e-5]}))["**SFTM readout, full rank**"]
    assert row[0] == "4.0 s (3.0 to 9.0)"
    assert row[1:4] == ["0.40", "0.50", "2.00"]
    assert row[5:] == ["150 MB", "0.15", "1.0e-06", "2e-05, 3e-05"]


def test_a_peer_that_is_missing_or_failed_is_said_so_and_has_no_ratio() -> None:
    table = rows(work_table([Run(TIES, 1, 5.0, 5.0, 1), *runs(full=3.0)], {TSVM: "No wheel."}, {}))
    assert table["FusionBench, TSV-M"][0] == "No wheel."
    assert table["mergekit, TIES"][0] == "failed; see its log"
    assert table["**SFTM readout, full rank**"][1:4] == ["", "", ""]
    assert len({len(row) for row in table.values()}) == 1


def test_goals_are_judged_by_ratio_and_the_residual() -> None:
    measured = [*runs(tsvm=10.0, low=2.0), Run(FULL, 0, 4.0, 9.0, 1, 2e-5)]
    goals = rows(goal_table(measured))
    assert goals["SFTM, full rank: at most half of TSV-M's time"] == ["0.40", "0.90", "yes"]
    assert goals["SFTM, rank 1/T: at most a tenth of TSV-M's time"] == ["0.20", "0.20", "**no**"]
    assert goals["SFTM, full rank: residual at most 1e-05 on every layer"] == ["2.0e-05", "", "**no**"]
    assert not any("mergekit" in goal or "reading" in goal for goal in goals)


def test_what_was_predicted_stands_next_to_what_was_taken() -> None:
    ours = [Run(FULL, 0, 9.0, 9.0, 1, 1e-6, took, 3.0, 200_000_000, 250_000_000) for took in (2.0, 4.0, 4.5)]
    found = rows(predicted_table([*runs(tsvm=10.0), *ours]))
    assert found == {"**SFTM readout, full rank**": ["4.0 s", "3.0 s", "0.75", "200 MB", "250 MB", "1.25"]}


@pytest.mark.skipif(sys.platform == "win32", reason="needs posix_spawn and wait4")
def test_a_process_is_charged_for_itself_alone(tmp_path: Path) -> None:
    """40 MB held by the child are seen, the memory of this process is not."""
    held = bytearray(200_000_000)
    held[:] = b"x" * len(held)
    script = "data = bytearray(b'x') * 40_000_000; print('here'); raise SystemExit(3)"
    spent = spend([sys.executable, "-I", "-S", "-c", script], tmp_path / "child.log", threads(1), tmp_path)
    assert spent.code == 3
    assert 40e6 < spent.peak_bytes < 100e6
    assert "here" in (tmp_path / "child.log").read_text()
