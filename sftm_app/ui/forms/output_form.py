"""The controls for what a merge writes: a full model or one LoRA adapter, its size, its type."""

from __future__ import annotations

from typing import Any

import gradio as gr

from sftm_app.errors import RecipeError
from sftm_app.planning.recipe import DTYPES, Output
from sftm_app.ui.handlers import QUIET, Updates, Values, handle
from sftm_app.ui.widgets import UncheckedDropdown, UncheckedRadio
from sftm_app.ui.widgets.blocks import block
from sftm_app.ui.wording import format_rank

SAME_AS_INPUT = "same as the input"
_KINDS = [("Full model", "model"), ("LoRA adapter", "adapter")]


class OutputForm:
    """Kind of output, the limits of an adapter (visible only for one), type, and largest file: the `inputs`."""

    def __init__(self) -> None:
        self.kind = UncheckedRadio(
            _KINDS,
            value="model",
            label="Write",
            info="Adapters merge exactly into one adapter. Full fine-tunes are approximated at the rank you choose.",
            elem_id="output-kind",
        )
        with gr.Column(visible=False) as self._limits:
            with gr.Row():
                self.rank = gr.Textbox(
                    value="full",
                    label="Adapter rank",
                    info="full, a count (16) or a share (25%).",
                    max_lines=1,
                    elem_id="output-rank",
                )
                self.energy = gr.Textbox(
                    value="all",
                    label="Energy to keep",
                    info="In each layer: all, or a share such as 90%.",
                    max_lines=1,
                    elem_id="output-energy",
                )
            self.ask = gr.Button("What would each rank keep?", elem_id="rank-costs")
            self.costs = block(elem_id="rank-costs-table")
        self.dtype = UncheckedDropdown(
            [SAME_AS_INPUT, *DTYPES],
            value=SAME_AS_INPUT,
            label="Type of the merged weights",
            info="Computation is in float32; this is the type that is written.",
        )
        self.shard = gr.Textbox(
            value="5GB", label="Largest file", info="Larger models are split, for example at 5GB or 500MB.", max_lines=1
        )
        self.inputs: set[Any] = {self.kind, self.rank, self.energy, self.dtype, self.shard}
        self.kind.change(handle(self._follow), {self.kind}, {self._limits}, queue=False, **QUIET)

    def read(self, values: Values) -> dict[str, Any]:
        """A recipe's `output`. Only the share of energy is checked here.

        Raises:
            RecipeError: the share is not a number.
        """
        kind, dtype = values[self.kind], values[self.dtype]
        output = {
            "kind": kind,
            "dtype": None if dtype == SAME_AS_INPUT else dtype,
            "max_shard_size": values[self.shard],
        }
        if kind == "adapter":
            output |= {"rank": values[self.rank] or None, "energy": _share(values[self.energy])}
        return output

    def write(self, output: Output) -> Updates:
        """Show these settings."""
        return {
            self.kind: output.kind,
            self.rank: format_rank(output.rank),
            self.energy: "all" if output.energy is None else f"{output.energy:.6g}",
            self.dtype: output.dtype or SAME_AS_INPUT,
            self.shard: output.max_shard_size,
        }

    def _follow(self, values: Values) -> Updates:
        return {self._limits: gr.update(visible=values[self.kind] == "adapter")}


def _share(text: str | None) -> float | None:
    word = (text or "").strip().lower()
    if word in ("", "all", "100%"):
        return None
    try:
        return float(word[:-1]) / 100 if word.endswith("%") else float(word)
    except ValueError:
        raise RecipeError(f"Energy to keep: {text!r} is not a share. Enter `all`, 90% or 0.9.") from None
