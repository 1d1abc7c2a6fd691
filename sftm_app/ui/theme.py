"""The look: Gradio theme, style sheet and script of the page. Nothing here makes the browser leave the machine."""

from __future__ import annotations

import gradio as gr

from sftm_app.resources import asset_path

# Plain strings: Gradio takes them as names of installed fonts and loads nothing.
_FONT = ("Inter", "ui-sans-serif", "system-ui", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif")
_MONO = ("ui-monospace", "SFMono-Regular", "Cascadia Mono", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace")

# From c50, the lightest, to c950.
_INDIGO = "f1f3ff e4e8ff ccd3fe aab5fb 8490f2 5f6be3 4650c8 383fa3 2b3185 22275f 171a3d"
_SLATE = "f6f7f9 eef0f4 e1e5eb c9d0da 97a2b2 667386 4c5869 37414f 232b36 171c24 0f1319"

# Gradio's variables: the value in light, and in dark.
_COLOURS = {
    "body_background_fill": ("*neutral_50", "*neutral_950"),
    "body_text_color": ("#1a2230", "#e6eaf0"),
    "body_text_color_subdued": ("*neutral_500", "*neutral_400"),
    "background_fill_primary": ("white", "*neutral_900"),
    "background_fill_secondary": ("*neutral_50", "*neutral_950"),
    "border_color_primary": ("*neutral_200", "#2a323e"),
    "border_color_accent": ("*primary_300", "*primary_600"),
    "color_accent_soft": ("*primary_50", "#232a4a"),
    "link_text_color": ("*primary_600", "*primary_300"),
    "block_background_fill": ("white", "*neutral_900"),
    "block_border_color": ("*neutral_200", "#2a323e"),
    "block_label_text_color": ("*neutral_600", "*neutral_400"),
    "block_title_text_color": ("*neutral_700", "*neutral_200"),
    "block_info_text_color": ("*neutral_500", "*neutral_400"),
    "input_background_fill": ("white", "#11161d"),
    "input_border_color": ("*neutral_300", "#343d4a"),
    "input_border_color_focus": ("*primary_500", "*primary_400"),
    "button_primary_background_fill": ("*primary_600", "*primary_500"),
    "button_primary_background_fill_hover": ("*primary_700", "*primary_600"),
    "button_primary_border_color": ("*primary_600", "*primary_500"),
    "button_secondary_background_fill": ("white", "*neutral_800"),
    "button_secondary_background_fill_hover": ("*neutral_100", "*neutral_700"),
    "button_secondary_border_color": ("*neutral_300", "#343d4a"),
    "slider_color": ("*primary_600", "*primary_400"),
    "table_border_color": ("*neutral_200", "#2a323e"),
}
# The same in both.
_SHAPES = {
    "block_border_width": "1px",
    "block_radius": "10px",
    "block_label_border_width": "0px",
    "block_label_text_weight": "500",
    "block_title_text_weight": "550",
    "block_info_text_size": "*text_sm",
    "input_border_width": "1px",
    "input_shadow_focus": "0 0 0 3px rgb(95 107 227 / 0.18)",
    "button_border_width": "1px",
    "button_primary_shadow": "none",
    "button_secondary_shadow": "none",
    "button_transition": "background-color 0.12s ease, border-color 0.12s ease",
    "button_large_padding": "8px 16px",
    "button_large_radius": "8px",
    "button_large_text_size": "*text_md",
    "button_large_text_weight": "600",
    "button_medium_radius": "8px",
    "button_medium_text_weight": "550",
    "block_shadow": "none",
    "block_shadow_dark": "none",
    "block_label_background_fill": "transparent",
    "block_label_background_fill_dark": "transparent",
    "button_primary_text_color": "white",
    "button_primary_text_color_dark": "white",
}


def theme() -> gr.themes.Base:
    """The Gradio theme, dark and light."""
    indigo, slate = (
        gr.themes.Color(*(f"#{shade}" for shade in shades.split()), name=name)
        for name, shades in (("sftm_indigo", _INDIGO), ("sftm_slate", _SLATE))
    )
    dark = {f"{name}_dark": value for name, (_, value) in _COLOURS.items()}
    light = {name: value for name, (value, _) in _COLOURS.items()}
    return gr.themes.Base(
        primary_hue=indigo,
        secondary_hue=indigo,
        neutral_hue=slate,
        radius_size=gr.themes.sizes.radius_md,
        spacing_size=gr.themes.sizes.spacing_md,
        text_size=gr.themes.sizes.text_md,
        font=_FONT,
        font_mono=_MONO,
    ).set(**light, **dark, **_SHAPES)


def head() -> str:
    """The page's head: the style sheet (as <style>, so that Gradio does not rewrite its selectors) and the script."""
    css, script = (asset_path(name).read_text(encoding="utf-8") for name in ("app.css", "page.js"))
    return f"<style>{css}</style><script>{script}</script>"


def launch_look() -> dict[str, object]:
    """What `Blocks.launch` needs for the look: `demo.launch(**launch_look(), ...)`."""
    return {"theme": theme(), "head": head(), "favicon_path": str(asset_path("icon.svg"))}
