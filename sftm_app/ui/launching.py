"""How Gradio is started: reachable from this machine only unless a door is opened, and sending nothing elsewhere."""

from __future__ import annotations

from typing import Any

from starlette.middleware import Middleware

from sftm_app.ui.guard import LocalOnly
from sftm_app.ui.listening import Door, Visitors
from sftm_app.ui.settings import Settings
from sftm_app.ui.theme import launch_look
from sftm_app.ui.uploads import FOLDER
from sftm_app.ui.widgets.gradio_internals import NO_TRIAL

MAX_UPLOAD = "20mb"


def launch_options(settings: Settings, door: Door | None = None) -> dict[str, Any]:
    """The options of `gr.Blocks.launch`. door: how others get in; None for this machine alone."""
    middleware = [Middleware(LocalOnly)]
    if door is not None:
        uploads = settings.output_dir / FOLDER
        middleware = [Middleware(LocalOnly, door.hosts), Middleware(Visitors, door.token, uploads)]
    return {
        **launch_look(),
        "server_name": door.address if door else "127.0.0.1",
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
        **NO_TRIAL,
        "mcp_server": False,
        "app_kwargs": {"middleware": middleware},
    }
