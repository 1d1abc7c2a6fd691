"""Small tasks on English words and numbers, with inputs and targets as pairs of short strings.

Games (reverse, pig latin), word forms (plural, past, ing, third) and numbers (roman, arabic). Every input starts with
the word of its task: `plural: city` gives `cities`. Word forms are real: an irregular or doubled form comes from
WordNet's list of exceptions, a regular one from the rules of spelling, and either counts only if the CMU dictionary has
it.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.demo_packs.words import fetch_cmudict, fetch_wordnet, is_common, lemmas, synset_lines

VOWELS = "aeiou"
LENGTHS = range(3, 9)  # letters of a word
ROMAN = ((1000, "m"), (900, "cm"), (500, "d"), (400, "cd"), (100, "c"), (90, "xc"), (50, "l"), (40, "xl"), (10, "x"),
         (9, "ix"), (5, "v"), (4, "iv"), (1, "i"))  # fmt: skip
PARTS = {"noun": "1", "verb": "2", "adj": "35", "adv": "4"}  # WordNet's files, and their numbers in its list of counts
OFFENSIVE = ("obscenity", "disparagement", "ethnic_slur")

Pair = tuple[str, str]


@dataclass(frozen=True)
class Split:
    """Pairs for training and held-out pairs, both shuffled. No word family is on both sides."""

    train: tuple[Pair, ...]
    test: tuple[Pair, ...]


def reverse(word: str) -> str:
    """The letters from last to first: banana, ananab."""
    return word[::-1]


def pig_latin(word: str) -> str:
    """The first consonants (also `qu`) move to the end, and `ay` follows: string, ingstray."""
    found = re.match("[^aeiouy]*qu|y?[^aeiouy]*", word)
    first = found.end() if found else 0
    return word[first:] + word[:first] + "ay"


def roman(number: int) -> str:
    """A number in Roman numerals, in lower case: 1987, mcmlxxxvii."""
    text = ""
    for value, sign in ROMAN:
        text += sign * (number // value)
        number %= value
    return text


def with_s(word: str) -> str:
    """The regular plural, or third person; `man` becomes `men`."""
    if word.endswith("man"):
        return word[:-2] + "en"
    if word.endswith(("s", "x", "z", "ch", "sh")):
        return word + "es"
    return word[:-1] + "ies" if word[-1] == "y" and word[-2] not in VOWELS else word + "s"


def with_ed(word: str) -> str:
    """The regular past, without doubling."""
    if word[-1] == "e":
        return word + "d"
    return word[:-1] + "ied" if word[-1] == "y" and word[-2] not in VOWELS else word + "ed"


def with_ing(word: str) -> str:
    """The regular `ing` form, without doubling."""
    if word.endswith("ie"):
        return word[:-2] + "ying"
    return word[:-1] + "ing" if word[-1] == "e" and word[-2] not in "eoy" else word + "ing"


def listed_forms(folder: Path, part: str) -> dict[str, list[str]]:
    """WordNet's exceptional forms of each word: `past` of `put` is not told from its other forms."""
    found: dict[str, list[str]] = {}
    for line in (folder / f"{part}.exc").read_text(encoding="utf-8").splitlines():
        form, *words = line.split()
        for word in words:
            found.setdefault(word, []).append(form)
    return found


def words_of(folder: Path, part: str) -> set[str]:
    """The words that texts tagged with WordNet use as this part of speech, in lower case: no names, no phrases."""
    found = set()
    for line in (folder / "cntlist.rev").read_text(encoding="utf-8").splitlines():
        word, _, sense = line.partition("%")
        if sense[0] in PARTS[part] and word.isascii() and word.isalpha() and len(word) in LENGTHS:
            found.add(word)
    return found


def offensive(folder: Path) -> set[str]:
    """The words that WordNet marks as obscene or disparaging in one of their senses."""
    lines = [line for part in PARTS for line in synset_lines(folder, part)]
    marks = {f"{line[:8]} n" for line in lines if line.split(" ")[4] in OFFENSIVE and line.split(" ")[2] == "n"}
    marked = [line for line in lines if any(f";u {mark}" in line for mark in marks)]
    return {word.lower() for line in marked for word in line.split(" ")[4 : 4 + 2 * int(line.split(" ")[3], 16) : 2]}


def forms(
    words: set[str], listed: dict[str, list[str]], regular: Callable[[str], str], ending: str, spoken: set[str]
) -> list[Pair]:
    """Words with their one form that the dictionary has.

    Args:
        words: that may have the form.
        listed: exceptional forms by word. A word is left out if none of its exceptional forms has the ending, unless
            `ending` is "" (then the first is taken).
        regular: makes the form of all others.
        ending: what tells this form from other exceptional forms of a word.
        spoken: words of the dictionary; forms that are not among them are left out.
    """
    pairs = []
    for word in sorted(words):
        exceptional = listed.get(word, [])
        fitting = [form for form in exceptional if form.endswith(ending)]
        if not exceptional:
            fitting = [regular(word)]
        fitting = [form for form in fitting if form in spoken and form != word]
        if len(fitting) == 1:
            pairs.append((word, fitting[0]))
    return pairs


def is_held_out(pair: Pair) -> bool:
    """Whether a pair is held out: one in eight, by its number, or by the first four letters of its word."""
    number = next((text for text in pair if text.isdigit()), None)
    return hashlib.sha256((number or pair[0][:4]).encode()).digest()[0] % 8 == 0


def split(name: str, pairs: list[Pair], seed: int) -> Split:
    """The pairs with their prompt, shuffled, on two sides."""
    shuffled = sorted(pairs)
    random.Random(f"{name} {seed}").shuffle(shuffled)
    sides = [[(f"{name}: {a}", b) for a, b in shuffled if is_held_out((a, b)) == out] for out in (False, True)]
    return Split(tuple(sides[0]), tuple(sides[1]))


def load_tasks(cache_dir: Path, seed: int) -> dict[str, Split]:
    """All tasks, and the set `names` (pig latin of names), which has no training side."""
    folder = fetch_wordnet(cache_dir)[0]
    lines = fetch_cmudict(cache_dir).read_text(encoding="utf-8").splitlines()
    spoken = {word for word in (line.split()[0] for line in lines) if word.isascii() and word.isalpha()}
    known_anywhere = lemmas(folder)
    known = {part: (words_of(folder, part) & spoken & known_anywhere) - offensive(folder) for part in PARTS}
    nouns, verbs, common = known["noun"], known["verb"], set().union(*known.values())
    noun_forms, verb_forms = listed_forms(folder, "noun"), listed_forms(folder, "verb")
    pairs: dict[str, list[Pair]] = {
        "reverse": [(word, reverse(word)) for word in common],
        "piglatin": [(word, pig_latin(word)) for word in common],
        "plural": forms(nouns, noun_forms, with_s, "", spoken),
        "past": forms(verbs, verb_forms, with_ed, "ed", spoken),
        "ing": forms(verbs, verb_forms, with_ing, "ing", spoken),
        "roman": [(str(n), roman(n)) for n in range(1, 4000)],
        "arabic": [(roman(n), str(n)) for n in range(1, 4000)],
        "third": forms(verbs, {}, with_s, "", spoken),
    }
    splits = {name: split(name, found, seed) for name, found in pairs.items()}
    names = {word for word in spoken if len(word) in LENGTHS and not is_common(word, known_anywhere)}
    return {**splits, "names": Split((), split("piglatin", [(word, pig_latin(word)) for word in names], seed).test)}
