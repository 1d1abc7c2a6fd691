"""Plain values in, plotly figures out; one file a plot, one look for all. The only room where plotly is imported."""

from sftm_app.plots.accuracy import accuracy_bars
from sftm_app.plots.angles import principal_angles
from sftm_app.plots.layer_map import layer_map
from sftm_app.plots.overlap import overlap_heatmap, task_overlap
from sftm_app.plots.preservation import prediction_bars, preservation
from sftm_app.plots.probabilities import probabilities
from sftm_app.plots.reasons import feature_reasons
from sftm_app.plots.reduce import reduce_matrix, thinned
from sftm_app.plots.spectra import SpectrumTrace, merged_trace, spectra
from sftm_app.plots.style import TASK_COLOURS, Series, method_colour, plain, task_colour

__all__ = [
    "TASK_COLOURS",
    "Series",
    "SpectrumTrace",
    "accuracy_bars",
    "feature_reasons",
    "layer_map",
    "merged_trace",
    "method_colour",
    "overlap_heatmap",
    "plain",
    "prediction_bars",
    "preservation",
    "principal_angles",
    "probabilities",
    "reduce_matrix",
    "spectra",
    "task_colour",
    "task_overlap",
    "thinned",
]
