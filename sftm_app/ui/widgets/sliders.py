"""One slider a task, in the tasks' colours: as many as there are tasks."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

_SCRIPT = Path(__file__).with_suffix(".js")
_MOST_ROWS = 1000
_MOST_TEXT = 1 << 16

# Static on purpose, as in PlotlyView.
_TEMPLATE = '<div class="sf-sliders" role="group"></div>'


class Sliders(gr.HTML):  # type: ignore[misc]
    """Named sliders. Give it `slider_rows(...)`; handlers read it with `slider_values`.

    `input` fires while one moves, `release` when it is let go or moved by a key. minimum, maximum, step: of all.
    """

    def __init__(
        self, *, label: str = "Values", minimum: float = 0.0, maximum: float = 2.0, step: float = 0.05, **kwargs: Any
    ) -> None:
        self.minimum, self.maximum, self.step = minimum, maximum, step
        super().__init__(
            value="[]",
            label=label,
            html_template=_TEMPLATE,
            js_on_load=_SCRIPT.read_text(encoding="utf-8"),
            apply_default_css=False,
            minimum=minimum,
            maximum=maximum,
            step=step,
            **{"padding": False, **kwargs},
        )

    def get_block_name(self) -> str:
        """The front end knows this widget as its parent."""
        return "html"


def slider_rows(names: Sequence[str], colours: Sequence[str], values: Sequence[float]) -> str:
    """The widget's value: a row for each name."""
    rows = [[name, colour, value] for name, colour, value in zip(names, colours, values, strict=True)]
    return json.dumps(rows, allow_nan=False)


def slider_values(value: Any, n: int) -> tuple[float, ...] | None:
    """The `n` numbers of the widget's value; None for anything else, for it comes from the browser."""
    if not isinstance(value, str) or len(value) > _MOST_TEXT:
        return None
    try:
        rows = json.loads(value)
    except (ValueError, RecursionError):
        return None
    if not isinstance(rows, list) or len(rows) != n or n > _MOST_ROWS:
        return None
    numbers = [row[2] for row in rows if isinstance(row, list) and len(row) == 3 and type(row[2]) in (int, float)]
    return tuple(map(float, numbers)) if len(numbers) == n and all(map(math.isfinite, numbers)) else None
