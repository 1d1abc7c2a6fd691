"""A plan of two tasks with a sharded output, and what it gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from output_cases import SHARDED, contents, finish

from sftm_app.pipeline import prepare
from sftm_app.planning.plan import Plan
from sftm_app.planning.recipe import make_recipe
from sftm_app.session import Session


@pytest.fixture(scope="session")
def plan(tiny_models: Path, session: Session) -> Plan:
    tasks = [tiny_models / "a", tiny_models / "b"]
    return prepare(make_recipe(tiny_models / "base", tasks, device="cpu", output=SHARDED), session)


@pytest.fixture(scope="session")
def whole(plan: Plan, session: Session, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The contents of the output of a run that nothing stopped."""
    output = tmp_path_factory.mktemp("whole") / "out"
    finish(plan, session, output)
    return contents(output)
