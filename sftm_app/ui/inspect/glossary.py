"""The terms of the tab, for a person who meets them for the first time."""

from __future__ import annotations

from sftm_app.ui.widgets.html import Html, details, facts

TERMS = (
    ("Task matrix", "what fine-tuning changed in one layer: the task's weight minus the base's"),
    (
        "Singular feature",
        "one term of the task matrix's SVD: it reads one direction of the input and writes one direction of the output",
    ),
    ("Gain", "the singular value of a feature: how strongly it writes what it reads"),
    ("Energy", "gain squared; the marks on the spectra show where 90, 95 and 99 % of a task's energy is reached"),
    ("Effective rank", "how many features a task really uses, from the entropy of its energies"),
    ("Stable rank", "the same as seen from the strongest feature: the total energy divided by the largest"),
    (
        "Overlap",
        "the absolute cosine between two directions: 1 if they are the same, 0 if they are orthogonal. Two random "
        "directions are seldom exactly orthogonal; the random level shows their typical overlap",
    ),
    (
        "Interference",
        "read overlap times write overlap, with its sign: how much one feature adds to the readout of another (an "
        "entry of A)",
    ),
    ("Coefficient", "how strongly the merge adds a feature, in place of its gain"),
    (
        "Residual stream",
        "the vector that the layers of a transformer read from and add to; only there do directions stand for tokens",
    ),
)


def glossary_html() -> Html:
    """A list that opens."""
    return details("Terms on this page", facts(TERMS))
