"""A rank on a slider: auto, all features, a count, a share of the full rank, or a share of the energy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from sftm_app.linalg.factors import AUTO
from sftm_app.methods.params import Control
from sftm_app.ui.handlers import Updates, Values
from sftm_app.ui.widgets import UncheckedRadio, UncheckedSlider


@dataclass(frozen=True)
class Scale:
    """The slider of one kind of rank, and where it starts."""

    minimum: float
    maximum: float
    step: float
    start: float
    label: str = "Kept"


KINDS = {AUTO: "auto", "full": "all", "count": "count", "share": "% of rank", "energy": "% of energy"}
# The kinds without an amount.
BARE = (AUTO, "full")
SCALES = {
    AUTO: Scale(0.0, 1.0, 1.0, 1.0),
    "full": Scale(0.0, 1.0, 1.0, 1.0),
    # Until a layer says how many features it has.
    "count": Scale(1.0, 64.0, 1.0, 16.0, "Features kept"),
    "share": Scale(1.0, 99.0, 1.0, 25.0, "Percent of the full rank"),
    "energy": Scale(10.0, 99.5, 0.5, 90.0, "Percent of the energy"),
}


INFO = "How many singular features to keep per task and layer."
INFO_AUTO = (
    f"{INFO} auto: 90 % of the energy where the tasks have more features than the layer has dimensions, else all."
)


class RankSlider:
    """The kind of a rank, and its amount, whose scale follows the kind."""

    def __init__(self, label: str, default: Any, elem_id: str, visible: bool = True) -> None:
        kind, amount = kind_and_amount(default)
        scale = SCALES[kind]
        self.kind = UncheckedRadio(
            [(title, name) for name, title in KINDS.items()],
            value=kind,
            label=label,
            info=INFO_AUTO,
            visible=visible,
            elem_id=f"{elem_id}-by",
        )
        self.amount = UncheckedSlider(
            scale.minimum,
            scale.maximum,
            value=scale.start if kind in BARE else amount,
            step=scale.step,
            label=scale.label,
            info="How many, or how much, to keep.",
            visible=visible and kind not in BARE,
            elem_id=f"{elem_id}-amount",
        )
        self.components: tuple[Any, ...] = (self.kind, self.amount)

    def read(self, values: Values) -> int | float | str | None:
        """The rank, unchecked."""
        return rank_of(values[self.kind], values[self.amount])

    def show(self, control: Control, rank: Any, visible: bool = True) -> Updates:
        """Show a method's rank with this value. visible: False where it does nothing."""
        kind, amount = kind_and_amount(rank)
        choices = [(title, name) for name, title in KINDS.items() if name != AUTO or control.auto]
        info = INFO_AUTO if control.auto else INFO
        shown = gr.update(choices=choices, value=kind, label=control.label, info=info, visible=visible)
        slider = amount_update(kind, amount) if visible else gr.update(visible=False)
        return {self.kind: shown, self.amount: slider}

    def toggle(self, visible: bool) -> Updates:
        """Show it or hide it. Its amount stays hidden until a kind is chosen that has one."""
        return {self.kind: gr.update(visible=visible), **({} if visible else {self.amount: gr.update(visible=False)})}


def rank_of(kind: Any, amount: Any) -> int | float | str | None:
    """The rank that kind and amount describe; unchecked."""
    if kind == AUTO:
        return AUTO
    if kind not in SCALES or kind == "full" or not isinstance(amount, int | float):
        return None
    if kind == "count":
        return int(amount)
    return f"{amount:g}% energy" if kind == "energy" else float(amount) / 100


def kind_and_amount(rank: Any) -> tuple[str, float]:
    """The inverse of rank_of."""
    if rank == AUTO:
        return AUTO, 1.0
    if isinstance(rank, str) and rank.endswith("% energy"):
        return "energy", float(rank.removesuffix("% energy"))
    if isinstance(rank, bool) or not isinstance(rank, int | float):
        return "full", 1.0
    return ("count", float(rank)) if isinstance(rank, int) else ("share", 100 * rank)


def amount_update(kind: str, value: float | None = None, n_features: int | None = None) -> Any:
    """The slider of this kind. value: None for the default. n_features: how many a layer has, the end of a count."""
    scale = SCALES.get(kind, SCALES["full"])
    low, high, step = scale.minimum, scale.maximum, scale.step
    if kind == "count":
        high = float(n_features or high)
    if value is not None:
        # A typed rank or an address may lie outside, and Gradio refuses a value beyond the slider's ends.
        low, high = min(low, value), max(high, value)
        step = step if (value - low) % step == 0 else 0.001
    return gr.update(
        minimum=low,
        maximum=high,
        step=step,
        value=scale.start if value is None else value,
        label=scale.label,
        visible=kind not in BARE,
    )
