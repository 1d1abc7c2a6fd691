"""The app: header, tabs, and how it is served."""

from __future__ import annotations

import contextlib
import os
import threading
import webbrowser
from typing import Any

import gradio as gr
import psutil
from starlette.middleware import Middleware

from sftm_app.checkpoints.hub_names import short_name
from sftm_app.errors import InputError, SFTMError
from sftm_app.ui import evaluate_tab, inspect_tab, merge_tab, models_tab
from sftm_app.ui.guard import LocalOnly
from sftm_app.ui.handlers import sentences
from sftm_app.ui.settings import Settings
from sftm_app.ui.studio import Studio
from sftm_app.ui.theme import launch_look
from sftm_app.ui.widgets.header import header_bar
from sftm_app.ui.widgets.html import Safe
from sftm_app.ui.workspace import Workspace, restore

MAX_UPLOAD = "20mb"
UPLOADS_KEPT_S = 24 * 3600


def build(studio: Studio) -> gr.Blocks:
    """All tabs in one page. Each follows the workspace, which is restored when the page opens."""
    with gr.Blocks(
        title="SFTM Studio", analytics_enabled=False, delete_cache=(3600, UPLOADS_KEPT_S), fill_width=True
    ) as demo:
        workspace = gr.State(Workspace())
        header = gr.HTML(header_html(studio, Workspace()), apply_default_css=False, elem_id="header")
        with gr.Tabs(elem_id="tabs") as tabs:
            with gr.Tab("Models", id="models"):
                models_tab.build(studio, workspace, tabs, demo)
            with gr.Tab("Inspect", id="inspect"):
                inspect_tab.build(studio, workspace)
            with gr.Tab("Merge", id="merge"):
                run_id = merge_tab.build(studio, workspace)
            with gr.Tab("Evaluate", id="evaluate") as evaluate:
                evaluate_tab.build(studio, workspace, run_id, evaluate)
        workspace.change(sentences(lambda ws: header_html(studio, ws)), workspace, header, show_progress="hidden")
        demo.load(sentences(lambda: restore(studio.settings.output_dir)), None, workspace, show_progress="hidden")
    return demo


def header_html(studio: Studio, ws: Workspace) -> Safe:
    """The header bar: the workspace in its colours, the device, the machine's free memory."""
    free = psutil.virtual_memory().available / 1e9
    base = short_name(ws.base) if ws.ready else None
    return header_bar(base, ws.task_names, str(studio.device), f"{free:.1f} GB free")


def serve(settings: Settings, open_browser: bool = True, block: bool = True) -> gr.Blocks:
    """Start the app on 127.0.0.1 and, unless told otherwise, open the browser and stay until Ctrl-C.

    Raises
        InputError: the port is taken.
    """
    # Uploads go to a folder of our own, not to one that all users of the machine share.
    os.environ.setdefault("GRADIO_TEMP_DIR", str(settings.output_dir / "uploads"))
    studio = Studio(settings)
    demo = build(studio).queue(default_concurrency_limit=4)
    try:
        _, url, _ = demo.launch(prevent_thread_lock=True, **launch_options(settings))
    except OSError:
        raise InputError(
            f"Port {settings.port or 7860} on 127.0.0.1 is taken. Give another one with --port, or leave it out."
        ) from None
    print(f"SFTM Studio is ready: {url}", flush=True)
    print(f"Models are picked from {settings.models_dir}, output goes to {settings.output_dir}. Stop with Ctrl-C.")
    # After the app is up, so that it does not slow the start down; in time for the first click.
    threading.Thread(target=warm_up, args=(studio,), name="warm-up", daemon=True).start()
    if open_browser:
        webbrowser.open(url)
    if block:
        demo.block_thread()
    return demo


def warm_up(studio: Studio) -> None:
    """Do ahead what the first clicks would wait for: transformers' imports, here and in a worker."""
    with contextlib.suppress(SFTMError):
        for pack in studio.packs:
            studio.preflight(models_tab.pack_workspace(pack))
    studio.workers.prepare()


def launch_options(settings: Settings) -> dict[str, Any]:
    """Local only, silent towards the network, nothing shared."""
    return {
        **launch_look(),
        "server_name": "127.0.0.1",
        "server_port": settings.port,
        "quiet": True,
        "share": False,
        "inbrowser": False,
        "show_error": False,
        "footer_links": [],
        "enable_monitoring": False,
        "run_history": False,
        "strict_cors": True,
        "max_file_size": MAX_UPLOAD,
        "ssr_mode": False,
        "app_kwargs": {"middleware": [Middleware(LocalOnly)]},
    }
