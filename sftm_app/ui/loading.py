"""Load a demo pack or a person's own checkpoints into the workspace."""

from __future__ import annotations

from dataclasses import replace

from sftm_app.errors import CheckpointError
from sftm_app.evaluation.packs import Pack
from sftm_app.planning.recipe import TaskEntry
from sftm_app.preflight.preflight import refuse_unchanged
from sftm_app.ui.settings import allowed_all
from sftm_app.ui.studio import Studio
from sftm_app.ui.workspace import Workspace, fingerprint, make_workspace, store


def pack_workspace(pack: Pack) -> Workspace:
    """The workspace of a demo pack, with the pack's own task names."""
    return Workspace(str(pack.base), tuple(TaskEntry(str(task.path), task.name) for task in pack.tasks))


def remember(studio: Studio, made: Workspace) -> Workspace:
    """The workspace with the fingerprint of its files, stored for the next time the page opens.

    What an address once asked of the tabs is over: they go on with what they showed last.
    """
    loaded = replace(made, fingerprint=fingerprint(made), asked=())
    store(studio.settings.output_dir, loaded)
    return loaded


def load_own(studio: Studio, base: str, tasks: list[str]) -> Workspace:
    """Check the picked paths and make a workspace of them.

    Raises:
        InputError: a path is not allowed or is not a checkpoint, or base and tasks do not fit. Nothing is loaded.
    """
    paths = allowed_all(studio.settings, [base, *tasks])
    made = make_workspace(paths[0], paths[1:])
    if not made.ready:
        raise CheckpointError("No task is picked. Add at least one checkpoint fine-tuned from the base.")
    return load_checked(studio, made)


def load_checked(studio: Studio, made: Workspace) -> Workspace:
    """Remember a workspace, if its checkpoints fit together and differ from the base; see `checked`.

    Raises:
        InputError: they do not. Nothing is loaded.
    """
    return remember(studio, checked(studio, made))


def checked(studio: Studio, made: Workspace) -> Workspace:
    """The workspace with the fingerprint of its files, if its checkpoints fit together and differ from the base.

    One that lacks nothing but the choice of a tokenizer counts as fitting: the choice is made once it is loaded.

    Raises:
        InputError: they do not.
    """
    found = studio.preflight(made)
    if not found.needs_tokenizer:
        refuse_unchanged(found.require())
    return replace(made, fingerprint=fingerprint(made))
