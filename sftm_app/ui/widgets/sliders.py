"""One slider per task, in the tasks' colours."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from sftm_app.ui.widgets.gradio_internals import Widget

_MOST_TEXT = 1 << 16
_Value = Annotated[float, Field(strict=True, allow_inf_nan=False)]
_ROWS = TypeAdapter(Annotated[list[tuple[str, str, _Value]], Field(max_length=1000)])


class Sliders(Widget):
    """Named sliders. Set its value to `slider_rows(...)`; handlers read it with `slider_values`.

    `input` fires while a slider moves, `release` when it is let go or moved by a key. minimum, maximum and step hold
    for all of them.
    """

    template = '<div class="sf-sliders" role="group"></div>'
    scripts = ("sliders.js",)

    def __init__(
        self,
        value: str = "[]",
        *,
        label: str = "Values",
        minimum: float = 0.0,
        maximum: float = 2.0,
        step: float = 0.05,
        **kwargs: Any,
    ) -> None:
        self.minimum, self.maximum, self.step = minimum, maximum, step
        super().__init__(value, label=label, minimum=minimum, maximum=maximum, step=step, **kwargs)


def slider_rows(names: Sequence[str], colours: Sequence[str], values: Sequence[float]) -> str:
    """The widget's value: a row for each name."""
    return json.dumps([list(row) for row in zip(names, colours, values, strict=True)], allow_nan=False)


def slider_values(value: Any, n: int) -> tuple[float, ...] | None:
    """The `n` numbers of the widget's value; None for anything else, for it comes from the browser."""
    if not isinstance(value, str) or len(value) > _MOST_TEXT:
        return None
    try:
        rows = _ROWS.validate_json(value)
    except ValidationError:
        return None
    return tuple(number for _, _, number in rows) if len(rows) == n else None
