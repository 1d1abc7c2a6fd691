"""Shared by every test: one torch thread (with two a busy two-core machine is many times slower), tiny checkpoints."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
import torch
from hub_fixture import hub  # noqa: F401
from tiny_checkpoints import N_LABELS, save_base, save_task

if TYPE_CHECKING:
    from sftm_app.session import Session

torch.set_num_threads(1)
# No test leaves factors in the cache of whoever runs it, or finds some there.
os.environ["SFTM_CACHE_DIR"] = tempfile.mkdtemp(prefix="sftm-test-cache-")
# The same examples every time, so that a red run says something about the change. No deadline: the first example may
# pay for a library's import, and a machine that runs these tests is often busy with others.
hypothesis.settings.register_profile("house", deadline=None, derandomize=True)
hypothesis.settings.load_profile("house")


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `base` and the task checkpoints `a`, `b`, `c`. Tests must not change it: copy what they damage."""
    root = tmp_path_factory.mktemp("models")
    base = save_base(root / "base")
    for seed, (name, n_labels) in enumerate(N_LABELS.items(), start=1):
        save_task(root / name, base, seed, n_labels)
    return root


@pytest.fixture
def models(tiny_models: Path, tmp_path: Path) -> Path:
    """A private copy of tiny_models that a test may damage."""
    import shutil

    return Path(shutil.copytree(tiny_models, tmp_path / "models"))


@pytest.fixture
def recipe_for(tiny_models: Path) -> Callable[..., Any]:
    """Builds a Recipe over the tiny models; keyword arguments as for make_recipe."""
    from sftm_app.planning.recipe import make_recipe

    def build(tasks: str = "abc", **changes: Any) -> Any:
        return make_recipe(tiny_models / "base", [tiny_models / name for name in tasks], device="cpu", **changes)

    return build


@pytest.fixture(scope="session")
def session() -> Session:
    """A session without a cache on disk."""
    from sftm_app.session import open_session

    return open_session(environment={"SFTM_CACHE_GB": "0"})


@pytest.fixture
def cached_session(session: Session, tmp_path: Path) -> Session:
    """A session with a cache of its own, in the folder `cache`."""
    from sftm_app.session import open_session

    environment = {"SFTM_CACHE_DIR": str(tmp_path / "cache"), "SFTM_CACHE_GB": "1"}
    return replace(open_session(environment=environment), speed=session.speed)


@pytest.fixture
def small_layers_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    """The layers of the tiny models count as large enough for the cache."""
    monkeypatch.setattr("sftm_app.weights.disk_cache.MIN_SIDE", 2)


@pytest.fixture
def as_ordinary_user() -> Iterator[Path]:
    """A new folder of an ordinary user, who this process is until the test ends: root may read and write everything."""
    if os.name != "posix":
        pytest.skip("modes of files are POSIX")
    root = os.geteuid() == 0
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        if root:
            nobody = 65534
            os.chown(name, nobody, -1)
            os.seteuid(nobody)
        try:
            if not os.access(name, os.R_OK | os.W_OK, effective_ids=True):
                pytest.skip("temporary folders are not for everybody here")
            yield Path(name)
        finally:
            if root:
                os.seteuid(0)
            for folder in Path(name).rglob("*"):
                if folder.is_dir():
                    folder.chmod(0o700)
