"""The writing systems of the `glyphs` pack: the characters of each task, and the names of the classes."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass


@dataclass(frozen=True)
class Script:
    """One task. characters: one class each, in the order of the classes."""

    name: str
    title: str
    characters: str
    description: str

    def labels(self) -> list[str]:
        """The names of the classes, see `label`."""
        return [label(character) for character in self.characters]


def label(character: str) -> str:
    """The glyph, and its Unicode name if it is not ASCII, because Cyrillic А and Latin A look alike: `Б be`."""
    if character.isascii() and character.isalnum():
        return character
    name = unicodedata.name(character)
    for script in ("GREEK SMALL", "CYRILLIC CAPITAL", "HEBREW", "GEORGIAN", "HIRAGANA"):
        name = name.removeprefix(f"{script} LETTER ")
    return f"{character} {name.lower()}"


SCRIPTS: tuple[Script, ...] = (
    Script("digits", "Digits", "0123456789", "Handwritten digits 0 to 9 (MNIST)."),
    Script("latin", "Latin capitals", "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "A to Z. Shares many shapes with Cyrillic."),
    Script("cyrillic", "Cyrillic capitals", "АБВГДЕЖЗИКЛМНОПРСТУФХЦЧШЪЫЬЭЮЯ", "30 capitals (without Й and Щ)."),
    Script("greek", "Greek letters", "αβγδεζηθικλμνξοπρστυφχψω", "The 24 small letters, alpha to omega."),
    Script("hebrew", "Hebrew letters", "אבגדהוזחטיכלמנסעפצקרשת", "The 22 letters, without final forms."),
    Script("georgian", "Georgian letters", "აბგდევზთიკლმნოპჟრსტუფქღყშჩცძწჭხჯჰ", "The 33 Mkhedruli letters."),
    Script("hiragana", "Hiragana", "あいうえおかきくけこさしすせそたちつてとなにぬねの", "25 kana, a to no."),
    Script("maths", "Maths signs", "+−×÷±=≠≈<>≤≥¬∞∫∑∏√∂∆", "20 operators, relations and signs."),
)
