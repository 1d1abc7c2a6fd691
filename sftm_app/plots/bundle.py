"""Where the plotly.js that came with plotly lies, so that figures are drawn without a network."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from sftm_app.errors import SFTMError


def plotly_js_path() -> Path:
    """The minified plotly.js of the installed plotly package. Raises SFTMError when the package lacks it."""
    spec = find_spec("plotly")
    for place in (spec.submodule_search_locations if spec else None) or ():
        path = Path(place) / "package_data" / "plotly.min.js"
        if path.is_file():
            return path.resolve()
    raise SFTMError("plotly.min.js is missing from the installed plotly package. Install plotly 7 again.")
