"""Why a feature got its coefficient, in plain words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sftm_app.inspection.what_if import Prediction
from sftm_app.methods import METHODS

# Contributions below this share of what is wanted are not worth a name, and differences below it no reason.
WORTH_SAYING = 0.02
MOST_NAMED = 3


@dataclass(frozen=True)
class Neighbour:
    """A feature of another task: member (position in the layer) and task, feature counted from 0, its gain.

    read_cosine, write_cosine: signed, -1..1. entry: their product, of A. contribution: entry times its coefficient,
    what it already puts into the readout of the feature that it is a neighbour of.
    """

    member: int
    task: str
    feature: int
    gain: float
    read_cosine: float
    write_cosine: float
    entry: float
    contribution: float


def reason(
    prediction: Prediction,
    names: Sequence[str],
    member: int,
    feature: int,
    gain: float,
    target: float,
    neighbours: Sequence[Neighbour],
) -> str:
    """Why the coefficient is what it is. target: weight and scaling included."""
    method, kept = METHODS[prediction.settings.method], prediction.ranks[member]
    title = method.title
    a, readout = float(prediction.coefficients[member][feature]), float(prediction.readouts[member][feature])
    others = readout - a
    little = WORTH_SAYING * abs(target)
    if feature >= kept:
        return (
            f"{title} keeps {kept} of {names[member]}'s {len(prediction.coefficients[member])} features here, so "
            f"feature {feature + 1} is cut off. {_side_effect(others, readout, gain, little)}"
        )
    if prediction.condition is None:
        # The variant mapping is an average then.
        nothing = (
            "has nothing to solve where every task reads all inputs"
            if method.matrix_rule == "superpose"
            else "solves nothing"
        )
        return (
            f"{title} {nothing}: it adds {a / gain:.3g} times every gain of {names[member]}, here {a:.3g} of "
            f"{gain:.3g}. {_side_effect(others, readout, gain, little)}"
        )
    goal = f"the gain {gain:.3g}"
    if abs(target - gain) > 1e-6 * gain:
        goal = f"the {target:.3g} that its gain {gain:.3g}, the task's weight and the scaling ask for"
    if abs(others) <= little:
        calm = all(abs(n.contribution) <= little for n in neighbours)
        why = "the other tasks' features write next to nothing of it" if calm else "what the others write cancels out"
        return f"{title} adds {a:.3g} of {goal}: {why}."
    if a < 0:
        added = f"takes {-a:.3g} away, against {goal}"
    else:
        added = f"adds {a:.3g}, more than {goal}" if a - target > little else f"adds {a:.3g} of {goal}"
    return f"{title} {added}: {_who(neighbours, others, little)}."


def _who(neighbours: Sequence[Neighbour], others: float, little: float) -> str:
    """Which neighbours make up what the others contribute."""
    alike = sorted((n for n in neighbours if n.contribution * others > 0), key=lambda n: -abs(n.contribution))
    named = [n for n in alike[:MOST_NAMED] if abs(n.contribution) > little]
    called = word_list([f"{n.task}'s feature {n.feature + 1}" for n in named])
    one, many, end = ("already writes", "already write", "of it") if others > 0 else ("takes", "take", "of it away")
    if abs(sum(n.contribution for n in named) - others) <= 0.2 * abs(others):
        amounts = word_list([f"{abs(n.contribution):.3g}" for n in named])
        return f"{called} {one if len(named) == 1 else many} {amounts} {end}"
    most = f", {called} the largest parts" if len(named) > 1 else f", {called} the largest part" if named else ""
    return f"many features together {many} {abs(others):.3g} {end}{most}"


def _side_effect(others: float, readout: float, gain: float, little: float) -> str:
    if abs(others) <= little:
        return f"Other features write next to nothing along it, so {readout:.3g} of its gain {gain:.3g} is read."
    verb = "write" if others > 0 else "take"
    where = "along it" if others > 0 else "away"
    return f"Other features {verb} {abs(others):.3g} {where}, so {readout:.3g} of its gain {gain:.3g} is read."


def shortfall(prediction: Prediction, names: Sequence[str], member: int, feature: int, target: float) -> list[str]:
    """What keeps a solved coefficient from giving what is wanted; nothing where it does, or none was solved."""
    readout = float(prediction.readouts[member][feature])
    missed = abs(readout - target) > WORTH_SAYING * abs(target)
    if prediction.condition is None or feature >= prediction.ranks[member] or not missed:
        return []
    said = [f"Together that gives {readout:.3g}, not {target:.3g}."]
    for conflict in prediction.conflicts:
        if member in (conflict.first, conflict.second):
            other = names[conflict.second if member == conflict.first else conflict.first]
            said.append(
                f"{names[member]} and {other} oppose each other in this layer (cosine {conflict.cosine:.2f}), and no "
                "superposition keeps both."
            )
    if prediction.n_dropped:
        said.append(f"{prediction.n_dropped} directions that the tasks do not determine were left out of the solution.")
    if getattr(prediction.settings.params, "variant", "") == "mapping":
        said.append("The variant mapping weighs each feature's whole output and does not insist on its gain.")
    return said


def word_list(words: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"; "" for none."""
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else "".join(words)
