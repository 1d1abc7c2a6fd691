"""Controls for one parameter each, which any method that has a parameter of this name uses.

Methods share their controls, because a page with controls for each of them takes seconds to send. Label, help and
limits are those of the chosen method.
"""

from __future__ import annotations

from typing import Any

import gradio as gr

from sftm_app.methods.params import Control
from sftm_app.ui.forms.rank_slider import RankSlider
from sftm_app.ui.handlers import Updates, Values
from sftm_app.ui.widgets import UncheckedRadio, UncheckedSlider

# A slider over a wider range than this cannot be set exactly, so such a number is typed.
WIDEST_SLIDER = 100.0


class SingleSlot:
    """One component: a choice or a number.

    Args:
        control: of a method that has the parameter.
        default: its value at first.
        elem_id: the element's id.
        visible: whether it is shown at first.
    """

    def __init__(self, control: Control, default: Any, elem_id: str, visible: bool) -> None:
        common = {"label": control.label, "info": control.help, "elem_id": elem_id, "visible": visible}
        self._is_choice = control.kind == "choice"
        self._component: Any
        if self._is_choice:
            self._component = UncheckedRadio(list(control.choices), value=default, **common)
        elif control.maximum - control.minimum > WIDEST_SLIDER:
            self._component = gr.Number(value=default, **common)
        else:
            self._component = UncheckedSlider(
                control.minimum, control.maximum, value=default, step=control.step, **common
            )
        self.components: tuple[Any, ...] = (self._component,)

    def read(self, values: Values) -> Any:
        """The parameter, unchecked."""
        return values[self._component]

    def show(self, control: Control, value: Any, visible: bool = True) -> Updates:
        """Show a method's parameter of this name with this value. visible: False where it does nothing."""
        shown = {"label": control.label, "info": control.help, "visible": visible}
        if self._is_choice:
            shown["choices"] = list(control.choices)
        elif isinstance(self._component, gr.Slider):
            shown |= {"minimum": control.minimum, "maximum": control.maximum, "step": control.step}
        return {self._component: gr.update(value=value, **shown)}

    def toggle(self, visible: bool) -> Updates:
        """Show it or hide it, with the value that it has."""
        return {self._component: gr.update(visible=visible)}


Slot = SingleSlot | RankSlider


def make_slot(control: Control, default: Any, elem_id: str, visible: bool) -> Slot:
    """A slot; ranks are on sliders. Arguments as of SingleSlot."""
    if control.kind == "rank":
        return RankSlider(control.label, default, elem_id, visible)
    return SingleSlot(control, default, elem_id, visible)
