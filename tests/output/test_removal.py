"""A merged model is removed whole, or not at all: nothing that the app did not write, and nothing behind a link."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sftm_app.errors import OutputError
from sftm_app.output.removal import remove_output
from sftm_app.output.save import save
from sftm_app.pipeline import prepare
from sftm_app.session import Session


@pytest.fixture
def merged(recipe_for: Callable[..., Any], session: Session, tmp_path: Path) -> Path:
    for _ in save(prepare(recipe_for(method="average"), session), session, tmp_path / "merged"):
        pass
    return tmp_path / "merged"


def test_all_that_was_written_is_removed(merged: Path) -> None:
    assert (merged / "heads" / "a.safetensors").is_file()
    remove_output(merged)
    assert not merged.exists()


@pytest.mark.parametrize("name", ["notes.txt", "heads/notes.txt", "own/config.json", "deeper/x.safetensors"])
def test_other_files_keep_the_whole_folder(merged: Path, name: str) -> None:
    (merged / name).parent.mkdir(exist_ok=True)
    (merged / name).write_text("mine")
    before = sorted(merged.rglob("*"))
    with pytest.raises(OutputError, match=rf"did not write \({name}\)"):
        remove_output(merged)
    assert sorted(merged.rglob("*")) == before


def test_what_a_link_leads_to_stays(merged: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "model.safetensors").write_bytes(b"mine")
    (merged / "link").symlink_to(outside)
    with pytest.raises(OutputError, match=r"did not write \(link\)"):
        remove_output(merged)
    (merged / "link").rename(merged / "other.safetensors")
    remove_output(merged)
    assert (outside / "model.safetensors").read_bytes() == b"mine" and not merged.exists()


def test_a_folder_of_somebody_else_is_refused(merged: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(merged)
    with pytest.raises(OutputError, match="not written by this app"):
        remove_output(link)
    (merged / "sftm_report.json").unlink()
    with pytest.raises(OutputError, match="not written by this app"):
        remove_output(merged)
    with pytest.raises(OutputError, match="not written by this app"):
        remove_output(tmp_path / "nowhere")
    assert (merged / "model.safetensors").is_file()
