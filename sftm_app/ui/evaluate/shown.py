"""What the Evaluate tab shows, as a short text: the task, the models that are ticked, the sample."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

from sftm_app.evaluation.sample_text import sample_from_text, sample_to_text
from sftm_app.evaluation.samples import Samples
from sftm_app.ui.view import read_query

_FOLDER = "folder:"


@dataclass(frozen=True)
class Shown:
    """What is shown. task: "" for the first. ticked: keys of candidates; None for those that a new workspace ticks."""

    task: str = ""
    ticked: tuple[str, ...] | None = None
    sample: Samples | None = None


def shown_to_text(shown: Shown, output_dir: Path) -> str:
    """The text. Merges in the output folder are named without it: an address tells nobody where that is."""
    pairs = [("task", shown.task), ("models", " ".join(_short(key, output_dir) for key in shown.ticked or ()))]
    if shown.sample is not None:
        pairs.append(("sample", sample_to_text(shown.sample)))
    return urlencode(pairs)


def shown_from_text(text: str, output_dir: Path) -> Shown:
    """What such a text says. Neither the task nor the keys are checked: only what is on offer counts."""
    # Without models the field is empty, which a query leaves out.
    query = read_query(text)
    if not text:
        return Shown()
    keys = tuple(_long(key, output_dir) for key in query.get("models", "").split(" ") if key)
    return Shown(query.get("task", ""), keys, sample_from_text(query["sample"]) if "sample" in query else None)


def _short(key: str, output_dir: Path) -> str:
    return key.replace(f"{_FOLDER}{output_dir}/", _FOLDER, 1).replace(" ", "%20")


def _long(key: str, output_dir: Path) -> str:
    name = key.replace("%20", " ")
    inside = name.startswith(_FOLDER) and not name.startswith(f"{_FOLDER}/")
    return f"{_FOLDER}{output_dir / name.removeprefix(_FOLDER)}" if inside else name
