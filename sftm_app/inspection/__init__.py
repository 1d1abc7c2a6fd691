"""Spectra, overlap and predicted preservation of layers, as plain dataclasses. Knows no plotly and no gradio."""
