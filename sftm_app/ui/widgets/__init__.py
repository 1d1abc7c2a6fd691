"""Reusable pieces of the pages: plots that can be clicked, a drawing pad, sliders, links, and blocks of safe HTML."""

from sftm_app.ui.widgets.address_bar import AddressBar, AddressPart, parse_address
from sftm_app.ui.widgets.draw_pad import DrawPad, decode_drawing, encode_drawing
from sftm_app.ui.widgets.linked_html import LinkedHtml, view_link
from sftm_app.ui.widgets.plotly_view import PlotlyView, Selection, parse_selection
from sftm_app.ui.widgets.sliders import Sliders, slider_rows, slider_values
from sftm_app.ui.widgets.unchecked import UncheckedCheckboxGroup, UncheckedDropdown, UncheckedRadio, UncheckedSlider

__all__ = [
    "AddressBar",
    "AddressPart",
    "DrawPad",
    "LinkedHtml",
    "PlotlyView",
    "Selection",
    "Sliders",
    "UncheckedCheckboxGroup",
    "UncheckedDropdown",
    "UncheckedRadio",
    "UncheckedSlider",
    "decode_drawing",
    "encode_drawing",
    "parse_address",
    "parse_selection",
    "slider_rows",
    "slider_values",
    "view_link",
]
