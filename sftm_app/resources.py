"""Where the bundled files (demo packs, style sheet, icon) lie.

A source checkout keeps them in `assets/` beside the package; a wheel carries them inside it, as `sftm_app/assets/`.
"""

from __future__ import annotations

from pathlib import Path

from sftm_app.errors import SFTMError

_PACKAGE = Path(__file__).resolve().parent
_PLACES = (_PACKAGE / "assets", _PACKAGE.parent / "assets")


def asset_path(*parts: str) -> Path:
    """Path of a bundled file or folder; without parts, of the first assets folder that exists.

    Raises SFTMError when it is in neither place: the installation is incomplete.
    """
    for place in _PLACES:
        path = place.joinpath(*parts)
        if path.exists():
            return path
    wanted = "/".join(("assets", *parts))
    raise SFTMError(f"The bundled file {wanted} is missing from this installation. Install SFTM Studio again.")
