"""The settings of a merge (method, weights, device, output): as controls, as a recipe, and as a short text."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any
from urllib.parse import urlencode

import gradio as gr

from sftm_app.errors import RecipeError
from sftm_app.inspection.layers import map_layers
from sftm_app.methods.settings import MergeSettings
from sftm_app.planning.device import available_devices
from sftm_app.planning.recipe import MEASURE, Output, Recipe, make_recipe
from sftm_app.plots.style import task_colour
from sftm_app.ui.forms.output_form import OutputForm
from sftm_app.ui.forms.params_form import ParamsForm
from sftm_app.ui.handlers import Updates, Values
from sftm_app.ui.merging.comparison_panel import SECTION
from sftm_app.ui.studio import Studio
from sftm_app.ui.view import read_query, settings_from_query, settings_to_query
from sftm_app.ui.widgets import LinkedHtml, Sliders, UncheckedRadio, slider_rows, slider_values, view_link
from sftm_app.ui.widgets.blocks import block
from sftm_app.ui.widgets.html import hint, join
from sftm_app.ui.wording import format_rank
from sftm_app.ui.workspace import Workspace

ANY_MEMORY = "any"
SPLIT = "split"
_PLAIN = ("device", "memory", "measure")
_OUTPUT = ("kind", "dtype", "max_shard_size", "rank", "energy")


class MergeForm:
    """The controls.

    Attributes:
        inputs: what `read` is given.
        settings_inputs: what `read_settings` is given.
        settings: what `write_settings` updates; written: what `write` updates.
    """

    def __init__(self, studio: Studio, workspace: gr.State) -> None:
        self.studio, self.workspace = studio, workspace
        self.params = ParamsForm(workspace)
        LinkedHtml(hint(join(["Which method is best depends on the models. ", view_link("Compare methods", SECTION)])))
        with gr.Accordion("Task weights (negative: take a task away)", open=False):
            self.weights = Sliders(label="Weight of", minimum=-2.0, maximum=2.0, step=0.05, elem_id="weights")
            block(hint("Each task's change is multiplied by its weight: 1 leaves it as it is, 0.5 halves it."))
        with gr.Accordion("Device and output", open=False):
            self._lay_out_run()
        self.settings_inputs: set[Any] = {workspace, self.weights, self.split, *self.params.inputs}
        self.inputs: set[Any] = self.settings_inputs | {self.device, self.memory, self.measure, *self.output.inputs}
        self.settings: set[Any] = {self.weights, *self.params.outputs}
        self.written: set[Any] = self.settings | (self.inputs - {workspace})
        self.ranked = self.params.scale_ranks_with({workspace}, self._n_features)

    def _lay_out_run(self) -> None:
        self.device = UncheckedRadio(
            list(available_devices()),
            value=self.studio.settings.device,
            label="Device",
            info=f"Where to compute. On this machine auto is {self.studio.device}.",
            elem_id="device",
        )
        self.memory = gr.Textbox(
            value=ANY_MEMORY,
            label="Memory at most",
            info="any, or a size such as 4GB. The plan says which ranks fit.",
            max_lines=1,
            elem_id="memory",
        )
        self.output = OutputForm()
        self.split = gr.Checkbox(
            label="Split fused maps",
            info="Where one tensor holds query, key and value (GPT-2's c_attn, qkv), merge them one by one.",
            elem_id="split-fused",
        )
        self.measure = UncheckedRadio(
            list(MEASURE),
            value=Recipe.measure,
            label="Measure what each task keeps",
            info="The layers in which to compute readout and mapping error. auto: where that is quick. The merged "
            "model is the same.",
            elem_id="merge-measure",
        )

    def read(self, values: Values) -> Recipe:
        """The recipe that the controls describe.

        Raises:
            RecipeError: a control holds something that is not understood.
        """
        settings, split = self.read_settings(values)
        memory = (values[self.memory] or "").strip()
        return recipe_of(
            values[self.workspace],
            settings,
            output=self.output.read(values),
            device=values[self.device],
            split_fused=split,
            memory=None if memory.lower() in ("", ANY_MEMORY) else memory,
            measure=values[self.measure],
        )

    def read_settings(self, values: Values) -> tuple[MergeSettings, bool]:
        """The settings of the merge, and whether fused maps are split.

        Raises:
            RecipeError: a control holds something that is not understood.
        """
        ws: Workspace = values[self.workspace]
        weights = slider_values(values[self.weights], len(ws.tasks)) or ws.weights
        return self.params.read(values, weights), bool(values[self.split])

    def write(self, ws: Workspace, recipe: Recipe) -> Updates:
        """Show a recipe."""
        return {
            self.device: recipe.device,
            self.memory: recipe.memory or ANY_MEMORY,
            self.split: recipe.split_fused,
            self.measure: recipe.measure,
            **self.output.write(recipe.output),
            **self.write_settings(ws, settings_of(recipe)),
        }

    def write_settings(self, ws: Workspace, settings: MergeSettings) -> Updates:
        """Show these settings, and leave device and output as they are."""
        colours = [task_colour(i) for i in range(len(ws.tasks))]
        rows = slider_rows(ws.task_names, colours, settings.weights)
        ranks = self.params.scale_counts(settings, self._n_features_of(ws))
        return {self.weights: rows, **self.params.write(settings), **ranks}

    def _n_features(self, values: Values) -> int:
        return self._n_features_of(values[self.workspace])

    def _n_features_of(self, ws: Workspace) -> int:
        """As many features as the layer has that has most."""
        layers = map_layers(self.studio.preflight(ws)) if self.studio.usable(ws) else ()
        return max((min(layer.shape) for layer in layers), default=1)


def settings_of(recipe: Recipe) -> MergeSettings:
    """The method, params and weights of a recipe."""
    return MergeSettings(recipe.method, recipe.params, tuple(task.weight for task in recipe.tasks))


def recipe_of(ws: Workspace, settings: MergeSettings, **fields: Any) -> Recipe:
    """The recipe of these settings. fields: further arguments of make_recipe.

    Raises:
        RecipeError: one of them is not understood.
    """
    weighted = zip(ws.tasks, settings.weights, strict=True)
    tasks = [{"path": task.path, "name": task.name, "weight": weight} for task, weight in weighted]
    fields |= {"roles": dict(ws.roles), "tokenizer": ws.tokenizer}
    return make_recipe(ws.base, tasks, settings.method, asdict(settings.params), **fields)


def recipe_to_text(recipe: Recipe, device: str) -> str:
    """A recipe without its models, as fields of an address; defaults are left out. device: that of this app."""
    plain, output, default = asdict(recipe), asdict(recipe.output), asdict(Output())
    output["rank"] = None if recipe.output.rank is None else format_rank(recipe.output.rank)
    pairs = [*settings_to_query(settings_of(recipe))]
    pairs += [("device", recipe.device)] if recipe.device != device else []
    pairs += [(name, str(plain[name])) for name in _PLAIN[1:] if plain[name] != getattr(Recipe, name)]
    pairs += [(SPLIT, "1")] if recipe.split_fused else []
    pairs += [(f"out-{name}", str(output[name])) for name in _OUTPUT if output[name] != default[name]]
    return urlencode(pairs)


def recipe_from_text(text: str, ws: Workspace, device: str, problems: list[str]) -> Recipe | None:
    """The recipe of such a text for a workspace; None, and a sentence in `problems`, if it is not understood."""
    query = read_query(text)
    settings = settings_from_query(query, len(ws.tasks), problems)
    if settings is None:
        return None
    try:
        output: dict[str, Any] = {name: query[f"out-{name}"] for name in _OUTPUT if f"out-{name}" in query}
        if "energy" in output:
            output["energy"] = float(output["energy"])
        given = {"device": device} | {name: query[name] for name in _PLAIN if name in query}
        return recipe_of(ws, settings, output=output, split_fused=SPLIT in query, **given)
    except (RecipeError, ValueError) as error:
        problems.append(f"The settings in the address were ignored: {error}")
        return None
