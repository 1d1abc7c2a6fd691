"""The controls of what a merge writes: a full model or one LoRA adapter, its size, its type."""

from __future__ import annotations

from typing import Any

import gradio as gr

from sftm_app.errors import RecipeError
from sftm_app.planning.recipe import DTYPES, Output

SAME_AS_INPUT = "same as the input"
_KINDS = [("Full model", "model"), ("LoRA adapter", "adapter")]


class OutputForm:
    """Kind of output, the bounds of an adapter (visible only for one), type, and largest file."""

    def __init__(self) -> None:
        self.kind = gr.Radio(
            _KINDS,
            value="model",
            label="Write",
            info="Adapters merge into one adapter exactly. Full fine-tunes come close, at the rank you choose.",
            elem_id="output-kind",
        )
        with gr.Column(visible=False) as self._bounds:
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
                    label="Share of the change",
                    info="all, or a share such as 90%, layer by layer.",
                    max_lines=1,
                    elem_id="output-energy",
                )
            self.ask = gr.Button("What would each rank keep?", elem_id="rank-costs")
            self.costs = gr.HTML(apply_default_css=False, elem_id="rank-costs-table")
        self.dtype = gr.Dropdown(
            [SAME_AS_INPUT, *DTYPES],
            value=SAME_AS_INPUT,
            label="Type of the merged weights",
            info="Everything is computed in float32; this is what is written.",
        )
        self.shard = gr.Textbox(
            value="5GB", label="Largest file", info="Larger models are split: 5GB, 500MB.", max_lines=1
        )
        self.kind.change(
            lambda kind: gr.update(visible=kind == "adapter"),
            self.kind,
            self._bounds,
            queue=False,
            show_progress="hidden",
        )

    @property
    def inputs(self) -> list[Any]:
        """All controls, in the order that `read` expects."""
        return [self.kind, self.rank, self.energy, self.dtype, self.shard]

    @staticmethod
    def read(values: tuple[Any, ...]) -> dict[str, Any]:
        """A recipe's `output`, unchecked but for the share, from what `inputs` gave.

        Raises
            RecipeError: the share is no number.
        """
        kind, rank, energy, dtype, shard = values
        output = {"kind": kind, "dtype": None if dtype == SAME_AS_INPUT else dtype, "max_shard_size": shard}
        return output | ({"rank": rank or None, "energy": _share(energy)} if kind == "adapter" else {})

    @staticmethod
    def write(output: Output) -> list[Any]:
        """Values for `inputs` that show these settings."""
        rank = "full" if output.rank is None else f"{output.rank:.6g}"
        energy = "all" if output.energy is None else f"{output.energy:.6g}"
        return [output.kind, rank, energy, output.dtype or SAME_AS_INPUT, output.max_shard_size]


def _share(text: str | None) -> float | None:
    word = (text or "").strip().lower()
    if word in ("", "all", "100%"):
        return None
    try:
        return float(word[:-1]) / 100 if word.endswith("%") else float(word)
    except ValueError:
        raise RecipeError(f"Share of the change: {text!r} is no share. Give `all`, 90% or 0.9.") from None
