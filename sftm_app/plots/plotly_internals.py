"""The one place that relies on undocumented behaviour of plotly.

The tests of this file check what it relies on, so that they fail first when a new version of plotly changes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from sftm_app.errors import SFTMError

CHECKED_WITH = "7.1.0"


def unchecked_figure(data: Sequence[Mapping[str, Any]], layout: Mapping[str, Any]) -> go.Figure:
    """A figure whose settings plotly does not check.

    The checks take most of a figure's time, and one click redraws five figures. A test has plotly check every plot.

    Args:
        data: the traces.
        layout: the layout. One with a template of its own also keeps plotly's large default template out.
    """
    return go.Figure({"data": list(data), "layout": dict(layout)}, _validate=False)


def plotly_js_path() -> Path:
    """The minified plotly.js in the installed package, so that figures are drawn without a network.

    Raises:
        SFTMError: the package lacks it.
    """
    spec = find_spec("plotly")
    for folder in (spec.submodule_search_locations if spec else None) or ():
        path = Path(folder) / "package_data" / "plotly.min.js"
        if path.is_file():
            return path.resolve()
    raise SFTMError("plotly.min.js is missing from the installed plotly package. Install plotly 7 again.")
