"""How Gradio is started: reachable from this machine only, and sending nothing elsewhere."""

from __future__ import annotations

from typing import Any

from starlette.middleware import Middleware

from sftm_app.ui.guard import LocalOnly
from sftm_app.ui.settings import Settings
from sftm_app.ui.theme import launch_look

MAX_UPLOAD = "20mb"
UPLOADS_KEPT_S = 24 * 3600


def launch_options(settings: Settings) -> dict[str, Any]:
    """The options of `gr.Blocks.launch`."""
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
        "mcp_server": False,
        "app_kwargs": {"middleware": [Middleware(LocalOnly)]},
    }
