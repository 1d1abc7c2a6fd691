"""Accuracy of merges of a demo pack: `python -m bench.accuracy [--pack glosses] [--few]`.

Prints Markdown tables, measured on all held-out samples: a few models by task, the same models on the pack's unseen
samples if it has some, and the mean over the tasks for a grid of scalings and ranks (`--few`: a small grid).
`gap closed` is (merge - base) / (individual - base) of the means.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from bench.machine import machine_line
from sftm_app.evaluation.accuracy import accuracy
from sftm_app.evaluation.candidates import BASE, INDIVIDUAL, Candidate, ModelPool, method_candidate
from sftm_app.evaluation.packs import PACK_NAME, Pack, find_packs, load_samples
from sftm_app.evaluation.samples import Samples
from sftm_app.evaluation.text_files import load_texts
from sftm_app.planning.planner import open_inputs
from sftm_app.planning.recipe import make_recipe
from sftm_app.resources import asset_path
from sftm_app.session import open_session
from sftm_app.weights.json_files import read_json

SCALINGS = tuple(round(0.1 * step, 1) for step in range(1, 11))
RANKS = (None, 0.5, 0.25, 0.125)
SFTM_SCALINGS = (0.4, 0.6, 0.8, 1.0, 1.2)


@dataclass(frozen=True)
class Means:
    """Mean accuracies 0..1 of base and individual models, the reference for `gap closed`."""

    base: float
    individual: float

    def row(self, title: str, mean: float) -> str:
        """A row of the second table."""
        closed = (mean - self.base) / (self.individual - self.base)
        return f"| {title} | {mean:.1%} | {closed:.0%} |"


def grid(few: bool) -> list[Candidate]:
    """Every merge that is measured."""
    merges = [method_candidate("average")]
    if few:
        merges += [method_candidate("task_arithmetic", {"scaling": scaling}) for scaling in (0.3, 0.6, 0.8, 1.0)]
        merges += [method_candidate("sftm", {"rank": None, "scaling": scaling}) for scaling in (0.8, 1.0)]
        merges += [method_candidate("sftm", {"calibration": strength}) for strength in (0.0, 0.5)]
        return [*merges, method_candidate("sftm", {"variant": "readout"})]
    merges += [method_candidate("task_arithmetic", {"scaling": scaling}) for scaling in SCALINGS]
    for rank in RANKS:
        merges += [method_candidate("sftm", {"rank": rank, "scaling": scaling}) for scaling in SFTM_SCALINGS]
    merges += [method_candidate("sftm", {"variant": "mapping", "scaling": scaling}) for scaling in SFTM_SCALINGS]
    return merges


def measure(model_pool: ModelPool, candidates: list[Candidate], samples: dict[str, Samples]) -> dict[str, list[float]]:
    """The accuracies of each candidate, by its key: one for each task."""
    found = {}
    for candidate in candidates:
        tasks = model_pool.task_names
        found[candidate.key] = [accuracy(model_pool.model(candidate, task), samples[task]) for task in tasks]
        print(f"<!-- {candidate.title}: {sum(found[candidate.key]) / len(samples):.4f} -->", flush=True)
    return found


def load_unseen(pack: Pack) -> dict[str, Samples]:
    """The samples of a pack that no task model was tuned for, by title."""
    folder = pack.base.parent
    entries = read_json(folder / PACK_NAME).get("unseen", [])
    return {entry["title"]: load_texts(folder / entry["samples"]) for entry in entries}


def unseen_table(model_pool: ModelPool, shown: list[Candidate], titles: list[str], unseen: dict[str, Samples]) -> str:
    """A Markdown table of accuracies on unseen samples; in place of `Individual`, the best of the task models."""

    def measured(candidate: Candidate, samples: Samples) -> float:
        tasks = model_pool.task_names if candidate.key == INDIVIDUAL.key else model_pool.task_names[:1]
        return max(accuracy(model_pool.model(candidate, task), samples) for task in tasks)

    titles = ["Best of the individual" if title == "Individual" else title for title in titles]
    lines = [f"| unseen | {' | '.join(titles)} |", f"|---|{'---:|' * len(titles)}"]
    for name, samples in unseen.items():
        lines.append(f"| {name} | {' | '.join(f'{measured(candidate, samples):.1%}' for candidate in shown)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pack", default="glyphs", help="name of the demo pack")
    parser.add_argument("--few", action="store_true", help="a few merges instead of the whole grid")
    options = parser.parse_args()
    pack = next(pack for pack in find_packs(asset_path("demo")) if pack.name == options.pack)
    merges = grid(options.few)
    tasks = [{"path": task.path, "name": task.name} for task in pack.tasks]
    session = open_session("cpu")
    model_pool = ModelPool(open_inputs(make_recipe(pack.base, tasks), session), session)
    samples: dict[str, Samples] = {task.name: load_samples(task) for task in pack.tasks}

    measured = measure(model_pool, [BASE, INDIVIDUAL, *merges], samples)
    means = {key: sum(values) / len(values) for key, values in measured.items()}
    reference = Means(means[BASE.key], means[INDIVIDUAL.key])
    arithmetic = [c for c in merges if c.kind == "task_arithmetic"]
    best = max(arithmetic, key=lambda candidate: means[candidate.key])
    sftm = method_candidate("sftm", {"rank": None, "scaling": 1.0})

    print(f"\n{machine_line()}\n")
    shown = [BASE, INDIVIDUAL, method_candidate("average"), best, sftm]
    titles = [
        "Base",
        "Individual",
        "Plain average",
        f"Task arithmetic, best scaling {_scaling(best)}",
        "SFTM, defaults",
    ]
    print(f"| task | {' | '.join(titles)} |\n|---|{'---:|' * len(titles)}")
    for index, task in enumerate(pack.tasks):
        print(f"| {task.title} | {' | '.join(f'{measured[c.key][index]:.1%}' for c in shown)} |")
    print(f"| **mean** | {' | '.join(f'**{means[c.key]:.1%}**' for c in shown)} |")
    if unseen := load_unseen(pack):
        print(f"\n{unseen_table(model_pool, shown, titles, unseen)}")
    print("\n| merge | mean accuracy | gap closed |\n|---|---:|---:|")
    for candidate in merges:
        print(reference.row(candidate.title, means[candidate.key]))


def _scaling(candidate: Candidate) -> str:
    return candidate.title.rpartition(" ")[2].rstrip(")")


if __name__ == "__main__":
    main()
