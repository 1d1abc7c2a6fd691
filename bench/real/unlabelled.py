"""How good is a scaling that is picked without labels? `python -m bench.real.unlabelled text | sre | vision | lora`

For every method with a scaling that is named, the scaling at which the merge agrees most with each task's own model on
unlabelled inputs (`sftm_app.tuning.unlabelled`), against the best scaling of the same grid and against the default, all
by accuracy on the first test part. The inputs are validation inputs, which are in no other set. Regret is how much of
the accuracy of the best scaling is missed. Nothing is trained.

    python -m bench.real.unlabelled vision --methods sftm --inputs 16,64 --scalings 0.6,1.0,1.4
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

import numpy as np

from bench.real.bench import TEST, settings
from bench.real.compare import BENCHES, make_study
from bench.real.merging import Workplace
from bench.real.packages import CACHE
from bench.real.results import correctness, settings_key
from bench.real.stages import measured, set_up, table
from sftm_app.evaluation.samples import Samples
from sftm_app.methods import METHODS
from sftm_app.methods.params import values_of
from sftm_app.tuning.unlabelled import TriedScaling, pick, scan_scalings

GRID = (0.4, 0.6, 0.8, 1.0, 1.2, 1.5)
COUNTS = (16, 64)


@dataclass(frozen=True)
class Line:
    """One method on one bench with so many inputs a task. Accuracies are means over tasks, 0..1."""

    method: str
    n_inputs: int
    picked: float
    accuracy: float
    best: float
    best_accuracy: float
    default: float
    default_accuracy: float

    @property
    def regret(self) -> float:
        """What the pick misses of the best scaling's accuracy."""
        return self.best_accuracy - self.accuracy


def accuracies(place: Workplace, method: str, grid: Sequence[float]) -> dict[float, float]:
    """The mean accuracy over tasks on the first test part, by scaling."""
    cases = [(task, TEST) for task in place.names if task in place.bench.scored]
    found = {}
    for scaling in grid:
        correct = correctness(place, settings(method, scaling=scaling), cases)
        found[scaling] = float(np.mean([correct[case].mean() for case in cases]))
    return found


def divergences(
    place: Workplace, method: str, grid: Sequence[float], inputs: Mapping[str, Samples]
) -> list[TriedScaling]:
    """How far the merge is from the tasks' own models, by scaling; kept with the bench's results."""
    n_inputs = max(map(len, inputs.values()))

    def scan() -> list[dict[str, float]]:
        tested = scan_scalings(place.found, inputs, place.session, method, scalings=grid)
        return [asdict(one) for one in tested]

    name = f"{settings_key(place.names, settings(method))}-{n_inputs}-{'-'.join(map(str, grid))}.json"
    return [TriedScaling(**one) for one in measured(place.bench.home / "unlabelled" / name, scan)]


def lines_of(place: Workplace, method: str, grid: Sequence[float], counts: Sequence[int]) -> list[Line]:
    """One line for each number of inputs. The default scaling is always in the grid."""
    default = float(values_of(METHODS[method].params())["scaling"])
    grid = sorted({*grid, default})
    reached = accuracies(place, method, grid)
    best = max(grid, key=reached.__getitem__)
    found = []
    for count in counts:
        inputs = {task: place.bench.inputs(task).subset(count) for task in place.names if task in place.bench.scored}
        chosen = pick(divergences(place, method, grid, inputs)).scaling
        found.append(Line(method, count, chosen, reached[chosen], best, reached[best], default, reached[default]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bench", choices=BENCHES)
    parser.add_argument("--cache", type=Path, default=CACHE, help=f"folder for packages and models (default: {CACHE})")
    parser.add_argument("--methods", default="sftm,task_arithmetic,ties", help="methods with a scaling")
    parser.add_argument("--scalings", default=",".join(map(str, GRID)), help="the grid")
    parser.add_argument("--inputs", default=",".join(map(str, COUNTS)), help="how many inputs of each task")
    options = parser.parse_args()
    set_up()
    study = make_study(options.bench, options.cache.expanduser().resolve(), (0,), quick=True)
    grid, counts = [float(one) for one in options.scalings.split(",")], [int(one) for one in options.inputs.split(",")]
    lines = [
        line
        for method in options.methods.split(",")
        for line in lines_of(study.first_seed().places[0], method, grid, counts)
    ]
    columns = ["picked", "its accuracy", "best of the grid", "its accuracy", "default", "its accuracy", "regret"]
    rows = [
        (
            f"{METHODS[line.method].title}, {line.n_inputs} inputs a task",
            [
                f"{line.picked:g}",
                f"{line.accuracy:.1%}",
                f"{line.best:g}",
                f"{line.best_accuracy:.1%}",
                f"{line.default:g}",
                f"{line.default_accuracy:.1%}",
                f"{100 * line.regret:.1f}",
            ],
        )
        for line in lines
    ]
    print(table(options.bench, columns, rows))
    default_regret = fmean(line.best_accuracy - line.default_accuracy for line in lines)
    print(
        f"\nMean regret in points: {100 * fmean(line.regret for line in lines):.2f} of the pick, "
        f"{100 * default_regret:.2f} of the default."
    )


if __name__ == "__main__":
    main()
