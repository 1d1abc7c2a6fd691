"""Plain values in, plotly figures out; one file a plot, one look for all. The only room where plotly is imported."""

from sftm_app.plots.accuracy import accuracy_bars
from sftm_app.plots.layer_map import layer_map
from sftm_app.plots.overlap import overlap_heatmap, reduce_matrix, task_overlap
from sftm_app.plots.preservation import preservation
from sftm_app.plots.probabilities import probabilities
from sftm_app.plots.spectra import SpectrumTrace, spectra
from sftm_app.plots.style import TASK_COLOURS, Series, method_colour, plain, task_colour

__all__ = [
    "TASK_COLOURS",
    "Series",
    "SpectrumTrace",
    "accuracy_bars",
    "layer_map",
    "method_colour",
    "overlap_heatmap",
    "plain",
    "preservation",
    "probabilities",
    "reduce_matrix",
    "spectra",
    "task_colour",
    "task_overlap",
]
