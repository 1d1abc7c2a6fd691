"""Reusable pieces of the pages: a plot that can be clicked, a drawing pad, and small blocks of safe HTML."""

from sftm_app.ui.widgets.draw_pad import DrawPad, decode_drawing, encode_drawing
from sftm_app.ui.widgets.plotly_view import PlotlyView, Selection, parse_selection

__all__ = ["DrawPad", "PlotlyView", "Selection", "decode_drawing", "encode_drawing", "parse_selection"]
