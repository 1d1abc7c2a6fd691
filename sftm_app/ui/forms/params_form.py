"""The choice of a merge method and its controls, made from what the methods declare."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

import gradio as gr

from sftm_app.errors import RecipeError
from sftm_app.methods import METHODS, get_method
from sftm_app.methods.params import CommonParams, common_of, controls, values_of
from sftm_app.methods.settings import MergeSettings, merge_settings
from sftm_app.planning.recipe import Recipe
from sftm_app.ui.forms.method_help import method_html
from sftm_app.ui.forms.rank_slider import RankSlider, amount_update
from sftm_app.ui.forms.slots import Slot, make_slot
from sftm_app.ui.handlers import QUIET, Updates, Values, handle
from sftm_app.ui.widgets import UncheckedDropdown
from sftm_app.ui.widgets.blocks import block

# The settings that every method has. They are folded while they are off.
COMMON = tuple(item.name for item in fields(CommonParams))
_AT_ONCE: dict[str, Any] = {"queue": False, "trigger_mode": "always_last", **QUIET}


class ParamsForm:
    """The choice of a method, what it is for, and a control for each of its parameters.

    Args:
        workspace: its number of tasks decides whether a method fits.
        prefix: of the elements' ids, so that a page can hold several forms.
        instead: a sentence on what is shown while a method does not fit the workspace.

    Attributes:
        inputs: the choice of the method and the components of all parameters.
        outputs: what `write` updates.
        rank_sliders: those of the ranks.
        followed_first: the controls that others have to follow before the settings are read.
        followed: the event after which the controls show the parameters of the method that a person chose.
    """

    def __init__(self, workspace: gr.State, prefix: str = "", instead: str = "") -> None:
        self._workspace, self._instead = workspace, instead
        with gr.Group():
            self.method = UncheckedDropdown(
                [(method.title, method.name) for method in METHODS.values()],
                value=Recipe.method,
                label="Method",
                info="How the changes of the tasks become one.",
                elem_id=f"{prefix}method",
            )
            with gr.Column(elem_classes="sf-about"):
                self._about = block(method_html(METHODS[Recipe.method], 0), elem_id=f"{prefix}about-method")
        # One slot for each name; the same name with another kind of control would be another slot.
        self._slots: dict[tuple[str, str], Slot] = {}
        with gr.Group(visible=_has_own(Recipe.method)) as self._own:
            self._lay_out(False, prefix)
        is_on = _common_is_on(METHODS[Recipe.method].params())
        with gr.Accordion("More settings", open=is_on, elem_id=f"{prefix}more-settings") as self._more:
            self._lay_out(True, prefix)
        components = {component for slot in self._slots.values() for component in slot.components}
        self.inputs: set[Any] = {self.method, *components}
        self.outputs: set[Any] = {*self.inputs, self._about, self._own, self._more}
        self.rank_sliders = [slot for slot in self._slots.values() if isinstance(slot, RankSlider)]
        self.followed_first: set[Any] = {self.method, *(slider.kind for slider in self.rank_sliders)}
        chosen = {self.method, workspace}
        self.followed = self.method.input(handle(self.follow), chosen, self.outputs, **_AT_ONCE)
        choices = [one.input for one in components if isinstance(one, gr.Radio)]
        gr.on(choices, handle(self.hide_unused), self.inputs, components, **_AT_ONCE)
        workspace.change(handle(self._describe), chosen, self._about, **_AT_ONCE)

    def _lay_out(self, common: bool, prefix: str) -> None:
        for method in METHODS.values():
            default = method.params()
            for name, control in controls(method.params).items():
                key = name, control.kind
                if (name in COMMON) == common and key not in self._slots:
                    visible = method.name == Recipe.method or common
                    self._slots[key] = make_slot(control, getattr(default, name), f"{prefix}{name}", visible)

    def _slots_of(self, method: str) -> dict[str, Slot]:
        return {name: self._slots[name, control.kind] for name, control in controls(get_method(method).params).items()}

    def read(self, values: Values, weights: Sequence[float]) -> MergeSettings:
        """The settings that the controls describe.

        Raises:
            RecipeError: a control holds something that is not understood, or a weight is not a positive number.
        """
        method = get_method(values[self.method]).name
        given = {name: slot.read(values) for name, slot in self._slots_of(method).items()}
        return merge_settings(method, given, weights)

    def write(self, settings: MergeSettings) -> Updates:
        """Show these settings."""
        method = get_method(settings.method)
        shown = self._slots_of(method.name)
        updates: Updates = {
            self.method: method.name,
            self._about: method_html(method, len(settings.weights), self._instead),
        }
        updates[self._own] = gr.update(visible=_has_own(method.name))
        for slot in self._slots.values():
            if slot not in shown.values():
                updates |= slot.toggle(False)
        given, unused = values_of(settings.params), _unused(settings.params)
        for name, control in controls(method.params).items():
            updates |= shown[name].show(control, given[name], name not in unused)
        folded = any(name in given for name in COMMON)
        updates[self._more] = gr.update(visible=folded, open=_common_is_on(settings.params))
        return updates

    def scale_counts(self, settings: MergeSettings, n_features: int) -> Updates:
        """Ranks of these settings that are counts, on sliders that end at `n_features`."""
        updates: Updates = {}
        for name, slot in self._slots_of(settings.method).items():
            rank = getattr(settings.params, name)
            if isinstance(slot, RankSlider) and isinstance(rank, int):
                updates[slot.amount] = amount_update("count", rank, n_features)
        return updates

    def scale_ranks_with(self, inputs: set[Any], n_features: Callable[[Values], int]) -> Any:
        """Give the amount of a rank the scale of its kind, as soon as a person chooses one.

        Args:
            inputs: what `n_features` reads.
            n_features: how many features there are, the end of a count.

        Returns:
            The event after it.
        """
        kinds = [slider.kind for slider in self.rank_sliders]
        amounts = {slider.amount for slider in self.rank_sliders}

        def scale(values: Values) -> Updates:
            n = n_features(values)
            return {slider.amount: amount_update(values[slider.kind], n_features=n) for slider in self.rank_sliders}

        return gr.on([kind.input for kind in kinds], handle(scale), {*inputs, *kinds}, amounts, **_AT_ONCE)

    def follow(self, values: Values) -> Updates:
        """Show the chosen method with its defaults."""
        method, n_tasks = get_method(values[self.method]), len(values[self._workspace].tasks)
        return self.write(MergeSettings(method.name, method.params(), (1.0,) * n_tasks))

    def hide_unused(self, values: Values) -> Updates:
        """Hide what does nothing at the choices that are made, and show the rest."""
        try:
            params = self.read(values, ()).params
        except RecipeError:  # the tab says what is not understood
            return {}
        updates: Updates = {}
        for name, slot in self._slots_of(values[self.method]).items():
            updates |= slot.toggle(name not in _unused(params))
        return updates

    def _describe(self, values: Values) -> Updates:
        """Say what the chosen method is for, and whether it fits the workspace."""
        method, n_tasks = get_method(values[self.method]), len(values[self._workspace].tasks)
        return {self._about: method_html(method, n_tasks, self._instead)}


def _common_is_on(params: Any) -> bool:
    """Whether one of the settings that every method has is on."""
    return common_of(params) != CommonParams()


def _unused(params: Any) -> frozenset[str]:
    """The parameters that do nothing at the values of the others."""
    return params.unused() if isinstance(params, CommonParams) else frozenset()


def _has_own(method: str) -> bool:
    """Whether a method has parameters of its own."""
    return any(name not in COMMON for name in controls(METHODS[method].params))
