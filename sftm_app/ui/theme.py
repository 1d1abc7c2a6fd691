"""The look: Gradio theme, style sheet, head snippets and the colours of tasks.

Nothing here makes the browser leave the machine: fonts are the system's own, the style sheet and the icon are local.
"""

from __future__ import annotations

import gradio as gr

from sftm_app.plots.style import TASK_COLOURS, task_colour
from sftm_app.resources import asset_path

__all__ = ["TASK_COLOURS", "head", "launch_look", "task_colour", "theme"]

# Plain strings: Gradio takes them as names of installed fonts and loads nothing.
_FONT = ("Inter", "ui-sans-serif", "system-ui", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif")
_MONO = ("ui-monospace", "SFMono-Regular", "Cascadia Mono", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace")

_INDIGO = gr.themes.Color(
    name="sftm",
    c50="#f1f3ff",
    c100="#e4e8ff",
    c200="#ccd3fe",
    c300="#aab5fb",
    c400="#8490f2",
    c500="#5f6be3",
    c600="#4650c8",
    c700="#383fa3",
    c800="#2b3185",
    c900="#22275f",
    c950="#171a3d",
)
_SLATE = gr.themes.Color(
    name="sftm_slate",
    c50="#f6f7f9",
    c100="#eef0f4",
    c200="#e1e5eb",
    c300="#c9d0da",
    c400="#97a2b2",
    c500="#667386",
    c600="#4c5869",
    c700="#37414f",
    c800="#232b36",
    c900="#171c24",
    c950="#0f1319",
)

# Runs as the page loads. A choice made with the header's button is kept for the next visit; ?__theme= in the address
# wins. Gradio sets the class on <body> too, and again when the system changes its mind: hence the observer.
_THEME_SCRIPT = """
(() => {
  const KEY = 'sftm-theme';
  const asked = new URL(location.href).searchParams.get('__theme');
  let wanted = null;
  try { wanted = asked ? null : localStorage.getItem(KEY); } catch (error) { /* storage is off */ }
  const apply = () => {
    if (wanted && document.body.classList.contains('dark') !== (wanted === 'dark')) {
      document.body.classList.toggle('dark', wanted === 'dark');
    }
  };
  document.addEventListener('click', (event) => {
    if (!event.target.closest || !event.target.closest('[data-sf-theme]')) return;
    wanted = document.body.classList.contains('dark') ? 'light' : 'dark';
    try { localStorage.setItem(KEY, wanted); } catch (error) { /* storage is off */ }
    apply();
  });
  new MutationObserver(apply).observe(document.body, {attributes: true, attributeFilter: ['class']});
  apply();
})();
"""

# Gradio's sliders tell that they were let go by a pointer, but not by a key, nor that a number was typed beside them.
_KEYS_SCRIPT = """
document.addEventListener('keyup', (event) => {
  const slider = event.target;
  if (slider.matches && slider.matches('input[type="range"]') && /^(Arrow|Page|Home|End)/.test(event.key)) {
    slider.dispatchEvent(new PointerEvent('pointerup', {bubbles: true}));
  }
  if (event.key === 'Enter' && slider.matches && slider.matches('input[type="number"]')) {
    const block = slider.closest('.block');
    if (block && block.querySelector('input[type="range"]')) slider.blur();
  }
});
"""


def theme() -> gr.themes.Base:
    """The Gradio theme, dark and light."""
    return gr.themes.Base(
        primary_hue=_INDIGO,
        secondary_hue=_INDIGO,
        neutral_hue=_SLATE,
        radius_size=gr.themes.sizes.radius_md,
        spacing_size=gr.themes.sizes.spacing_md,
        text_size=gr.themes.sizes.text_md,
        font=_FONT,
        font_mono=_MONO,
    ).set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        body_text_color="#1a2230",
        body_text_color_dark="#e6eaf0",
        body_text_color_subdued="*neutral_500",
        body_text_color_subdued_dark="*neutral_400",
        background_fill_primary="white",
        background_fill_primary_dark="*neutral_900",
        background_fill_secondary="*neutral_50",
        background_fill_secondary_dark="*neutral_950",
        border_color_primary="*neutral_200",
        border_color_primary_dark="#2a323e",
        border_color_accent="*primary_300",
        border_color_accent_dark="*primary_600",
        color_accent_soft="*primary_50",
        color_accent_soft_dark="#232a4a",
        link_text_color="*primary_600",
        link_text_color_dark="*primary_300",
        block_background_fill="white",
        block_background_fill_dark="*neutral_900",
        block_border_color="*neutral_200",
        block_border_color_dark="#2a323e",
        block_border_width="1px",
        block_radius="10px",
        block_shadow="none",
        block_shadow_dark="none",
        block_label_background_fill="transparent",
        block_label_background_fill_dark="transparent",
        block_label_border_width="0px",
        block_label_text_color="*neutral_600",
        block_label_text_color_dark="*neutral_400",
        block_label_text_weight="500",
        block_title_text_color="*neutral_700",
        block_title_text_color_dark="*neutral_200",
        block_title_text_weight="550",
        block_info_text_color="*neutral_500",
        block_info_text_color_dark="*neutral_400",
        block_info_text_size="*text_sm",
        input_background_fill="white",
        input_background_fill_dark="#11161d",
        input_border_color="*neutral_300",
        input_border_color_dark="#343d4a",
        input_border_color_focus="*primary_500",
        input_border_color_focus_dark="*primary_400",
        input_border_width="1px",
        input_shadow_focus="0 0 0 3px rgb(95 107 227 / 0.18)",
        button_border_width="1px",
        button_primary_shadow="none",
        button_secondary_shadow="none",
        button_transition="background-color 0.12s ease, border-color 0.12s ease",
        button_large_padding="8px 16px",
        button_large_radius="8px",
        button_large_text_size="*text_md",
        button_large_text_weight="600",
        button_medium_radius="8px",
        button_medium_text_weight="550",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_dark="*primary_500",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_hover_dark="*primary_600",
        button_primary_border_color="*primary_600",
        button_primary_border_color_dark="*primary_500",
        button_primary_text_color="white",
        button_primary_text_color_dark="white",
        button_secondary_background_fill="white",
        button_secondary_background_fill_dark="*neutral_800",
        button_secondary_background_fill_hover="*neutral_100",
        button_secondary_background_fill_hover_dark="*neutral_700",
        button_secondary_border_color="*neutral_300",
        button_secondary_border_color_dark="#343d4a",
        slider_color="*primary_600",
        slider_color_dark="*primary_400",
        table_border_color="*neutral_200",
        table_border_color_dark="#2a323e",
    )


def head() -> str:
    """Snippets for the page's head: the style sheet (as <style>, so that Gradio does not rewrite its selectors), the
    theme switch, and the icon."""
    css = asset_path("app.css").read_text(encoding="utf-8")
    return f"<style>{css}</style><script>{_THEME_SCRIPT}{_KEYS_SCRIPT}</script>"


def launch_look() -> dict[str, object]:
    """What `Blocks.launch` needs for the look: `demo.launch(**launch_look(), ...)`."""
    return {"theme": theme(), "head": head(), "favicon_path": str(asset_path("icon.svg"))}
