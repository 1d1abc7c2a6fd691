"""Models: try the demo, or pick base and tasks; a card per checkpoint; preflight in sentences."""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from sftm_app.errors import CheckpointError, SFTMError
from sftm_app.evaluation.packs import Pack
from sftm_app.preflight.matching import Match
from sftm_app.ui.handlers import sentences
from sftm_app.ui.loading import checkpoint_choices, load_checked, load_own, load_pack, remember
from sftm_app.ui.models import hub_panel, roles_panel
from sftm_app.ui.studio import Studio
from sftm_app.ui.theme import task_colour
from sftm_app.ui.widgets.html import Safe, card, cards, chip, empty_state, facts, heading, notice, stack
from sftm_app.ui.workspace import Workspace, restore
from sftm_app.units import format_bytes
from sftm_app.weights.checkpoint import Checkpoint
from sftm_app.weights.hub_names import hub_name, short_name


def build(studio: Studio, workspace: gr.State, tabs: gr.Tabs, page: gr.Blocks) -> None:
    """Lay out the tab and wire it. Whatever it loads goes into `workspace`; the rest of the app follows that."""
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=280):
            for number, pack in enumerate(studio.packs):
                gr.HTML(_pack_text(pack), apply_default_css=False)
                kind = "secondary" if number else "primary"
                demo = gr.Button(f"Try the {pack.name} demo", variant=kind, elem_id=f"try-{pack.name}")
                demo.click(_demo_handler(studio, pack), outputs=workspace, show_progress="hidden")
        with gr.Column(scale=3, min_width=320):
            gr.HTML(
                heading(
                    "Your own checkpoints",
                    "Folders as save_pretrained writes them, LoRA adapters, or bare .safetensors files, fine-tuned "
                    "from one base.",
                ),
                apply_default_css=False,
            )
            base = gr.Dropdown(
                label="Base",
                info="The checkpoint that the others were fine-tuned from. Pick one, or paste its path.",
                choices=[],
                value=None,
                allow_custom_value=True,
                elem_id="base-path",
            )
            tasks = gr.Dropdown(
                label="Tasks",
                info="One or more fine-tuned checkpoints. Pick them, or paste each path and press Enter.",
                choices=[],
                value=[],
                multiselect=True,
                allow_custom_value=True,
                elem_id="task-paths",
            )
            with gr.Row():
                load = gr.Button("Check and load", variant="primary", elem_id="load-own")
                browse = gr.Button("Look again for checkpoints", elem_id="browse")
    hub_panel.build(studio, workspace, page, load_checked)
    report = gr.HTML(_nothing(), apply_default_css=False, elem_id="preflight")
    roles_panel.build(studio, workspace, remember)
    with gr.Row(visible=False) as following:
        for title, tab in (
            ("Inspect the layers", "inspect"),
            ("Merge the tasks", "merge"),
            ("Try the models", "evaluate"),
        ):
            gr.Button(title).click(
                lambda tab=tab: gr.Tabs(selected=tab), None, tabs, queue=False, show_progress="hidden"
            )

    page.load(sentences(lambda: _offered(checkpoint_choices(studio))), None, [base, tasks], show_progress="hidden")
    browse.click(sentences(lambda: _offered_or_why_not(studio)), outputs=[base, tasks])
    load.click(sentences(_load_handler(studio)), [base, tasks], [workspace, report], show_progress="minimal")
    workspace.change(
        sentences(lambda ws: (preflight_html(studio, ws), gr.update(visible=studio.usable(ws)))),
        workspace,
        [report, following],
        show_progress="hidden",
    )


def _demo_handler(studio: Studio, pack: Pack) -> Callable[[], Workspace]:
    def demo() -> Workspace:
        return load_pack(studio, pack)

    return sentences(demo)


def _load_handler(studio: Studio) -> Callable[[str | None, list[str] | None], tuple[Any, Safe]]:
    def load(base: str | None, tasks: list[str] | None) -> tuple[Any, Safe]:
        try:
            loaded = load_own(studio, base or "", tasks or [])
        except SFTMError as error:
            return gr.skip(), refused(error, restore(studio.settings.output_dir))
        return loaded, preflight_html(studio, loaded)

    return load


def _offered(found: list[tuple[str, str]]) -> tuple[Any, Any]:
    return gr.update(choices=found), gr.update(choices=found)


def _offered_or_why_not(studio: Studio) -> tuple[Any, Any]:
    found = checkpoint_choices(studio)
    if not found:
        raise CheckpointError(
            f"{studio.settings.models_dir}: no checkpoints were found in it. Paste a folder's path, or start the app "
            "with `--models-dir FOLDER`."
        )
    return _offered(found)


def refused(error: SFTMError, still: Workspace | None = None) -> Safe:
    """Why nothing was loaded, one line for each problem; and what is loaded from before."""
    said = notice("error", "These checkpoints cannot be merged", items=str(error).split("\n"))
    if still is None or not still.ready:
        return said
    before = f"{short_name(still.base)} with {', '.join(still.task_names)}"
    return stack(said, notice("info", "The models from before are still loaded", before))


def preflight_html(studio: Studio, workspace: Workspace) -> Safe:
    """Cards of base and tasks with what preflight found."""
    if not workspace.ready:
        return _nothing()
    try:
        found = studio.preflight(workspace)
    except SFTMError as error:
        return refused(error)
    if found.problems:
        return notice("error", "These checkpoints cannot be merged", items=found.problems)
    heads = sum(bool(match.heads) for match in found.matches)
    summary = notice(
        "ok",
        f"{_tasks(len(found.tasks), 'fits', 'fit')} the base",
        f"{len(found.base.tensors)} tensors line up by name and shape. {_heads_sentence(heads)}",
        items=[note for note in found.notes if "belong to its own head" not in note],
    )
    pack = studio.pack(workspace)
    titles = {str(task.path): task.title for task in pack.tasks} if pack else {}
    base = card("Base", _facts(found.base), subtitle=_short(found.base.path), badge=_badge(found.base))
    tasks = [
        card(
            titles.get(str(task.checkpoint.path), task.name),
            _facts(task.checkpoint, match),
            subtitle=_short(task.checkpoint.path),
            colour=task_colour(index),
        )
        for index, (task, match) in enumerate(zip(found.tasks, found.matches, strict=True))
    ]
    return stack(summary, cards([base, *tasks]))


def _badge(checkpoint: Checkpoint) -> Safe:
    if checkpoint.bare:
        return chip("guessed", title="no config.json says what each tensor is", tone="warning")
    return chip(checkpoint.model_type)


def _heads_sentence(n_heads: int) -> str:
    if not n_heads:
        return ""
    return f"{_tasks(n_heads, 'brings', 'bring')} a head of their own, which is kept apart and saved beside the model."


def _tasks(n: int, one: str, many: str) -> str:
    return f"1 task {one}" if n == 1 else f"{n} tasks {many}"


def _facts(checkpoint: Checkpoint, match: Match | None = None) -> Safe:
    stored = f"{format_bytes(checkpoint.n_bytes)} {', '.join(checkpoint.dtypes)}"
    size = f"{_count(checkpoint.n_parameters)} parameters, {stored}"
    # A break opportunity lets a long class name break between its words instead of anywhere.
    shown_name = "bare weights, no config.json" if checkpoint.bare else checkpoint.architecture
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", "<wbr>", html.escape(shown_name))
    pairs: list[tuple[object, object]] = [("Class", Safe(name)), ("Size", size)]
    labels = list(checkpoint.id2label.values())
    if match is not None and match.heads and labels:
        shown = " · ".join(labels[:6])
        pairs.append(("Classes", f"{len(labels)}: {shown}{' …' if len(labels) > 6 else ''}"))
    return facts(pairs)


def _short(path: Path) -> str:
    fetched, at, commit = (hub_name(path) or "").partition("@")
    return f"{fetched}{at}{commit[:10]}" or "/".join(path.parts[-2:])


def _count(n: int) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if n >= size:
            return f"{n / size:.3g} {unit}"
    return str(n)


def _pack_text(pack: Pack) -> Safe:
    return heading(pack.title, pack.description)


def _nothing() -> Safe:
    return empty_state(
        "No models are loaded",
        "Try a demo, whose small models are ready to be merged, or pick checkpoints of your own.",
    )
