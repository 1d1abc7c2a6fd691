"""Save the model of a finished run under a name."""

from __future__ import annotations

from pathlib import Path

from sftm_app.errors import JobError, OutputError, SFTMError
from sftm_app.evaluation.packs import pack_of
from sftm_app.jobs.folder import RunFolder, open_run
from sftm_app.jobs.status import status
from sftm_app.output.publish import publish
from sftm_app.planning.recipe import default_name
from sftm_app.ui.studio import Studio
from sftm_app.ui.widgets.html import Html, code, join, notice
from sftm_app.weights.file_names import ADAPTER_CONFIG_NAME, CONFIG_NAME

FORBIDDEN = '/\\:*?"<>|'


def finished_run(studio: Studio, run_id: str) -> RunFolder:
    """The folder of a run that is done.

    Raises:
        JobError: no run is chosen, or it is not done.
    """
    if not run_id:
        raise JobError("No merge is chosen. Start one, or choose one of the runs so far.")
    folder = open_run(studio.settings.runs_dir, run_id)
    if status(folder).state != "done":
        raise JobError("This merge is not done, so there is nothing to save. Wait for it, or choose another run.")
    return folder


def save_run(studio: Studio, run_id: str, name: str) -> Path:
    """Publish a finished run's model under a name in the folder of saved models.

    Raises:
        OutputError: the name cannot be a folder name, or it exists.
    """
    folder = finished_run(studio, run_id)
    wanted = (name or "").strip()
    if not wanted:
        raise OutputError("The merged model has no name yet. Enter one under Save as.")
    if wanted.startswith(".") or not wanted.isprintable() or any(character in wanted for character in FORBIDDEN):
        raise OutputError(
            f"{wanted!r} cannot be a folder name. Start it with a letter or digit, and leave out {' '.join(FORBIDDEN)}"
        )
    target = studio.settings.saved_dir / wanted
    publish(folder.model, target)
    return target


def saved_html(target: Path) -> Html:
    """Where the model is and how to load it."""
    folder = target.as_posix()
    if (target / ADAPTER_CONFIG_NAME).is_file():
        load = f'PeftModel.from_pretrained(base_model, "{folder}")'
    elif (target / CONFIG_NAME).is_file():
        load = f'AutoModel.from_pretrained("{folder}")'
    else:
        load = f'safetensors.torch.load_file("{next(iter(sorted(target.glob("*.safetensors"))), target).as_posix()}")'
    return notice("ok", f"Saved {target.name}", join(["To load it: ", code(load)]))


def default_save_name(studio: Studio, run_id: str) -> str:
    """A name for a run's model that is still free, after the base that was merged into; "" if there is no run."""
    try:
        base = Path(studio.recipe(open_run(studio.settings.runs_dir, run_id)).base)
    except SFTMError:
        return ""
    pack = pack_of(base, list(studio.packs))
    stem = f"{pack.name if pack else default_name(base, set())}-merged"
    taken = {child.name for child in studio.settings.saved_dir.glob("*")}
    return next(name for n in range(1, len(taken) + 2) if (name := stem if n == 1 else f"{stem}-{n}") not in taken)
