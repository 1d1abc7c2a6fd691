"""Where caches lie on disk, by the environment."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sftm_app.caching import cache_place, default_folder
from sftm_app.errors import InputError


def test_settings_come_from_the_environment(tmp_path: Path) -> None:
    here = cache_place({"SFTM_CACHE_DIR": str(tmp_path), "SFTM_CACHE_GB": "0.5"})
    assert here is not None and (here.folder, here.limit_bytes) == (tmp_path, 500_000_000)
    usual = cache_place({"XDG_CACHE_HOME": str(tmp_path)})
    assert usual is not None and usual.limit_bytes == 10_000_000_000
    assert usual.folder == default_folder({"XDG_CACHE_HOME": str(tmp_path)})
    assert cache_place({"SFTM_CACHE_GB": "0"}) is None
    for wrong in ("many", "-1", "nan", "inf"):
        with pytest.raises(InputError, match="not a number of gigabytes"):
            cache_place({"SFTM_CACHE_GB": wrong})
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.name != "posix" or os.uname().sysname == "Darwin", reason="the custom of Linux")
def test_the_usual_folder_is_the_one_for_caches(tmp_path: Path) -> None:
    below = Path("sftm-studio") / "factors"
    assert default_folder({"XDG_CACHE_HOME": str(tmp_path)}) == tmp_path / below
    assert default_folder({}) == default_folder({"XDG_CACHE_HOME": "relative"}) == Path.home() / ".cache" / below
