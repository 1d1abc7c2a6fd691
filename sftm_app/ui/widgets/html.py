"""Small blocks of HTML, in which every text from elsewhere is escaped.

Show the result with `gr.HTML(block, apply_default_css=False)`: Gradio's own text styles would spoil the spacing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import markupsafe

from sftm_app.ui.widgets.gradio_internals import visitor_of_event

Kind = Literal["info", "ok", "warning", "error"]

_CODE = re.compile(r"`([^`\n]+)`")
# The folders of an absolute path, in front of its last name.
_FOLDERS = re.compile(r"(?<![\w.:/\\])(?:/|[A-Za-z]:[/\\])(?:[^\s'\"`:;,()/\\]+[/\\])+")
_COLOUR = re.compile(r"#[0-9a-fA-F]{3,8}|var\(--[\w-]+\)")
# A right-to-left mark or a control character in a name would change the text around it.
_INVISIBLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]")
_SWATCHES = {"/": "up", "\\": "down", ".": "dots", "x": "cross", "-": "level", "|": "upright", "+": "grid"}
_MARKS = {"info": "i", "ok": "✓", "warning": "!", "error": "×"}


class Html(markupsafe.Markup):
    """HTML of our own. `format` and `join` escape plain text, and replace invisible characters in it by U+FFFD."""

    __slots__ = ()

    @classmethod
    def escape(cls, s: Any, /) -> Html:
        """Any text as HTML that shows it letter by letter; HTML is returned unchanged."""
        return cls(s if hasattr(s, "__html__") else markupsafe.escape(_INVISIBLE.sub("\ufffd", str(s))))


def sentence(text: object) -> Html:
    """A message: plain text in which what stands between backticks is shown as code."""
    if isinstance(text, Html):
        return text
    if visitor_of_event():
        text = without_folders(str(text))
    return Html(_CODE.sub(lambda found: code(Html(found[1])), Html.escape(text)))


def without_folders(text: str) -> str:
    """A message for somebody who should not learn how this machine is laid out: of a path, only its last name."""
    return _FOLDERS.sub("", text)


def join(parts: Iterable[object], between: str = "") -> Html:
    """Blocks in a row. `between` is HTML."""
    return Html(between).join(map(Html.escape, parts))


def stack(*blocks: object) -> Html:
    """Blocks one below the other; empty ones are left out."""
    return Html('<div class="sf-stack">{}</div>').format(join(block for block in blocks if block))


def chip(text: object, colour: str | None = None, title: str = "", tone: Kind | None = None) -> Html:
    """A small label. colour: a task's, shown as a dot."""
    dot = Html('<span class="sf-dot" style="background:{}"></span>').format(_colour(colour)) if colour else ""
    tip = Html(' title="{}"').format(title) if title else ""
    return Html('<span class="sf-chip{}"{}>{}<span class="sf-chip-text">{}</span></span>').format(
        _tone("sf-chip", tone), tip, dot, text
    )


def swatch(colour: str, pattern: str = "") -> Html:
    """A model's colour and pattern (in plotly's words), as the bars of the plots have them."""
    kind = _SWATCHES.get(pattern, "plain")
    square = Html('<span class="sf-swatch sf-swatch-{}" style="--sf-swatch:{}"></span>')
    return square.format(kind, _colour(colour))


def chips(items: Iterable[Html]) -> Html:
    """A line of chips that wraps."""
    return Html('<div class="sf-chips">{}</div>').format(join(items))


def card(
    title: object, body: object = "", *, subtitle: object = "", colour: str | None = None, badge: object = ""
) -> Html:
    """A framed block. colour: a task's, shown as an edge on the left. badge: a chip at the top right."""
    opening = '<section class="sf-card sf-card-edged" style="--sf-edge:{}">' if colour else '<section class="sf-card">'
    return Html(
        opening + '<header class="sf-card-head"><div class="sf-card-titles">'
        '<h3 class="sf-card-title">{}</h3>{}</div>{}</header>{}</section>'
    ).format(
        *([_colour(colour)] if colour else []),
        title,
        _div("sf-card-subtitle", subtitle),
        _div("sf-card-badge", badge),
        _div("sf-card-body", body),
    )


def cards(items: Iterable[Html]) -> Html:
    """Cards side by side, as many as fit."""
    return Html('<div class="sf-grid">{}</div>').format(join(items))


def facts(pairs: Iterable[tuple[object, object]]) -> Html:
    """Names and values in two aligned columns."""
    rows = (Html("<dt>{}</dt><dd>{}</dd>").format(name, value) for name, value in pairs)
    return Html('<dl class="sf-facts">{}</dl>').format(join(rows))


def details(summary: object, body: object) -> Html:
    """A block that opens when its summary is clicked."""
    return Html('<details class="sf-details"><summary>{}</summary>{}</details>').format(summary, body)


def notice(kind: Kind, title: object, body: object = "", items: Sequence[object] = ()) -> Html:
    """A message: what happened, and what to do. items: one line each; a single one becomes the body."""
    kind = kind if kind in _MARKS else "info"
    if len(items) == 1 and not body:
        body, items = items[0], ()
    listed = join(Html("<li>{}</li>").format(sentence(item)) for item in items)
    lines = Html('<ul class="sf-notice-items">{}</ul>').format(listed) if items else ""
    return Html(
        '<div class="sf-notice sf-notice-{}" role="{}"><span class="sf-notice-mark" aria-hidden="true">{}</span>'
        '<div><div class="sf-notice-title">{}</div>{}{}</div></div>'
    ).format(
        kind,
        "alert" if kind == "error" else "status",
        _MARKS[kind],
        title,
        _div("sf-notice-body", sentence(body)),
        lines,
    )


def empty_state(title: object, body: object = "") -> Html:
    """Shown where there is nothing yet: what this place is for, and what to do next."""
    text = Html('<p class="sf-empty-body">{}</p>').format(body) if body else ""
    return Html('<div class="sf-empty"><p class="sf-empty-title">{}</p>{}</div>').format(title, text)


def stat(label: object, value: object, hint: object = "", tone: Kind | None = None) -> Html:
    """One figure with its name, and a hint below it."""
    return Html(
        '<div class="sf-stat{}"><div class="sf-stat-label">{}</div><div class="sf-stat-value">{}</div>{}</div>'
    ).format(_tone("sf-stat", tone), label, value, _div("sf-stat-hint", hint))


def stats(items: Iterable[Html]) -> Html:
    """Figures side by side."""
    return Html('<div class="sf-stats">{}</div>').format(join(items))


def progress(fraction: float | None, label: object = "", detail: object = "", kind: Kind = "info") -> Html:
    """A progress bar. fraction: 0..1, or None while the length is unknown. detail: at the right, e.g. the time left."""
    if fraction is None or fraction != fraction:
        bar, value = Html('<div class="sf-progress-fill sf-progress-unknown"></div>'), ""
    else:
        percent = 100 * min(max(float(fraction), 0.0), 1.0)
        bar = Html('<div class="sf-progress-fill" style="width:{:.1f}%"></div>').format(percent)
        value = Html(' aria-valuenow="{:.0f}"').format(percent)
    spoken = Html.escape(label).striptags() or "Progress"
    return Html(
        '<div class="sf-progress{}"><div class="sf-progress-text"><span>{}</span>'
        '<span class="sf-progress-detail">{}</span></div><div class="sf-progress-track" role="progressbar" '
        'aria-label="{}" aria-valuemin="0" aria-valuemax="100"{}>{}</div></div>'
    ).format(_tone("sf-progress", kind), label, detail, spoken, value, bar)


def table(
    columns: Sequence[object], rows: Iterable[Sequence[object]], numeric: Sequence[int] = (), caption: object = ""
) -> Html:
    """A plain table. numeric: positions of columns whose cells are right-aligned, in digits of one width."""

    def cells(tag: str, row: Sequence[object]) -> Html:
        kinds = (Html(" class=sf-number") if i in numeric else "" for i in range(len(row)))
        return join(Html("<{}{}>{}</{}>").format(tag, kind, item, tag) for kind, item in zip(kinds, row, strict=True))

    above = Html("<caption>{}</caption>").format(caption) if caption else ""
    body = join(Html("<tr>{}</tr>").format(cells("td", row)) for row in rows)
    return Html(
        '<div class="sf-table-frame"><table class="sf-table">{}<thead><tr>{}</tr></thead><tbody>{}</tbody>'
        "</table></div>"
    ).format(above, cells("th", columns), body)


def strong(text: object) -> Html:
    """Text that stands out, such as the best cell of a table."""
    return Html("<strong>{}</strong>").format(text)


def small(text: object) -> Html:
    """Small print below a figure, such as its interval."""
    return Html('<span class="sf-small">{}</span>').format(text)


def code(text: object) -> Html:
    """A command, a path or a tensor's name."""
    return Html('<code class="sf-code">{}</code>').format(text)


def hint(text: object) -> Html:
    """A small paragraph: what a control does, or how to read a figure."""
    return Html('<p class="sf-help">{}</p>').format(text)


def heading(title: object, body: object = "") -> Html:
    """A section's title and the sentence below it."""
    text = Html('<p class="sf-heading-body">{}</p>').format(body) if body else ""
    return Html('<div class="sf-heading"><h2 class="sf-heading-title">{}</h2>{}</div>').format(title, text)


def _div(name: str, body: object) -> Html:
    return Html('<div class="{}">{}</div>').format(name, body) if body else Html("")


def _tone(name: str, tone: str | None) -> str:
    return f" {name}-{tone}" if tone in _MARKS else ""


def _colour(colour: str | None) -> str:
    """A colour, and nothing that could do more than colour."""
    return colour if colour and _COLOUR.fullmatch(colour) else "var(--sf-muted)"
