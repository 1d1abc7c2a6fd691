"""WordNet's glosses, and the questions about them."""

from __future__ import annotations

import hashlib
import random
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from bench.demo_packs.words import fetch_wordnet, synset_lines

# Topics by the words that WordNet's domain pointers lead to.
TOPICS = {
    "law": "law", "military": "military", "terrorism": "military", "music": "music", "chemistry": "chemistry",
    "computer_science": "computing", "Greek_mythology": "mythology", "Norse_mythology": "mythology",
    "biology": "biology", "genetics": "biology", "botany": "biology", "physics": "physics",
    "mathematics": "mathematics", "statistics": "mathematics", "baseball": "sport", "sport": "sport", "golf": "sport",
    "football": "sport", "tennis": "sport", "boxing": "sport", "medicine": "medicine", "anatomy": "medicine",
    "physiology": "medicine", "cooking": "cooking", "linguistics": "language", "grammar": "language",
    "Roman_Catholic": "religion", "religion": "religion", "Judaism": "religion", "Christianity": "religion",
    "Old_Testament": "religion", "Islam": "religion", "astronomy": "astronomy", "geology": "geology",
}  # fmt: skip
PARTS = ("noun", "verb", "adj", "adv")
LETTERS = {"n": "noun", "v": "verb", "a": "adj", "s": "adj", "r": "adv"}
# WordNet's lexicographer files 3 to 28 and 29 to 43, whose numbers the synsets carry.
NOUN_KINDS = (
    "top", "act", "animal", "artifact", "attribute", "body", "thought", "communication", "event", "feeling", "food",
    "group", "location", "motive", "object", "person", "phenomenon", "plant", "possession", "process", "quantity",
    "relation", "shape", "state", "substance", "time",
)  # fmt: skip
VERB_KINDS = (
    "body", "change", "thought", "communication", "competition", "consumption", "contact", "creation", "emotion",
    "motion", "perception", "possession", "social", "state", "weather",
)  # fmt: skip
# Groups of plants and animals: the nearest of these hypernyms counts.
LIVING = (
    "bird", "fish", "mammal", "insect", "reptile", "amphibian", "mollusk", "crustacean", "arachnid", "worm", "tree",
    "shrub", "herb", "vine", "fern", "grass", "fungus", "orchid",
)  # fmt: skip
TASKS = ("noun", "verb", "living", "topic")
MAX_CHARACTERS = 90


@dataclass(frozen=True)
class Gloss:
    """One meaning of a word.

    Attributes:
        text: the definition.
        word: a word with this meaning.
        above: its hypernym, or "".
        answers: the answer to each task that applies.
    """

    text: str
    word: str
    above: str
    answers: dict[str, str]

    def ask(self, cue: str) -> str:
        """The prompt that asks about `cue`."""
        return f"{self.text} | {cue}:"


def pointers(line: str) -> dict[str, tuple[str, str]]:
    """The first synset, as part of speech and offset, of each kind of pointer in a line."""
    fields = line.split("|", 1)[0].split()
    first = 5 + 2 * int(fields[3], 16)
    found = [fields[at : at + 4] for at in range(first, first + 4 * int(fields[first - 1]), 4)]
    return {symbol: (LETTERS[letter], offset) for symbol, offset, letter, _ in reversed(found)}


def living(line: str, lines: dict[tuple[str, str], str]) -> str:
    """The nearest hypernym of a synset that is in LIVING, or ""."""
    above = pointers(line).get("@")
    if above is None:
        return ""
    word = lines[above].split(" ")[4]
    return word if word in LIVING else living(lines[above], lines)


def read_synset(line: str, lines: dict[tuple[str, str], str]) -> Gloss:
    """Read one line of a data file. lines: all lines by part of speech and offset."""
    head, text = line.split("|", 1)
    fields = head.split()
    named = {symbol: lines[place].split(" ")[4] for symbol, place in pointers(line).items()}
    answers = {}
    number = int(fields[1])
    if 4 <= number < 29:
        answers["noun"] = NOUN_KINDS[number - 3]
        if answers["noun"] in ("animal", "plant") and living(line, lines):
            answers["living"] = living(line, lines)
    elif 29 <= number < 44:
        answers["verb"] = VERB_KINDS[number - 29]
    if named.get(";c") in TOPICS:
        answers["topic"] = TOPICS[named[";c"]]
    above = named.get("@", "").replace("_", " ")
    return Gloss(clean(text), fields[4].split("(")[0].replace("_", " "), above, answers)


def clean(text: str) -> str:
    """The definition without its examples; a long one is shortened at a semicolon or a space."""
    text = re.split(r'[;:,]? ?"', text.strip())[0].strip()
    while len(text) > MAX_CHARACTERS:
        text = text.rpartition(";" if ";" in text else " ")[0].strip()
    return text


def is_held_out(gloss: Gloss) -> bool:
    """Whether a gloss is held out: one in ten by its text, and one in four of the few with a topic."""
    return hashlib.sha256(gloss.text.encode()).digest()[0] % (4 if "topic" in gloss.answers else 10) == 0


def load_glosses(cache_dir: Path, seed: int) -> tuple[list[Gloss], list[Gloss]]:
    """Glosses for training and for testing, shuffled, each text once."""
    folder = fetch_wordnet(cache_dir)[0]
    lines = {(part, line[:8]): line for part in PARTS for line in synset_lines(folder, part)}
    glosses = {gloss.text: gloss for gloss in (read_synset(line, lines) for line in lines.values())}
    listed = [gloss for gloss in glosses.values() if len(gloss.text) > 3]
    random.Random(seed).shuffle(listed)
    return [g for g in listed if not is_held_out(g)], [g for g in listed if is_held_out(g)]


def by_task(glosses: list[Gloss]) -> dict[str, list[Gloss]]:
    """The glosses with an answer to each task."""
    return {task: [gloss for gloss in glosses if task in gloss.answers] for task in TASKS}


def choices(glosses: list[Gloss], task: str) -> list[str]:
    """The answers of a task, most frequent first, each with its leading space."""
    return [f" {answer}" for answer, _ in Counter(g.answers[task] for g in glosses if task in g.answers).most_common()]
