"""Small blocks of HTML. Every plain text is escaped; only what these helpers made themselves (`Safe`) goes in as it is.

Show the result with `gr.HTML(block, apply_default_css=False)`: Gradio's own text styles would spoil the spacing.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from typing import Literal

Kind = Literal["info", "ok", "warning", "error"]

_CODE = re.compile(r"`([^`\n]+)`")
_COLOUR = re.compile(r"#[0-9a-fA-F]{3,8}|var\(--[\w-]+\)")
# What a right-to-left mark or a control character in a name could do to the text around it.
_INVISIBLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]")
_MARKS = {"info": "i", "ok": "✓", "warning": "!", "error": "×"}


class Safe(str):
    """HTML that a helper of this module made: every untrusted text in it is escaped."""

    __slots__ = ()


def safe(text: object) -> Safe:
    """Any text as HTML that shows it letter by letter; a `Safe` is returned unchanged."""
    if isinstance(text, Safe):
        return text
    return Safe(html.escape(_INVISIBLE.sub("\ufffd", str(text)), quote=True))


def sentence(text: object) -> Safe:
    """Words for a person: any text, in which what stands between backticks is shown as code."""
    return text if isinstance(text, Safe) else Safe(_CODE.sub(lambda found: code(Safe(found[1])), safe(text)))


def join(parts: Iterable[object], between: str = "") -> Safe:
    """Blocks in a row; plain texts among them are escaped."""
    return Safe(between.join(safe(part) for part in parts))


def stack(*blocks: object) -> Safe:
    """Blocks below each other at the usual distance; empty ones are left out."""
    return Safe(f'<div class="sf-stack">{join(block for block in blocks if block)}</div>')


def chip(text: object, colour: str | None = None, title: str = "", tone: Kind | None = None) -> Safe:
    """A small label; with a colour it is a task's and carries a dot of it."""
    dot = f'<span class="sf-dot" style="background:{_colour(colour)}"></span>' if colour else ""
    kind = f" sf-chip-{tone}" if tone in _MARKS else ""
    return Safe(
        f'<span class="sf-chip{kind}"{_title(title)}>{dot}<span class="sf-chip-text">{safe(text)}</span></span>'
    )


def chips(items: Iterable[Safe]) -> Safe:
    """A line of chips that wraps."""
    return Safe(f'<div class="sf-chips">{join(items)}</div>')


def card(
    title: object, body: object = "", *, subtitle: object = "", colour: str | None = None, badge: object = ""
) -> Safe:
    """A framed block. colour: a task's, as an edge on the left. badge: a chip at the top right."""
    edge = f' style="--sf-edge:{_colour(colour)}"' if colour else ""
    edged = " sf-card-edged" if colour else ""
    under = f'<div class="sf-card-subtitle">{safe(subtitle)}</div>' if subtitle else ""
    corner = f'<div class="sf-card-badge">{safe(badge)}</div>' if badge else ""
    inside = f'<div class="sf-card-body">{safe(body)}</div>' if body else ""
    return Safe(
        f'<section class="sf-card{edged}"{edge}><header class="sf-card-head"><div class="sf-card-titles">'
        f'<h3 class="sf-card-title">{safe(title)}</h3>{under}</div>{corner}</header>{inside}</section>'
    )


def cards(items: Iterable[Safe]) -> Safe:
    """Cards side by side, as many as fit."""
    return Safe(f'<div class="sf-grid">{join(items)}</div>')


def facts(pairs: Iterable[tuple[object, object]]) -> Safe:
    """Names and values in two aligned columns."""
    rows = "".join(f"<dt>{safe(name)}</dt><dd>{safe(value)}</dd>" for name, value in pairs)
    return Safe(f'<dl class="sf-facts">{rows}</dl>')


def notice(kind: Kind, title: object, body: object = "", items: Sequence[object] = ()) -> Safe:
    """A message with a mark: what happened, and what to do. items: one line each, for several problems at once; one
    alone is the body."""
    kind = kind if kind in _MARKS else "info"
    if len(items) == 1 and not body:
        body, items = items[0], ()
    role = "alert" if kind == "error" else "status"
    text = f'<div class="sf-notice-body">{sentence(body)}</div>' if body else ""
    listed = join(Safe(f"<li>{sentence(item)}</li>") for item in items)
    lines = f'<ul class="sf-notice-items">{listed}</ul>' if items else ""
    return Safe(
        f'<div class="sf-notice sf-notice-{kind}" role="{role}"><span class="sf-notice-mark" aria-hidden="true">'
        f'{_MARKS[kind]}</span><div><div class="sf-notice-title">{safe(title)}</div>{text}{lines}</div></div>'
    )


def empty_state(title: object, body: object = "") -> Safe:
    """Shown where there is nothing yet: what this place is for, and what to do next."""
    text = f'<p class="sf-empty-body">{safe(body)}</p>' if body else ""
    return Safe(f'<div class="sf-empty"><p class="sf-empty-title">{safe(title)}</p>{text}</div>')


def stat(label: object, value: object, hint: object = "", tone: Kind | None = None) -> Safe:
    """One figure with its name, and a hint below it."""
    kind = f" sf-stat-{tone}" if tone in _MARKS else ""
    under = f'<div class="sf-stat-hint">{safe(hint)}</div>' if hint else ""
    return Safe(
        f'<div class="sf-stat{kind}"><div class="sf-stat-label">{safe(label)}</div>'
        f'<div class="sf-stat-value">{safe(value)}</div>{under}</div>'
    )


def stats(items: Iterable[Safe]) -> Safe:
    """Figures side by side."""
    return Safe(f'<div class="sf-stats">{join(items)}</div>')


def progress(fraction: float | None, label: object = "", detail: object = "", kind: Kind = "info") -> Safe:
    """A bar. fraction: 0..1, or None while the length is not known. detail: at the right, e.g. the time left."""
    tone = kind if kind in _MARKS else "info"
    if fraction is None or fraction != fraction:
        bar = '<div class="sf-progress-fill sf-progress-unknown"></div>'
        value = ""
    else:
        percent = 100 * min(max(float(fraction), 0.0), 1.0)
        bar = f'<div class="sf-progress-fill" style="width:{percent:.1f}%"></div>'
        value = f' aria-valuenow="{percent:.0f}"'
    spoken = re.sub("<[^>]*>", "", safe(label)) or "Progress"
    return Safe(
        f'<div class="sf-progress sf-progress-{tone}"><div class="sf-progress-text"><span>{safe(label)}</span>'
        f'<span class="sf-progress-detail">{safe(detail)}</span></div>'
        f'<div class="sf-progress-track" role="progressbar" aria-label="{spoken}" aria-valuemin="0" '
        f'aria-valuemax="100"{value}>{bar}</div></div>'
    )


def table(
    columns: Sequence[object], rows: Iterable[Sequence[object]], numeric: Sequence[int] = (), caption: object = ""
) -> Safe:
    """A plain table. numeric: columns whose cells are set flush right, in figures of one width."""
    flush = set(numeric)

    def cells(tag: str, row: Sequence[object]) -> str:
        return "".join(
            f"<{tag}{' class=sf-number' if i in flush else ''}>{safe(item)}</{tag}>" for i, item in enumerate(row)
        )

    above = f"<caption>{safe(caption)}</caption>" if caption else ""
    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return Safe(
        f'<div class="sf-table-frame"><table class="sf-table">{above}<thead><tr>{cells("th", columns)}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def strong(text: object) -> Safe:
    """Text that stands out, e.g. the best cell of a table."""
    return Safe(f"<strong>{safe(text)}</strong>")


def code(text: object) -> Safe:
    """A command, a path or a tensor's name."""
    return Safe(f'<code class="sf-code">{safe(text)}</code>')


def hint(text: object) -> Safe:
    """A small paragraph: what a control does, or how a figure is read."""
    return Safe(f'<p class="sf-help">{safe(text)}</p>')


def heading(title: object, body: object = "") -> Safe:
    """A section's title and the sentence below it."""
    text = f'<p class="sf-heading-body">{safe(body)}</p>' if body else ""
    return Safe(f'<div class="sf-heading"><h2 class="sf-heading-title">{safe(title)}</h2>{text}</div>')


def _colour(colour: str | None) -> str:
    """A colour that can do nothing but colour."""
    return colour if colour and _COLOUR.fullmatch(colour) else "var(--sf-muted)"


def _title(text: str) -> str:
    return f' title="{safe(text)}"' if text else ""
