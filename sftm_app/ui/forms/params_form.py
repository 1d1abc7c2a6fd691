"""The controls of every merge method, made from what the methods declare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import gradio as gr

from sftm_app.methods import METHODS, get_method
from sftm_app.methods.params import Control, controls
from sftm_app.methods.settings import MergeSettings, merge_settings
from sftm_app.planning.recipe import Recipe
from sftm_app.ui.forms.rank_slider import RankSlider, amount_update
from sftm_app.ui.handlers import QUIET, Updates, Values, handle
from sftm_app.ui.wording import format_rank


class SingleField:
    """A parameter with one component: a choice, a number, or a rank that is typed."""

    def __init__(self, control: Control, default: Any, elem_id: str) -> None:
        common = {"label": control.label, "info": control.help, "elem_id": elem_id}
        self._is_rank = control.kind == "rank"
        self._component: Any
        if control.kind == "choice":
            self._component = gr.Radio(list(control.choices), value=default, **common)
        elif self._is_rank:
            self._component = gr.Textbox(value=format_rank(default), max_lines=1, **common)
        else:
            self._component = gr.Slider(control.minimum, control.maximum, value=default, step=control.step, **common)
        self.components: tuple[Any, ...] = (self._component,)

    def read(self, values: Values) -> Any:
        """The parameter, unchecked."""
        return values[self._component]

    def write(self, value: Any) -> Updates:
        """Show this value of the parameter."""
        return {self._component: format_rank(value) if self._is_rank else value}


Field = SingleField | RankSlider


class ParamsForm:
    """The choice of a method and, for each method, a group of controls; only the chosen method's group is visible.

    Args:
        live: ranks are on sliders instead of typed.
        prefix: of the elements' ids, so that a page can hold several forms.

    Attributes:
        inputs: the choice of the method and the components of all parameters.
        rank_sliders: the ranks of all methods, in a form that is live.
    """

    def __init__(self, live: bool = False, prefix: str = "") -> None:
        first = Recipe.method
        self.method = gr.Radio(
            [(method.title, method.name) for method in METHODS.values()],
            value=first,
            label="Method",
            info=METHODS[first].summary,
            elem_id=f"{prefix}method",
        )
        self._groups: dict[str, gr.Group] = {}
        self._fields: dict[str, dict[str, Field]] = {}
        for name, method in METHODS.items():
            default = method.params()
            with gr.Group(visible=name == first and bool(controls(method.params))) as self._groups[name]:
                self._fields[name] = {
                    field: _field(control, getattr(default, field), f"{prefix}{name}-{field}", live)
                    for field, control in controls(method.params).items()
                }
        every = [field for fields in self._fields.values() for field in fields.values()]
        self.inputs: set[Any] = {self.method, *(component for field in every for component in field.components)}
        self.rank_sliders = [field for field in every if isinstance(field, RankSlider)]
        self.method.change(
            handle(self._follow), {self.method}, {self.method, *self._groups.values()}, queue=False, **QUIET
        )

    def read(self, values: Values, weights: Sequence[float]) -> MergeSettings:
        """The settings that the controls describe.

        Raises:
            RecipeError: a control holds something that is not understood, or a weight is not a positive number.
        """
        method = get_method(values[self.method]).name
        return merge_settings(
            method, {name: field.read(values) for name, field in self._fields[method].items()}, weights
        )

    def write(self, settings: MergeSettings) -> Updates:
        """Show these settings; the controls of other methods stay as they are."""
        updates: Updates = {self.method: settings.method}
        for name, value in asdict(settings.params).items():
            updates |= self._fields[settings.method][name].write(value)
        return updates

    def scale_counts(self, settings: MergeSettings, n_features: int) -> Updates:
        """Ranks of these settings that are counts, on sliders that end at `n_features`."""
        updates: Updates = {}
        for name, field in self._fields[settings.method].items():
            rank = getattr(settings.params, name)
            if isinstance(field, RankSlider) and isinstance(rank, int):
                updates[field.amount] = amount_update("count", rank, n_features)
        return updates

    def _follow(self, values: Values) -> Updates:
        chosen = get_method(values[self.method])
        shown: Mapping[Any, Any] = {
            group: gr.update(visible=name == chosen.name and bool(self._fields[name]))
            for name, group in self._groups.items()
        }
        return {self.method: gr.update(info=chosen.summary), **shown}


def _field(control: Control, default: Any, elem_id: str, live: bool) -> Field:
    if control.kind == "rank" and live:
        return RankSlider(control.label, default, elem_id)
    return SingleField(control, default, elem_id)
