"""The app: header, tabs, and how it is served."""

from __future__ import annotations

import contextlib
import os
import threading
import webbrowser
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import cast
from urllib.parse import urlsplit

import gradio as gr
import psutil

from sftm_app.errors import InputError, SFTMError
from sftm_app.session import open_session
from sftm_app.ui.address import asked_of_tabs, page_to_query, workspace_from_query
from sftm_app.ui.evaluate.tab import EvaluateTab
from sftm_app.ui.handlers import QUIET, Updates, Values, handle, show_warning
from sftm_app.ui.inspect.tab import InspectTab
from sftm_app.ui.keeping import Parts
from sftm_app.ui.launching import launch_options
from sftm_app.ui.listening import Door
from sftm_app.ui.loading import pack_workspace
from sftm_app.ui.merging.recipe_panel import TO_FORM
from sftm_app.ui.merging.saving import finished_run
from sftm_app.ui.merging.tab import MergeTab
from sftm_app.ui.models.tab import ModelsTab
from sftm_app.ui.settings import Settings
from sftm_app.ui.studio import OwnKeeper, Studio
from sftm_app.ui.uploads import KEPT_S, keep_tidy, make_uploads
from sftm_app.ui.view import read_fields
from sftm_app.ui.widgets import AddressBar, AddressPart, parse_address
from sftm_app.ui.widgets.blocks import block
from sftm_app.ui.widgets.gradio_internals import report_progress_on, visitor_of_event
from sftm_app.ui.widgets.header import header_bar
from sftm_app.ui.widgets.html import Html
from sftm_app.ui.workspace import Workspace, restore
from sftm_app.weights.hub_names import short_name


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
        tab: the name of the tab on show.
        parts: what the tabs keep, and their shares of the address.
        built: the tabs by their names.
    """

    def __init__(self, studio: Studio, tabs: Sequence[Tab]) -> None:
        self.studio, self.names = studio, [tab.name for tab in tabs]
        self.built: dict[str, object] = {}
        with gr.Blocks(
            title="SFTM Studio", analytics_enabled=False, delete_cache=(3600, KEPT_S), fill_width=True
        ) as self.blocks:
            self.workspace, self.tab = gr.State(Workspace()), gr.State(self.names[0])
            self.header = block(header_html(studio, Workspace()), elem_id="header")
            self.address, self.place = AddressBar(elem_id="address"), AddressPart("page", flat=True)
            self.parts = Parts(OwnKeeper(studio))
            shown = {}
            with gr.Tabs(elem_id="tabs") as self.tabs:
                for tab in tabs:
                    with gr.Tab(tab.title, id=tab.name) as shown[tab.name]:
                        self.built[tab.name] = tab.build(self, shown[tab.name])
            self.parts.lay_out()
            self._wire(shown)
        report_progress_on(self.address, self.blocks)

    @property
    def models(self) -> ModelsTab:
        """The Models tab."""
        return cast(ModelsTab, self.built["models"])

    @property
    def inspect(self) -> InspectTab:
        """The Inspect tab."""
        return cast(InspectTab, self.built["inspect"])

    @property
    def merge(self) -> MergeTab:
        """The Merge tab."""
        return cast(MergeTab, self.built["merge"])

    @property
    def evaluate(self) -> EvaluateTab:
        """The Evaluate tab."""
        return cast(EvaluateTab, self.built["evaluate"])

    def _wire(self, tabs: dict[str, gr.Tab]) -> None:
        for name, tab in tabs.items():
            outputs = {self.tab, self.place}
            tab.select(handle(partial(self.note_tab, name)), {self.workspace}, outputs, queue=False, **QUIET)
        used = self.inspect.panels.what_if.use.click(
            handle(self.use_for_merge), self.inspect.panels.inputs, {*self.merge.written, self.tabs}, **QUIET
        )
        self.merge.preview_after(used)
        used.then(None, None, None, js=TO_FORM)
        hub = self.models.hub
        proposed = {self.tabs, *hub.proposed}
        self.merge.recipe.missing.change(handle(self.propose_download), {self.merge.recipe.missing}, proposed, **QUIET)
        asked = {self.workspace, self.merge.run.run_id}
        offered = {self.tabs, *self.evaluate.offers}
        chosen = self.merge.run.evaluate.click(handle(self.evaluate_merge), asked, offered, **QUIET)
        self.evaluate.show_table_after(chosen)
        shown = {self.workspace, self.tab}
        self.workspace.change(handle(self.show_page), shown, {self.header, self.place}, **QUIET)
        opened = {self.workspace, self.tab, self.tabs, self.place}
        self.blocks.load(handle(self.open), None, opened, **QUIET)
        self.address.select(handle(self.go), {self.workspace}, opened, **QUIET)

    def open(self, request: gr.Request) -> Updates:
        """Open what the page's address names, otherwise the workspace that was loaded last."""
        return self._open(str(request.query_params), restore(self.studio.settings.output_dir))

    def go(self, values: Values, event: gr.EventData) -> Updates:
        """Open the address to which the person went back or forward."""
        query, only_tab = parse_address(event)
        ws: Workspace = values[self.workspace]
        if only_tab and (name := read_fields(query).get("tab", [""])[0]) in self.names:
            return self._select(ws, name)
        return self._open(query, ws)

    def _open(self, query_text: str, last: Workspace) -> Updates:
        query = read_fields(query_text)
        try:
            ws = workspace_from_query(self.studio, query) or last
        except SFTMError as error:
            # The rest belongs to the models of the address; on others it would show something that nobody asked for.
            show_warning(str(error), "This address cannot be opened")
            return {self.workspace: last, **self._select(last, self.names[0])}
        name = query.get("tab", [""])[0] or self.names[0]
        if name not in self.names:
            show_warning(f"The address names a tab {name[:80]!r}, which this page does not have.")
            name = self.names[0]
        opened = replace(ws, asked=asked_of_tabs(query), visit=last.visit + 1)
        return {self.workspace: opened, **self._select(opened, name)}

    def _select(self, ws: Workspace, name: str) -> Updates:
        return {
            self.tab: name,
            self.tabs: gr.Tabs(selected=name),
            self.place: page_to_query(self.studio, ws, name),
        }

    def note_tab(self, name: str, values: Values) -> Updates:
        """Remember which tab is on show."""
        return {self.tab: name, self.place: page_to_query(self.studio, values[self.workspace], name)}

    def use_for_merge(self, values: Values) -> Updates:
        """Show the settings of the what-if on the Merge tab."""
        state = self.inspect.panels.read(values)
        return {**self.merge.take(state.ws, state.settings), self.tabs: gr.Tabs(selected="merge")}

    def evaluate_merge(self, values: Values) -> Updates:
        """Show the merge on show on the Evaluate tab, ticked with what it is compared with."""
        run = finished_run(self.studio, values[self.merge.run.run_id])
        ws = values[self.workspace]
        if run not in self.studio.runs_of(ws):
            raise InputError("This merge is of other models than those that are loaded. Load these on the Models tab.")
        return {**self.evaluate.offer_merge(ws, run.model), self.tabs: gr.Tabs(selected="evaluate")}

    def propose_download(self, values: Values) -> Updates:
        """Offer to download the models that a recipe names; the person looks at them and downloads them."""
        if values[self.merge.recipe.missing] is None:
            return {}
        _, base, tasks = values[self.merge.recipe.missing]
        return {**self.models.hub.propose(base, tasks), self.tabs: gr.Tabs(selected="models")}

    def show_page(self, values: Values) -> Updates:
        """Name the models in the header and in the address."""
        ws = values[self.workspace]
        place = page_to_query(self.studio, ws, values[self.tab])
        return {self.header: header_html(self.studio, ws), self.place: place}


# To add a tab, write a file and add a line here. A tab may use those before it, see `Page.built`.
TABS = (
    Tab("models", "Models", lambda page, own: ModelsTab(page.studio, page.workspace, page.tabs, page.blocks)),
    Tab(
        "inspect",
        "Inspect",
        lambda page, own: InspectTab(page.studio, page.workspace, page.parts),
    ),
    Tab("merge", "Merge", lambda page, own: MergeTab(page.studio, page.workspace, page.parts)),
    Tab("evaluate", "Evaluate", lambda page, own: EvaluateTab(page.studio, page.workspace, own, page.parts)),
)


def header_html(studio: Studio, ws: Workspace) -> Html:
    """The header bar: the workspace in its colours, the device, the machine's free memory."""
    free = psutil.virtual_memory().available / 1e9
    base = short_name(ws.base) if ws.ready else None
    return header_bar(base, ws.task_names, str(studio.device), f"{free:.1f} GB free")


def serve(settings: Settings, open_browser: bool = True, block: bool = True, door: Door | None = None) -> gr.Blocks:
    """Start the app, on 127.0.0.1 unless a door is opened, open the browser, and stay until Ctrl-C.

    Args:
        settings: folders, device and port.
        open_browser: False leaves the browser alone.
        block: False returns as soon as the app is up.
        door: lets others in, who are told apart; see `listening`.

    Raises:
        InputError: the port is taken.
    """
    # Uploads go to a folder of our own, not to one that all users of the machine share.
    uploads, stop = make_uploads(settings.output_dir), threading.Event()
    os.environ.setdefault("GRADIO_TEMP_DIR", str(uploads))
    threading.Thread(target=keep_tidy, args=(uploads, stop), name="uploads", daemon=True).start()
    studio = Studio(settings, open_session(settings.device), visitor_of_event if door else None)
    blocks: gr.Blocks = Page(studio, TABS).blocks.queue(default_concurrency_limit=4)
    try:
        _, url, _ = blocks.launch(prevent_thread_lock=True, **launch_options(settings, door))
    except OSError:
        port = settings.port or 7860
        raise InputError(
            f"Port {port} on {door.address if door else '127.0.0.1'} is taken. Give another one with --port, or "
            "leave the option out."
        ) from None
    if door is None:
        print(f"SFTM Studio is ready: {url}", flush=True)
    else:
        url, *others = door.urls(urlsplit(url).port or 7860)
        print(f"SFTM Studio is ready for everybody who has this address: {url}", flush=True)
        print(*(f"  or {other}" for other in others), sep="\n", flush=True)
    print(f"Models are picked from {settings.models_dir}, output goes to {settings.output_dir}. Stop with Ctrl-C.")
    # After the start, so that it does not slow it down; in time for the first click.
    threading.Thread(target=warm_up, args=(studio,), name="warm-up", daemon=True).start()
    if open_browser:
        webbrowser.open(url)
    if block:
        try:
            blocks.block_thread()
        finally:
            stop.set()
    return blocks


def warm_up(studio: Studio) -> None:
    """Do in advance what the first clicks would wait for: transformers' imports, here and in a worker."""
    with contextlib.suppress(SFTMError):
        for pack in studio.packs:
            studio.preflight(pack_workspace(pack))
    studio.workers.prepare()
