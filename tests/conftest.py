"""Shared by all tests: one torch thread in each process, tiny checkpoints, and how tests are split over processes."""

from __future__ import annotations

import atexit
import os
import shutil
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

# With two threads, a busy machine with two cores is many times slower. Processes that tests start inherit the setting.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"
# Tests neither fill nor read the cache of the person who runs them.
os.environ["SFTM_CACHE_DIR"] = tempfile.mkdtemp(prefix="sftm-test-cache-")
atexit.register(shutil.rmtree, os.environ["SFTM_CACHE_DIR"], ignore_errors=True)
# Gradio would report each page that a test builds.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
# The same examples every time, so that a failure points to the change under test. No deadline: the first example may
# include the import of a library, and the machine may be busy with other work.
hypothesis.settings.register_profile("house", deadline=None, derandomize=True)
hypothesis.settings.load_profile("house")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the browser tests first: they are the longest group, and the other process has enough to do meanwhile."""
    items.sort(key=lambda item: item.get_closest_marker("browser") is None)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep the tests of one file in one process, and all browser tests in one, so that they share an app."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "tests/browser" if nodeid.startswith("tests/browser/") else super()._split_scope(nodeid)

    return Scheduling(config, log)


@pytest.fixture(autouse=True)
def architectures_here(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Build models for their names in this process, which has imported transformers; not in tests marked `apart`."""
    from sftm_app.architecture import reading
    from sftm_app.architecture.builder import ArchitectureBuilder

    def read(self: ArchitectureBuilder, config: dict[str, Any], names: Any, untied: frozenset[str]) -> Any:
        return reading.read_architecture(config, names, untied)

    if "apart" not in request.keywords:
        monkeypatch.setattr(ArchitectureBuilder, "read", read)


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `base` and the task checkpoints `a`, `b`, `c`. Tests must not change it; see `models`."""
    root = tmp_path_factory.mktemp("models")
    base = save_base(root / "base")
    for seed, (name, n_labels) in enumerate(N_LABELS.items(), start=1):
        save_task(root / name, base, seed, n_labels)
    return root


@pytest.fixture
def models(tiny_models: Path, tmp_path: Path) -> Path:
    """A copy of tiny_models that the test may change."""
    return Path(shutil.copytree(tiny_models, tmp_path / "models"))


@pytest.fixture
def recipe_for(tiny_models: Path) -> Callable[..., Any]:
    """A function that builds a Recipe for the tiny models and takes the keyword arguments of make_recipe."""
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
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages of Gradio without the routes of a server, which take most of the time to build; for tests of handlers."""
    monkeypatch.setattr("gradio.routes.App.create_app", lambda *_, **__: None)


@pytest.fixture
def small_layers_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    """The layers of the tiny models count as large enough for the cache."""
    monkeypatch.setattr("sftm_app.weights.disk_cache.MIN_SIDE", 2)


@pytest.fixture
def as_ordinary_user() -> Iterator[Path]:
    """A new folder of an ordinary user. This process runs as that user during the test: root may do anything."""
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
                pytest.skip("other users may not use the temporary folder")
            yield Path(name)
        finally:
            if root:
                os.seteuid(0)
            for folder in Path(name).rglob("*"):
                if folder.is_dir():
                    folder.chmod(0o700)
