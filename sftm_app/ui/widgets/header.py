"""The bar at the top: name and icon, the workspace (base and tasks in their colours), device and memory."""

from __future__ import annotations

from collections.abc import Sequence

from sftm_app.plots.style import task_colour
from sftm_app.resources import asset_path
from sftm_app.ui.widgets.html import Html, chip, join


def header_bar(base: str | None = None, tasks: Sequence[str] = (), device: str = "", memory: str = "") -> Html:
    """HTML of the header bar. base: None while nothing is loaded."""
    # A bundled file, not a text from elsewhere.
    icon = Html(asset_path("icon.svg").read_text(encoding="utf-8"))
    if base is None:
        workspace = Html('<span class="sf-header-none">No models loaded</span>')
    else:
        named = [chip(name, task_colour(index), title=f"task {index + 1}: {name}") for index, name in enumerate(tasks)]
        workspace = join([chip(base, title=f"base: {base}"), *named])
    return Html(
        '<div class="sf-header"><div class="sf-brand"><span class="sf-icon">{}</span>'
        '<span class="sf-brand-name">SFTM Studio</span></div>'
        '<div class="sf-header-workspace" aria-label="Workspace">{}</div>'
        '<div class="sf-header-machine">{}<button type="button" class="sf-tool sf-theme" data-sf-theme '
        'aria-label="Switch between dark and light" title="Switch between dark and light"></button></div></div>'
    ).format(icon, workspace, join(chip(text) for text in (device, memory) if text))
