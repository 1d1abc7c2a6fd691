"""Where tasks meet: overlaps of all tasks, and the features of two tasks against each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from sftm_app.inspection.pair import pair_detail
from sftm_app.plots.angles import principal_angles
from sftm_app.plots.overlap import overlap_heatmap, task_overlap
from sftm_app.ui.handlers import Updates
from sftm_app.ui.inspect.layer_view import LayerView
from sftm_app.ui.inspect.state import InspectState
from sftm_app.ui.studio import Studio
from sftm_app.ui.widgets import PlotlyView, UncheckedDropdown
from sftm_app.ui.widgets.blocks import section


class PairsPanel:
    """Heatmaps of tasks by tasks, the choice of two of them, and heatmaps of their features."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        section(
            "Where tasks meet",
            "Tasks interfere if they read the same input directions and write the same output directions. Click a "
            "pair of tasks, or choose it below, to compare their features; click a cell there to open a feature.",
            elem_id="pairs",
        )
        with gr.Row(equal_height=False, elem_classes="sf-three"):
            self.tasks_read, self.tasks_write, self.tasks_both = (
                PlotlyView(label=f"{title}, tasks by tasks", filename=f"tasks-{kind}", elem_id=f"tasks-{kind}")
                for kind, title in (("read", "Read overlap"), ("write", "Write overlap"), ("both", "Feature overlap"))
            )
        with gr.Row(equal_height=False):
            self.first = UncheckedDropdown(
                label="First task", info="Its features are the rows.", choices=[], value=None, elem_id="first-task"
            )
            self.second = UncheckedDropdown(
                label="Second task", info="Its features are the columns.", choices=[], value=None, elem_id="second-task"
            )
            self.top = gr.Slider(
                0,
                64,
                value=0,
                step=1,
                label="Leading features",
                info="The principal angles are between the spans of this many; 0: as many as hold 90 % of the energy.",
                elem_id="top",
            )
        with gr.Row(equal_height=False, elem_classes="sf-three"):
            self.pair_read, self.pair_write, self.pair_both = (
                PlotlyView(label=f"{title} of two tasks", filename=f"{kind}-overlap", elem_id=f"pair-{kind}")
                for kind, title in (("read", "Read overlap"), ("write", "Write overlap"), ("both", "Interference"))
            )
        self.angles = PlotlyView(
            label="Principal angles between two tasks",
            filename="principal-angles",
            elem_id="angles",
            min_plot_height=260,
        )
        self.overviews = self.tasks_read, self.tasks_write, self.tasks_both
        self.heatmaps = self.pair_read, self.pair_write, self.pair_both
        self.choices: set[Any] = {self.first, self.second}
        self.views: set[Any] = {*self.overviews, *self.choices, *self.heatmaps, self.angles}

    def open(self, members: Sequence[str], first: str, second: str) -> Updates:
        """Offer the tasks that hold the layer."""
        return {
            self.first: gr.update(choices=list(members), value=first or None),
            self.second: gr.update(choices=list(members), value=second or None),
        }

    def choose(self, state: InspectState) -> Updates:
        """The same, with the two tasks that are shown."""
        looked = state.look(self.studio)
        first, second = looked.pair(state.first, state.second)
        return self.open(looked.members, looked.members[first], looked.members[second])

    def show(self, state: InspectState) -> Updates:
        """Overlaps of all tasks, and the features of the two chosen ones."""
        looked = state.look(self.studio)
        first, second = looked.pair(state.first, state.second)
        pair = pair_detail(
            self.studio.inspector.factors(looked.found, looked.layer), looked.names, first, second, state.top
        )
        names = pair.first, pair.second
        return {
            **self._overviews(looked, (first, second)),
            self.first: pair.first,
            self.second: pair.second,
            self.pair_read: overlap_heatmap(pair.read.numpy(), *names, "read", pair.random_read),
            self.pair_write: overlap_heatmap(pair.write.numpy(), *names, "write", pair.random_write),
            self.pair_both: overlap_heatmap(pair.both.numpy(), *names, "both", pair.random_both),
            self.angles: principal_angles(
                pair.angles.read.numpy(),
                pair.angles.write.numpy(),
                pair.angles.random_read.numpy(),
                pair.angles.random_write.numpy(),
                *names,
            ),
        }

    def _overviews(self, looked: LayerView, pair: tuple[int, int]) -> Updates:
        cell = pair if pair[0] != pair[1] else None
        detail, members = looked.detail, looked.members
        # The overlap of a task with itself is 1, next to which the others would be invisible.
        both = detail.both.clone().fill_diagonal_(float("nan"))
        read, write = detail.read.numpy(), detail.write.numpy()
        return {
            self.tasks_read: task_overlap(read, members, "read overlap", cell, "Read overlap of the tasks"),
            self.tasks_write: task_overlap(write, members, "write overlap", cell, "Write overlap of the tasks"),
            self.tasks_both: task_overlap(
                both.numpy(), members, "feature overlap", cell, "Feature overlap of the tasks (both)"
            ),
        }
