"""Spectra, overlap and preservation as plain dataclasses; no plotly, no gradio."""
