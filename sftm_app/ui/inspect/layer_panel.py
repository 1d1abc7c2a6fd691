"""One layer: its title and warnings, the tasks' spectra, and where two tasks meet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from sftm_app.inspection.layer import CLUSTER_SENTENCE, LayerDetail
from sftm_app.inspection.pair import PairDetail, pair_detail
from sftm_app.inspection.warnings import LayerWarning, layer_warnings
from sftm_app.methods.settings import MergeSettings
from sftm_app.plots.angles import principal_angles
from sftm_app.plots.overlap import overlap_heatmap, task_overlap
from sftm_app.plots.spectra import SpectrumTrace, merged_trace, spectra
from sftm_app.ui.inspect.layer_view import LayerView
from sftm_app.ui.studio import Studio
from sftm_app.ui.view import settings_title
from sftm_app.ui.widgets import view_link
from sftm_app.ui.widgets.html import Safe, chip, chips, heading, hint, join, notice

# The element that each kind of view is shown in.
PLACES = {"spectra": "spectra", "overlap": "pairs", "feature": "feature", "what_if": "what-if-bars"}
MOST_OF_A_KIND = 2


def detail_of(studio: Studio, looked: LayerView) -> LayerDetail:
    """Spectra and overlaps of the layer."""
    return studio.inspector.detail(looked.found, looked.layer)


def layer_title(looked: LayerView, detail: LayerDetail) -> Safe:
    """The layer's name and shape, and each task's relative change."""
    changes = [
        chip(f"{s.task} {s.relative_change:.1%}", looked.colour(i), "size of the change beside the base")
        for i, s in enumerate(detail.spectra)
    ]
    m, n = looked.layer.shape
    return join([heading(looked.layer.name.removesuffix(".weight"), f"{m} outputs × {n} inputs"), chips(changes)])


def spectra_figure(
    looked: LayerView,
    detail: LayerDetail,
    merged: Sequence[float] | None = None,
    settings: MergeSettings | None = None,
    selected: tuple[int, int] | None = None,
    stacked: bool = False,
) -> Any:
    """The tasks' singular spectra in their colours, and the merged change's own."""
    traces = [
        SpectrumTrace(
            s.task, looked.colour(i), s.gains, s.effective_rank, s.ranks_for_energy, s.stable_rank, s.clusters
        )
        for i, s in enumerate(detail.spectra)
    ]
    line = merged_trace(settings_title(settings), merged) if merged and settings else None
    return spectra(traces, line, selected, stacked)


def clusters_html(detail: LayerDetail) -> Safe:
    """What the marked clusters mean; empty where there are none."""
    if not any(s.clusters for s in detail.spectra):
        return Safe("")
    return hint(CLUSTER_SENTENCE)


def warnings_html(looked: LayerView, warnings: Sequence[LayerWarning]) -> Safe:
    """The warnings of a layer in sentences, each with a link to what shows it."""
    if not warnings:
        return notice("ok", "Nothing stands out in this layer")
    members = looked.members
    items: list[object] = []
    kinds = Counter(warning.kind for warning in warnings)
    told: Counter[str] = Counter()
    for warning in warnings:
        tasks = [members[i] for i in warning.tasks]
        told[warning.kind] += 1
        if told[warning.kind] > MOST_OF_A_KIND:
            continue
        # Without a target the link only scrolls: what it shows is shown already.
        target: tuple[str | int, ...] = ()
        if warning.feature is not None and tasks:
            target = ("feature", tasks[0], warning.feature)
        elif warning.view == "overlap" and len(tasks) == 2:
            target = ("overlap", *tasks)
        more = kinds[warning.kind] - MOST_OF_A_KIND if told[warning.kind] == MOST_OF_A_KIND else 0
        alike = f" The same goes {more} more times here. " if more > 0 else " "
        items.append(join([warning.sentence, alike, view_link("Show", PLACES.get(warning.view, "spectra"), target)]))
    n_serious = sum(not warning.informational for warning in warnings)
    title = "Worth knowing about this layer" if not n_serious else f"{n_serious} to look into in this layer"
    return notice("warning" if n_serious else "info", title, items=items)


def warnings_of(
    studio: Studio, looked: LayerView, detail: LayerDetail, settings: MergeSettings
) -> tuple[LayerWarning, ...]:
    """The warnings under some settings."""
    what_if = studio.inspector.what_if(looked.found, looked.layer)
    return layer_warnings(what_if, detail, what_if.predict(settings), looked.names)


def overview_figures(looked: LayerView, detail: LayerDetail, first: int, second: int) -> tuple[Any, Any, Any]:
    """Tasks against tasks: read overlap, write overlap, and both."""
    cell = (first, second) if first != second else None
    members = looked.members
    # A task with itself is 1, beside which what tasks do to each other would look like nothing.
    both = detail.both.clone().fill_diagonal_(float("nan"))
    return (
        task_overlap(detail.read.numpy(), members, "read overlap", cell, "Read overlap of the tasks"),
        task_overlap(detail.write.numpy(), members, "write overlap", cell, "Write overlap of the tasks"),
        task_overlap(both.numpy(), members, "feature overlap", cell, "Feature overlap of the tasks (both)"),
    )


def choose_pair(looked: LayerView, first: str | None, second: str | None) -> tuple[int, int]:
    """Positions of two different members, as near to what was asked for as there are; twice the same for one task."""
    one = looked.member(first)
    other = looked.member(second)
    if other == one or second not in looked.members:
        other = next((i for i in range(len(looked.members)) if i != one), one)
    return one, other


def pair_of(studio: Studio, looked: LayerView, first: int, second: int, k: int | None) -> PairDetail:
    """How the features of two tasks overlap."""
    return pair_detail(studio.inspector.factors(looked.found, looked.layer), looked.names, first, second, k)


def pair_figures(pair: PairDetail) -> tuple[Any, Any, Any, Any]:
    """Read, write and both, feature by feature; and the angles between the leading subspaces."""
    return (
        overlap_heatmap(pair.read.numpy(), pair.first, pair.second, "read", pair.random_read),
        overlap_heatmap(pair.write.numpy(), pair.first, pair.second, "write", pair.random_write),
        overlap_heatmap(pair.both.numpy(), pair.first, pair.second, "both", pair.random_both),
        principal_angles(
            pair.read_angles.numpy(), pair.write_angles.numpy(),
            pair.random_read_angles.numpy(), pair.random_write_angles.numpy(), pair.first, pair.second,
        ),
    )  # fmt: skip
