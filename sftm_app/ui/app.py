"""The app: header, tabs, and how it is served."""

from __future__ import annotations

import contextlib
import os
import threading
import webbrowser
from collections.abc import Callable
from typing import Any

import gradio as gr
import psutil
from starlette.middleware import Middleware

from sftm_app.errors import InputError, SFTMError
from sftm_app.ui import loading
from sftm_app.ui.address import workspace_from_query
from sftm_app.ui.evaluate import tab as evaluate_tab
from sftm_app.ui.guard import LocalOnly
from sftm_app.ui.handlers import say_warning, sentences
from sftm_app.ui.inspect import tab as inspect_tab
from sftm_app.ui.inspect.state import InspectState
from sftm_app.ui.merging import tab as merge_tab
from sftm_app.ui.models import tab as models_tab
from sftm_app.ui.settings import Settings
from sftm_app.ui.studio import Studio
from sftm_app.ui.theme import launch_look
from sftm_app.ui.view import TABS, read_fields, view_from_query
from sftm_app.ui.widgets import AddressBar
from sftm_app.ui.widgets.header import header_bar
from sftm_app.ui.widgets.html import Safe
from sftm_app.ui.workspace import Workspace, restore
from sftm_app.weights.hub_names import short_name

MAX_UPLOAD = "20mb"
UPLOADS_KEPT_S = 24 * 3600


def build(studio: Studio) -> gr.Blocks:
    """All tabs in one page. Each follows the workspace, which is restored when the page opens."""
    with gr.Blocks(
        title="SFTM Studio", analytics_enabled=False, delete_cache=(3600, UPLOADS_KEPT_S), fill_width=True
    ) as demo:
        workspace, opened, tab = gr.State(Workspace()), gr.State(None), gr.State(TABS[0])
        header = gr.HTML(header_html(studio, Workspace()), apply_default_css=False, elem_id="header")
        address = AddressBar(elem_id="address")
        with gr.Tabs(elem_id="tabs") as tabs:
            with gr.Tab("Models", id="models") as models:
                models_tab.build(studio, workspace, tabs, demo)
            with gr.Tab("Inspect", id="inspect") as inspect:
                looking = inspect_tab.build(studio, workspace, opened, tab, address)
            with gr.Tab("Merge", id="merge") as merge:
                merging = merge_tab.build(studio, workspace)
            with gr.Tab("Evaluate", id="evaluate") as evaluate:
                evaluate_tab.build(studio, workspace, merging.run_id, evaluate)
        quick: dict[str, Any] = {"queue": False, "show_progress": "hidden"}
        for name, chosen in zip(TABS, (models, inspect, merge, evaluate), strict=True):
            looking.then_address(chosen.select(lambda name=name: name, None, tab, **quick))
        looking.use.click(
            sentences(lambda *values: use_for_merge(merging, looking.read(values))),
            looking.inputs,
            [*merging.settings, tabs],
            show_progress="hidden",
        )
        workspace.change(sentences(lambda ws: header_html(studio, ws)), workspace, header, show_progress="hidden")
        demo.load(sentences(open_page(studio)), None, [workspace, opened, tab, tabs], show_progress="hidden")
    return demo


def open_page(studio: Studio) -> Callable[[gr.Request], tuple[Any, ...]]:
    """The handler of a page that opens: what its address asks for, else the workspace last loaded.

    Its outputs are the workspace, the view asked for, the tab's name, and the tabs.
    """

    def opening(request: gr.Request) -> tuple[Any, ...]:
        query = read_fields(str(request.query_params))
        last = restore(studio.settings.output_dir)
        try:
            ws = workspace_from_query(studio, query) or last
        except SFTMError as error:
            # A view is of its own models: on others it would show something that nobody asked for.
            say_warning(str(error), "This address cannot be opened")
            return last, None, TABS[0], gr.Tabs(selected=TABS[0])
        asked = view_from_query({name: values[0] for name, values in query.items()}, len(ws.tasks))
        for problem in asked.problems:
            say_warning(problem)
        name = asked.view.tab or TABS[0]
        return ws, asked.view, name, gr.Tabs(selected=name)

    return opening


def use_for_merge(merging: merge_tab.MergeTab, chosen: InspectState) -> tuple[Any, ...]:
    """The what-if's settings on the Merge tab, which is then shown."""
    return *merging.write(chosen.ws, chosen.settings), gr.Tabs(selected="merge")


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
            studio.preflight(loading.pack_workspace(pack))
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
