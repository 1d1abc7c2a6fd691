"""Load a demo pack or a person's own checkpoints into the workspace."""

from __future__ import annotations

from dataclasses import replace

from sftm_app.errors import CheckpointError
from sftm_app.evaluation.packs import Pack
from sftm_app.planning.recipe import TaskEntry
from sftm_app.preflight.preflight import refuse_unchanged
from sftm_app.ui.settings import allowed_all
from sftm_app.ui.studio import Studio, find_checkpoints, fingerprint
from sftm_app.ui.workspace import Workspace, make_workspace, store


def pack_workspace(pack: Pack) -> Workspace:
    """The workspace of a demo pack, with the pack's own task names."""
    return Workspace(str(pack.base), tuple(TaskEntry(str(task.path), task.name) for task in pack.tasks))


def load_pack(studio: Studio, pack: Pack) -> Workspace:
    """Open a demo pack and remember it."""
    return remember(studio, pack_workspace(pack))


def remember(studio: Studio, made: Workspace) -> Workspace:
    """The workspace with the fingerprint of its files, kept for the next time the page opens."""
    loaded = replace(made, fingerprint=fingerprint(made))
    store(studio.settings.output_dir, loaded)
    return loaded


def load_own(studio: Studio, base: str, tasks: list[str]) -> Workspace:
    """Check the picked paths and make a workspace of them.

    Raises
        InputError: a path is not allowed or no checkpoint, or base and tasks do not fit; nothing is loaded then.
    """
    paths = allowed_all(studio.settings, [base, *tasks])
    made = make_workspace(paths[0], paths[1:])
    if not made.ready:
        raise CheckpointError("No task is picked. Add at least one checkpoint fine-tuned from the base.")
    return load_checked(studio, made)


def load_checked(studio: Studio, made: Workspace) -> Workspace:
    """Remember a workspace whose checkpoints fit together and differ from the base.

    Raises
        InputError: they do not; nothing is loaded then.
    """
    return remember(studio, checked(studio, made))


def checked(studio: Studio, made: Workspace) -> Workspace:
    """A workspace whose checkpoints fit together and differ from the base, with the fingerprint of its files.

    Raises
        InputError: they do not.
    """
    refuse_unchanged(studio.preflight(made).require())
    return replace(made, fingerprint=fingerprint(made))


def checkpoint_choices(studio: Studio) -> list[tuple[str, str]]:
    """Every checkpoint below the models folder and every saved model: as shown, and its whole path."""
    root, saved = studio.settings.models_dir, studio.settings.saved_dir
    found = dict.fromkeys(path for folder in (root, saved) for path in find_checkpoints(folder))
    # What runs made is offered under Runs so far, and under its name once it is saved.
    found = dict.fromkeys(path for path in found if studio.settings.runs_dir not in path.parents)
    return [(str(path.relative_to(root)) if root in path.parents else str(path), str(path)) for path in found]
