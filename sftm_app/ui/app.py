"""The app: header, tabs, and how it is served."""

from __future__ import annotations

import contextlib
import os
import threading
import webbrowser
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import gradio as gr
import psutil
from starlette.middleware import Middleware

from sftm_app.errors import InputError, SFTMError
from sftm_app.session import open_session
from sftm_app.ui.address import workspace_from_query
from sftm_app.ui.evaluate.tab import EvaluateTab
from sftm_app.ui.guard import LocalOnly
from sftm_app.ui.handlers import QUIET, Updates, Values, handle, show_warning
from sftm_app.ui.inspect.tab import InspectTab
from sftm_app.ui.loading import pack_workspace
from sftm_app.ui.merging.tab import MergeTab
from sftm_app.ui.models.tab import ModelsTab
from sftm_app.ui.settings import Settings
from sftm_app.ui.studio import Studio
from sftm_app.ui.theme import launch_look
from sftm_app.ui.view import read_fields, view_from_query
from sftm_app.ui.widgets import AddressBar
from sftm_app.ui.widgets.blocks import block
from sftm_app.ui.widgets.gradio_internals import report_progress_on
from sftm_app.ui.widgets.header import header_bar
from sftm_app.ui.widgets.html import Html
from sftm_app.ui.workspace import Workspace, restore
from sftm_app.weights.hub_names import short_name

MAX_UPLOAD = "20mb"
UPLOADS_KEPT_S = 24 * 3600


@dataclass(frozen=True)
class Tab:
    """A tab of the page: its word in addresses, its title, and what builds it inside its `gr.Tab`."""

    name: str
    title: str
    build: Callable[[Page, gr.Tab], object]


class Page:
    """All tabs on one page. Each follows the workspace, which is restored when the page opens.

    Args:
        studio: what the server holds.
        tabs: the table of tabs.

    Attributes:
        opened: the View that the page was opened with.
        tab: the name of the tab on show.
        built: the tabs by their names.
    """

    def __init__(self, studio: Studio, tabs: Sequence[Tab]) -> None:
        self.studio, self.names = studio, [tab.name for tab in tabs]
        self.built: dict[str, object] = {}
        with gr.Blocks(
            title="SFTM Studio", analytics_enabled=False, delete_cache=(3600, UPLOADS_KEPT_S), fill_width=True
        ) as self.blocks:
            self.workspace, self.opened, self.tab = gr.State(Workspace()), gr.State(None), gr.State(self.names[0])
            self.header = block(header_html(studio, Workspace()), elem_id="header")
            self.address = AddressBar(elem_id="address")
            shown = {}
            with gr.Tabs(elem_id="tabs") as self.tabs:
                for tab in tabs:
                    with gr.Tab(tab.title, id=tab.name) as shown[tab.name]:
                        self.built[tab.name] = tab.build(self, shown[tab.name])
            self._wire(shown)
        report_progress_on(self.address, self.blocks)

    @property
    def inspect(self) -> InspectTab:
        """The Inspect tab."""
        return cast(InspectTab, self.built["inspect"])

    @property
    def merge(self) -> MergeTab:
        """The Merge tab."""
        return cast(MergeTab, self.built["merge"])

    def _wire(self, tabs: dict[str, gr.Tab]) -> None:
        for name, tab in tabs.items():
            chosen = tab.select(partial(self.note_tab, name), None, self.tab, queue=False, **QUIET)
            self.inspect.chains.then_address(chosen)
        used = self.inspect.panels.what_if.use.click(
            handle(self.use_for_merge), self.inspect.panels.inputs, {*self.merge.settings, self.tabs}, **QUIET
        )
        self.merge.preview_after(used)
        self.workspace.change(handle(self.show_header), {self.workspace}, self.header, **QUIET)
        self.blocks.load(handle(self.open), None, {self.workspace, self.opened, self.tab, self.tabs}, **QUIET)

    def open(self, request: gr.Request) -> Updates:
        """Open what the page's address names, otherwise the workspace that was loaded last."""
        query = read_fields(str(request.query_params))
        last = restore(self.studio.settings.output_dir)
        try:
            ws = workspace_from_query(self.studio, query) or last
        except SFTMError as error:
            # The view belongs to the models of the address; on others it would show something that nobody asked for.
            show_warning(str(error), "This address cannot be opened")
            return {self.workspace: last, self.opened: None, **self._select(self.names[0])}
        asked = view_from_query({name: values[0] for name, values in query.items()}, len(ws.tasks))
        for problem in asked.problems:
            show_warning(problem)
        name = asked.view.tab or self.names[0]
        if name not in self.names:
            show_warning(f"The address names a tab {name!r}, which this page does not have.")
            name = self.names[0]
        return {self.workspace: ws, self.opened: asked.view, **self._select(name)}

    def _select(self, name: str) -> Updates:
        return {self.tab: name, self.tabs: gr.Tabs(selected=name)}

    def note_tab(self, name: str) -> Updates:
        """Remember which tab is on show, for the address."""
        return {self.tab: name}

    def use_for_merge(self, values: Values) -> Updates:
        """Show the settings of the what-if on the Merge tab."""
        state = self.inspect.panels.read(values)
        return {**self.merge.write(state.ws, state.settings), self.tabs: gr.Tabs(selected="merge")}

    def show_header(self, values: Values) -> Updates:
        """Name the models in the header."""
        return {self.header: header_html(self.studio, values[self.workspace])}


# To add a tab, write a file and add a line here. A tab may use those before it, see `Page.built`.
TABS = (
    Tab("models", "Models", lambda page, own: ModelsTab(page.studio, page.workspace, page.tabs, page.blocks)),
    Tab(
        "inspect",
        "Inspect",
        lambda page, own: InspectTab(page.studio, page.workspace, page.opened, page.tab, page.address),
    ),
    Tab("merge", "Merge", lambda page, own: MergeTab(page.studio, page.workspace)),
    Tab("evaluate", "Evaluate", lambda page, own: EvaluateTab(page.studio, page.workspace, page.merge.run.run_id, own)),
)


def header_html(studio: Studio, ws: Workspace) -> Html:
    """The header bar: the workspace in its colours, the device, the machine's free memory."""
    free = psutil.virtual_memory().available / 1e9
    base = short_name(ws.base) if ws.ready else None
    return header_bar(base, ws.task_names, str(studio.device), f"{free:.1f} GB free")


def serve(settings: Settings, open_browser: bool = True, block: bool = True) -> gr.Blocks:
    """Start the app on 127.0.0.1, open the browser, and stay until Ctrl-C.

    Args:
        open_browser: False leaves the browser alone.
        block: False returns as soon as the app is up.

    Raises:
        InputError: the port is taken.
    """
    # Uploads go to a folder of our own, not to one that all users of the machine share.
    os.environ.setdefault("GRADIO_TEMP_DIR", str(settings.output_dir / "uploads"))
    studio = Studio(settings, open_session(settings.device))
    blocks: gr.Blocks = Page(studio, TABS).blocks.queue(default_concurrency_limit=4)
    try:
        _, url, _ = blocks.launch(prevent_thread_lock=True, **launch_options(settings))
    except OSError:
        port = settings.port or 7860
        raise InputError(
            f"Port {port} on 127.0.0.1 is taken. Give another one with --port, or leave the option out."
        ) from None
    print(f"SFTM Studio is ready: {url}", flush=True)
    print(f"Models are picked from {settings.models_dir}, output goes to {settings.output_dir}. Stop with Ctrl-C.")
    # After the start, so that it does not slow it down; in time for the first click.
    threading.Thread(target=warm_up, args=(studio,), name="warm-up", daemon=True).start()
    if open_browser:
        webbrowser.open(url)
    if block:
        blocks.block_thread()
    return blocks


def warm_up(studio: Studio) -> None:
    """Do in advance what the first clicks would wait for: transformers' imports, here and in a worker."""
    with contextlib.suppress(SFTMError):
        for pack in studio.packs:
            studio.preflight(pack_workspace(pack))
    studio.workers.prepare()


def launch_options(settings: Settings) -> dict[str, Any]:
    """Reachable from this machine only, and sending nothing elsewhere."""
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
