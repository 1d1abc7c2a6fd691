"""A rank by hand: all features, a count, a share of the full rank, or a share of the energy; slid, not typed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

KINDS = {"full": "all", "count": "count", "share": "% of rank", "energy": "% of energy"}
# The slider of each kind: least, most (of a count: until a layer says how many it has), step, and where it starts.
SCALES = {
    "full": (0.0, 1.0, 1.0, 1.0),
    "count": (1.0, 64.0, 1.0, 16.0),
    "share": (1.0, 99.0, 1.0, 25.0),
    "energy": (10.0, 99.5, 0.5, 90.0),
}


def rank_shown(rank: int | float | str | None) -> str:
    """A rank as it is typed: "full", "32", "25%" or "90% energy"."""
    if rank is None or isinstance(rank, str):
        return rank or "full"
    return f"{rank}" if isinstance(rank, int) else f"{100 * rank:.6g}%"


def rank_of(kind: Any, amount: Any) -> int | float | str | None:
    """The rank that the two controls describe; unchecked, as typed ranks are."""
    if kind not in SCALES or kind == "full" or not isinstance(amount, int | float):
        return None
    if kind == "count":
        return int(amount)
    return f"{amount:g}% energy" if kind == "energy" else float(amount) / 100


def controls_of(rank: Any) -> tuple[str, float]:
    """Kind and amount that stand for a rank; the inverse of rank_of."""
    if isinstance(rank, str) and rank.endswith("% energy"):
        return "energy", float(rank.removesuffix("% energy"))
    if isinstance(rank, bool) or not isinstance(rank, int | float):
        return "full", 1.0
    return ("count", float(rank)) if isinstance(rank, int) else ("share", 100 * rank)


def rank_slider(
    label: str, default: Any, elem_id: str
) -> tuple[tuple[Any, ...], Callable[[Sequence[Any]], Any], Callable[[Any], list[Any]]]:
    """The components, and how they are read and written (see params_form.Field)."""
    kind, _ = controls_of(default)
    by = gr.Radio(
        [(title, name) for name, title in KINDS.items()],
        value=kind,
        label=label,
        info="Singular features kept per task and layer.",
        elem_id=f"{elem_id}-by",
    )
    least, most, step, start = SCALES[kind]
    amount = gr.Slider(
        least,
        most,
        value=start,
        step=step,
        label="Kept",
        info="How much of it.",
        visible=kind != "full",
        elem_id=f"{elem_id}-amount",
    )

    def write(rank: Any) -> list[Any]:
        shown, value = controls_of(rank)
        return [gr.update(value=shown), amount_update(shown, value)]

    return (by, amount), lambda values: rank_of(*values), write


def amount_update(kind: str, value: float | None = None, most: int | None = None) -> Any:
    """The slider of this kind. value: where it stands, else where its scale starts. most: features that a layer has."""
    least, highest, step, start = SCALES.get(kind, SCALES["full"])
    if kind == "count":
        highest = float(most or highest)
    if value is not None:
        # A typed rank or an address may lie outside; a slider refuses what is beyond its ends.
        least, highest = min(least, value), max(highest, value)
        step = step if (value - least) % step == 0 else 0.001
    title = {"count": "Features kept", "share": "Percent of the full rank", "energy": "Percent of the energy"}
    return gr.update(
        minimum=least,
        maximum=highest,
        step=step,
        value=start if value is None else value,
        label=title.get(kind, "Kept"),
        visible=kind != "full",
    )
