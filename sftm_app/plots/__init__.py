"""Figures. The only room that imports plotly.

Each plot is one file with two kinds of functions: data functions turn values into the numbers that are drawn, and one
figure function draws them through `style.make_figure`. Names from files pass through `style.plot_text` first.
"""
