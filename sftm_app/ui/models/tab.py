"""Models: try a demo, or pick base and tasks; a card per checkpoint; what preflight found, in sentences."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import gradio as gr

from sftm_app.errors import SFTMError
from sftm_app.evaluation.packs import Pack
from sftm_app.plots.style import task_colour
from sftm_app.preflight.matching import Match
from sftm_app.ui.handlers import QUIET, Updates, Values, handle
from sftm_app.ui.loading import load_own, pack_workspace, remember
from sftm_app.ui.models.hub_panel import HubPanel
from sftm_app.ui.models.picker import Picker
from sftm_app.ui.models.roles_panel import RolesPanel
from sftm_app.ui.models.tokenizer_panel import TokenizerPanel
from sftm_app.ui.studio import Studio
from sftm_app.ui.widgets.blocks import block, section
from sftm_app.ui.widgets.html import Html, card, cards, chip, empty_state, facts, notice, stack
from sftm_app.ui.workspace import Workspace, restore
from sftm_app.units import format_bytes
from sftm_app.weights.checkpoint import Checkpoint
from sftm_app.weights.hub_names import hub_name, short_name

NEXT_STEPS = (("Inspect the layers", "inspect"), ("Merge the tasks", "merge"), ("Try the models", "evaluate"))
MOST_CLASSES = 6


class ModelsTab:
    """The tab. What it loads goes into `workspace`, and the rest of the app follows that."""

    def __init__(self, studio: Studio, workspace: gr.State, tabs: gr.Tabs, page: gr.Blocks) -> None:
        self.studio, self.workspace, self.tabs = studio, workspace, tabs
        # At the top, so that the next step is in sight once models are loaded, however many there are.
        with gr.Row(visible=False, elem_id="next-steps") as self.next:
            for title, tab in NEXT_STEPS:
                gr.Button(title).click(partial(self.open_tab, tab), None, tabs, queue=False, **QUIET)
        demos = self._lay_out_pickers(page)
        self.report = block(_nothing(), elem_id="preflight")
        TokenizerPanel(studio, workspace)
        RolesPanel(studio, workspace)
        self.hub = HubPanel(studio, workspace, page)
        for pack, demo in demos:
            demo.click(handle(partial(self.load_demo, pack)), None, workspace, **QUIET)
        loaded = {workspace, self.report}
        self.picker.load.click(handle(self.load_picked), self.picker.pickers, loaded, show_progress="minimal")
        workspace.change(handle(self.show), {workspace}, {self.report, self.next}, **QUIET)

    def _lay_out_pickers(self, page: gr.Blocks) -> list[tuple[Pack, gr.Button]]:
        demos = []
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=280):
                for number, pack in enumerate(self.studio.packs):
                    section(pack.title, pack.description)
                    kind = "secondary" if number else "primary"
                    button = gr.Button(f"Try the {pack.name} demo", variant=kind, elem_id=f"try-{pack.name}")
                    demos.append((pack, button))
            with gr.Column(scale=3, min_width=320):
                self.picker = Picker(self.studio, self.workspace, page)
        return demos

    def open_tab(self, tab: str) -> Updates:
        """Show another tab."""
        return {self.tabs: gr.Tabs(selected=tab)}

    def load_demo(self, pack: Pack) -> Updates:
        """Open a demo pack and remember it."""
        return {self.workspace: remember(self.studio, pack_workspace(pack))}

    def load_picked(self, values: Values) -> Updates:
        """Check and load the picked checkpoints, or say why they cannot be merged."""
        try:
            loaded = load_own(self.studio, values[self.picker.base] or "", values[self.picker.tasks] or [])
        except SFTMError as error:
            return {self.report: refused(error, restore(self.studio.settings.output_dir))}
        return {self.workspace: loaded, self.report: preflight_html(self.studio, loaded)}

    def show(self, values: Values) -> Updates:
        """Show what is loaded."""
        ws = values[self.workspace]
        return {self.report: preflight_html(self.studio, ws), self.next: gr.update(visible=self.studio.usable(ws))}


def refused(error: SFTMError, still: Workspace | None = None) -> Html:
    """Why nothing was loaded, one line for each problem; and what is still loaded."""
    problems = notice("error", "These checkpoints cannot be merged", items=str(error).split("\n"))
    if still is None or not still.ready:
        return problems
    before = f"{short_name(still.base)} with {', '.join(still.task_names)}"
    return stack(problems, notice("info", "The previous models are still loaded", before))


def preflight_html(studio: Studio, workspace: Workspace) -> Html:
    """Cards of base and tasks with what preflight found."""
    if not workspace.ready:
        return _nothing()
    try:
        found = studio.preflight(workspace)
    except SFTMError as error:
        return refused(error)
    if found.needs_tokenizer:
        return notice("warning", "Choose whose tokenizer the merged model has", items=found.problems)
    if found.problems:
        return notice("error", "These checkpoints cannot be merged", items=found.problems)
    n_tasks = "1 task fits" if len(found.tasks) == 1 else f"{len(found.tasks)} tasks fit"
    matched = f"{len(found.base.tensors)} tensors match by name and shape."
    summary = notice("ok", f"{n_tasks} the base", matched, items=found.notes)
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


def _badge(checkpoint: Checkpoint) -> Html:
    if checkpoint.bare:
        return chip("guessed", title="no config.json says what each tensor is", tone="warning")
    return chip(checkpoint.model_type)


def _facts(checkpoint: Checkpoint, match: Match | None = None) -> Html:
    stored = f"{format_bytes(checkpoint.n_bytes)} {', '.join(checkpoint.dtypes)}"
    # A break opportunity lets a long class name break between its words instead of anywhere.
    words = re.split(
        r"(?<=[a-z])(?=[A-Z])", "bare weights, no config.json" if checkpoint.bare else checkpoint.architecture
    )
    pairs: list[tuple[object, object]] = [
        ("Class", Html("<wbr>").join(words)),
        ("Size", f"{_count(checkpoint.n_parameters)} parameters, {stored}"),
    ]
    labels = list(checkpoint.id2label.values())
    if match is not None and match.heads and labels:
        more = " …" if len(labels) > MOST_CLASSES else ""
        pairs.append(("Classes", f"{len(labels)}: {' · '.join(labels[:MOST_CLASSES])}{more}"))
    return facts(pairs)


def _short(path: Path) -> str:
    fetched, at, commit = (hub_name(path) or "").partition("@")
    return f"{fetched}{at}{commit[:10]}" or "/".join(path.parts[-2:])


def _count(n: int) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if n >= size:
            return f"{n / size:.3g} {unit}"
    return str(n)


def _nothing() -> Html:
    return empty_state(
        "No models are loaded", "Try a demo, which brings small models ready to merge, or pick checkpoints of your own."
    )
