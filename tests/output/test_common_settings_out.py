"""Settings of every method through a killed and resumed run, and on a cluster."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from output_cases import SHARDED, contents, finish, killed_after

from sftm_app.output import ray_executor as cluster
from sftm_app.output.ray_executor import RayExecutor
from sftm_app.pipeline import prepare
from sftm_app.planning.plan import Plan
from sftm_app.session import Session

PARAMS = {"calibration": 0.5, "depth": 0.4, "scaling": 0.8, "attention": 0.5}


@pytest.fixture
def calibrated_plan(recipe_for: Callable[..., Any], session: Session) -> Plan:
    return prepare(recipe_for("abc", method="task_arithmetic", params=PARAMS, output=SHARDED), session)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a copy of this process")
def test_a_killed_run_is_resumed(calibrated_plan: Plan, session: Session, tmp_path: Path) -> None:
    finish(calibrated_plan, session, tmp_path / "whole")
    killed_after(15, calibrated_plan, session, tmp_path / "out")
    report, _ = finish(calibrated_plan, session, tmp_path / "out", True)
    assert report.machine.resumed_after_tensors == 15
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.cluster
def test_a_cluster_gives_the_same_output_bit_for_bit(calibrated_plan: Plan, session: Session, tmp_path: Path) -> None:
    finish(calibrated_plan, session, tmp_path / "local")
    with cluster._connected(cluster._import_ray(), None, 2, 1):
        finish(calibrated_plan, session, tmp_path / "ray", None, RayExecutor())
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")
