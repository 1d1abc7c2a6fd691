"""The bar at the top: name and icon, the workspace (base and tasks in their colours), device and memory."""

from __future__ import annotations

from collections.abc import Sequence

from sftm_app.plots.style import task_colour
from sftm_app.resources import asset_path
from sftm_app.ui.widgets.html import Safe, chip, join, safe


def header_bar(base: str | None = None, tasks: Sequence[str] = (), device: str = "", memory: str = "") -> Safe:
    """HTML of the header bar. base None: no workspace is open. Tasks take their colours from their order."""
    # The icon is a bundled file of ours, not somebody's text.
    icon = Safe(asset_path("icon.svg").read_text(encoding="utf-8"))
    if base is None:
        workspace: Safe = Safe('<span class="sf-header-none">No models loaded</span>')
    else:
        named = [chip(name, task_colour(index), title=f"task {index + 1}: {name}") for index, name in enumerate(tasks)]
        workspace = join([chip(base, title=f"base: {base}"), *named])
    machine = join([chip(text) for text in (device, memory) if text])
    return Safe(
        f'<div class="sf-header"><div class="sf-brand"><span class="sf-icon">{icon}</span>'
        f'<span class="sf-brand-name">{safe("SFTM Studio")}</span></div>'
        f'<div class="sf-header-workspace" aria-label="Workspace">{workspace}</div>'
        f'<div class="sf-header-machine">{machine}<button type="button" class="sf-tool sf-theme" data-sf-theme '
        f'aria-label="Switch between dark and light" title="Switch between dark and light"></button></div></div>'
    )
