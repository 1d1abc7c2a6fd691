"""The words of the tab, for whoever meets them for the first time."""

from __future__ import annotations

from sftm_app.ui.widgets.html import Safe, facts

WORDS = (
    ("Task matrix", "what fine-tuning changed in one layer: its weight minus the base's"),
    ("Singular feature", "a part of that change: it reads one direction of the input and writes one of the output"),
    ("Gain", "how strongly a feature writes what it reads"),
    ("Energy", "gain squared; the marks on the spectra stand where 90, 95 and 99 % of a task's energy is reached"),
    ("Effective rank", "how many features a task really uses, by how evenly its gains are spread"),
    ("Stable rank", "the same, seen from the strongest feature: all energy divided by that one's"),
    ("Overlap", "how alike two directions are: 1 is the same, 0 nothing in common. Two directions drawn at random in a "
     "space of these sizes are seldom at 0: the random level says what they show"),
    ("Interference", "overlap in reading times overlap in writing: what one feature adds to another, the entries of A"),
    ("Coefficient", "with what strength the merge adds a feature, in place of its gain"),
    ("Residual stream", "the vector that a transformer's layers read from and add to; only in it do directions "
     "stand for tokens"),
)  # fmt: skip


def words_html() -> Safe:
    """A list that opens."""
    return Safe(f'<details class="sf-details"><summary>Words on this page</summary>{facts(WORDS)}</details>')
