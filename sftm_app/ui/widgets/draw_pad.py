"""A pad to draw a glyph on: white ink on black in both themes; the pixels reach the server in a tenth of a second."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sftm_app.ui.widgets.gradio_internals import Widget

MOST_SIDE = 256
_FORMAT = re.compile(r"gray8:([1-9]\d{0,3})x([1-9]\d{0,3}):([A-Za-z0-9+/]+={0,2})")


class DrawPad(Widget):
    """Drawing pad. Its value is text ("gray8:WxH:base64"); handlers read it with `decode_drawing`.

    To show a sample, return a uint8 array (H, W), or `encode_drawing` of it. `input` fires for what the person draws,
    undoes or clears (an empty pad gives `None`); `change` also fires for values set from Python. brush: width of the
    line as a fraction of the side.
    """

    template = """
<div class="sf-pad">
  <div class="sf-pad-frame">
    <canvas class="sf-pad-canvas" width="336" height="336" tabindex="0" role="img"></canvas>
    <span class="sf-pad-hint" aria-hidden="true">Draw here</span>
  </div>
  <div class="sf-pad-buttons">
    <button type="button" class="sf-tool sf-pad-undo" disabled title="Undo the last stroke (Ctrl+Z)">Undo</button>
    <button type="button" class="sf-tool sf-pad-clear" disabled title="Clear the pad">Clear</button>
  </div>
</div>
"""
    scripts = ("draw_pad.js",)

    def __init__(
        self, value: Any = None, *, label: str = "Drawing pad", brush: float = 0.085, out_size: int = 112, **kwargs: Any
    ) -> None:
        self.brush, self.out_size = brush, out_size
        super().__init__(value, label=label, brush=brush, out_size=out_size, **kwargs)

    def preprocess(self, payload: Any) -> str | None:
        """What the browser sent, if it has the right form; None for an empty pad and for anything else."""
        return payload if decode_drawing(payload) is not None else None

    def postprocess(self, value: Any) -> str | None:
        """None, an array (H, W) or encoded text -> encoded text."""
        if value is None or (isinstance(value, str) and not value):
            return None
        return value if isinstance(value, str) else encode_drawing(value)


def encode_drawing(image: NDArray[np.uint8]) -> str:
    """Grey image (H, W), uint8, sides up to 256, white ink on black -> the pad's text."""
    if image.ndim != 2 or image.dtype != np.uint8 or not 0 < min(image.shape) <= max(image.shape) <= MOST_SIDE:
        raise ValueError(f"encode_drawing: expected uint8 (H, W) up to {MOST_SIDE}, found {image.dtype} {image.shape}.")
    height, width = image.shape
    return f"gray8:{width}x{height}:{base64.b64encode(image.tobytes()).decode()}"


def decode_drawing(value: Any) -> NDArray[np.uint8] | None:
    """The pad's text -> uint8 array (H, W), white ink on black. None if empty or malformed (it is browser input)."""
    # The size is bounded before the pattern runs and before anything is allocated.
    if not isinstance(value, str) or not value or len(value) > 32 + 4 * (MOST_SIDE * MOST_SIDE // 3 + 1):
        return None
    found = _FORMAT.fullmatch(value)
    if found is None:
        return None
    width, height = int(found[1]), int(found[2])
    if width > MOST_SIDE or height > MOST_SIDE:
        return None
    try:
        pixels = base64.b64decode(found[3], validate=True)
    except (binascii.Error, ValueError):
        return None
    if len(pixels) != width * height:
        return None
    return np.frombuffer(pixels, dtype=np.uint8).reshape(height, width).copy()
