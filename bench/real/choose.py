"""Choose SFTM's default by leave-one-bench-out, from what was measured: `python -m bench.real.choose`.

For each bench, the settings that close the largest share of the gap on the other benches, and what they close on this
one. Only settings that were measured on every bench count. Nothing is merged or measured.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from bench.real.bench import TEST
from bench.real.packages import CACHE
from bench.real.results import BASE, INDIVIDUAL
from bench.real.stages import table

# Where the benches keep the results of their first seed.
HOMES = {
    "text": "minilm/results/seed0",
    "sre": "minilm/results-sre/seed0",
    "vision": "dinov2/results/seed0",
    "lora": "smollm2/results/seed0",
    "glyphs": "demos/glyphs/results/seed0",
    "wordplay": "demos/wordplay/results/seed0",
    "glosses": "demos/glosses/results/seed0",
}
OURS = "sftm"


def gaps(home: Path) -> dict[str, float]:
    """The share of the gap that every merge of all tasks closes on the first test part, by its settings."""
    accuracies = {path.stem: _accuracy(path) for path in (home / "correct").glob("*.json")}
    merges = [json.loads(path.read_text(encoding="utf-8")) for path in (home / "merges").glob("*.json")]
    n_tasks = max((len(merge["tasks"]) for merge in merges), default=0)
    low, high = accuracies[BASE], accuracies[INDIVIDUAL]
    found = {}
    for merge in merges:
        tasks, reached = accuracies.get(merge["model"], ({}, 0.0))
        if len(merge["tasks"]) == n_tasks and tasks == low[0]:
            found[merge["settings"]] = (reached - low[1]) / (high[1] - low[1])
    return found


def _accuracy(path: Path) -> tuple[set[str], float]:
    """The tasks with a test part, and the mean of their accuracies."""
    kept: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
    bits = {name: bits for name, bits in kept.items() if name.endswith(f".{TEST}")}
    return set(bits), float(np.mean([text.count("1") / len(text) for text in bits.values()])) if bits else 0.0


def best_without(found: Mapping[str, Mapping[str, float]], left_out: str, settings: Sequence[str]) -> str:
    """The settings with the highest mean over the benches other than `left_out`."""
    others = [name for name in found if name != left_out]
    return max(settings, key=lambda text: sum(found[name][text] for name in others))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=CACHE, help=f"folder for packages and models (default: {CACHE})")
    parser.add_argument("--benches", default=",".join(HOMES), help="benches with commas between (default: all)")
    options = parser.parse_args()
    cache = options.cache.expanduser().resolve()
    homes = {name: cache / HOMES[name] for name in options.benches.split(",")}
    found = {name: gaps(home) for name, home in homes.items() if (home / "merges").exists()}
    common = set.intersection(*(set(one) for one in found.values()))
    every = sorted(common, key=lambda text: -sum(one[text] for one in found.values()))

    def cells(text: str) -> list[str]:
        values = [one[text] for one in found.values()]
        return [*(f"{value:.0%}" for value in values), f"{sum(values) / len(values):.0%}"]

    print(table("settings", [*found, "mean"], [(text, cells(text)) for text in every]))
    ours = [text for text in every if text.split(" ")[0] == OURS]
    others = [text for text in every if text.split(" ")[0] != OURS]
    lines = []
    for name in found:
        chosen, rival = best_without(found, name, ours), best_without(found, name, others)
        lines.append((name, [chosen, f"{found[name][chosen]:.0%}", rival, f"{found[name][rival]:.0%}"]))
    print("\n" + table("left out", ["SFTM chosen without it", "closes", "best other, the same way", "closes"], lines))


if __name__ == "__main__":
    main()
