"""Finds the bundled files: demo packs, style sheet, icon.

A source checkout has them in `assets/` next to the package, a wheel in `sftm_app/assets/`.
"""

from __future__ import annotations

from pathlib import Path

from sftm_app.errors import SFTMError

_PACKAGE = Path(__file__).resolve().parent
_PLACES = (_PACKAGE / "assets", _PACKAGE.parent / "assets")


def asset_path(*parts: str) -> Path:
    """The path of a bundled file or folder; without parts, of the assets folder.

    Raises:
        SFTMError: it is missing, so the installation is incomplete.
    """
    for place in _PLACES:
        path = place.joinpath(*parts)
        if path.exists():
            return path
    wanted = "/".join(("assets", *parts))
    raise SFTMError(f"The bundled file {wanted} is missing from this installation. Install SFTM Studio again.")
