"""Why a feature got its coefficient, in plain words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sftm_app.inspection.what_if import Prediction
from sftm_app.methods import get_method

# Contributions below this share of what is wanted are not named, and differences below it are no reason.
WORTH_SAYING = 0.02
# The features named explain the others' contribution to within this share of it.
EXPLAINED = 0.2
MOST_NAMED = 3
FRACTIONS = {2: "half", 3: "a third", 4: "a quarter", 5: "one fifth", 6: "one sixth", 7: "one seventh", 8: "one eighth"}


@dataclass(frozen=True)
class Neighbour:
    """A feature of another task.

    Attributes:
        member, task: its task, by position in the layer and by name.
        feature: counted from 0.
        gain: its gain.
        read_cosine, write_cosine: signed, -1..1.
        entry: what a unit of its coefficient adds to the readout: the product of both cosines, an entry of A; in a
            metric an entry of A divided by the diagonal entry of its column.
        contribution: entry times its coefficient, what it adds to the readout of the feature that it is a neighbour of;
            None where features have no coefficients.
    """

    member: int
    task: str
    feature: int
    gain: float
    read_cosine: float
    write_cosine: float
    entry: float
    contribution: float | None


def reason(
    prediction: Prediction,
    names: Sequence[str],
    member: int,
    feature: int,
    gain: float,
    target: float,
    neighbours: Sequence[Neighbour],
) -> str:
    """Say why the coefficient is what it is.

    Args:
        prediction: the merge.
        names: of the layer's members.
        member, feature: the feature, from 0.
        gain: its gain.
        target: the readout that is asked for, weight and scaling included.
        neighbours: see feature_detail.
    """
    title, kept = get_method(prediction.settings.method).title, prediction.ranks[member]
    readout = float(prediction.readouts[member][feature])
    if prediction.coefficients is None:
        return (
            f"{title} does not combine features, so this one has no coefficient: {readout:.3g} of its gain {gain:.3g} "
            "is read back."
        )
    a = float(prediction.coefficients[member][feature])
    others, little = readout - a, WORTH_SAYING * abs(target)
    if feature >= kept:
        features = f"{kept} of {names[member]}'s {len(prediction.coefficients[member])} features"
        cut = f"{title} keeps {features} here, so feature {feature + 1} is cut off."
        return f"{cut} {_side_effect(others, readout, gain, little)}"
    if prediction.condition is None:
        known = f"{title} keeps {_fraction(a / gain)} of each gain of {names[member]}."
        return f"{known} {_side_effect(others, readout, gain, little)}"
    needed = f"the {target:.3g} needed"
    if abs(target - gain) > 1e-6 * gain:
        needed += f" (the gain {gain:.3g} times the task's weight and the scaling)"
    change = f"so {title} subtracts {-a:.3g}" if a < 0 else f"so {title} adds {a:.3g}"
    if abs(others) <= little:
        calm = all(abs(n.contribution or 0.0) <= little for n in neighbours)
        why = "Other features contribute almost nothing" if calm else "The contributions of other features cancel out"
        return f"{why}, {change} of {needed}."
    return f"{_who(neighbours, others, little, needed)}, {change}."


def _who(neighbours: Sequence[Neighbour], others: float, little: float, needed: str) -> str:
    """Which neighbours make up what the others contribute."""
    parts = [(n, n.contribution or 0.0) for n in neighbours]
    alike = sorted((part for part in parts if part[1] * others > 0), key=lambda part: -abs(part[1]))
    named = [part for part in alike[:MOST_NAMED] if abs(part[1]) > little]
    called = word_list([f"{n.task}'s feature {n.feature + 1}" for n, _ in named])
    if abs(sum(amount for _, amount in named) - others) <= EXPLAINED * abs(others):
        amounts, one = word_list([f"{abs(amount):.3g}" for _, amount in named]), len(named) == 1
        if others > 0:
            return f"{called} already {'contributes' if one else 'contribute'} {amounts} of {needed}"
        return f"{called} {'takes' if one else 'take'} {amounts} away from {needed}"
    most = f" (mostly {called})" if named else ""
    if others > 0:
        return f"Other features{most} already contribute {others:.3g} of {needed}"
    return f"Other features{most} take {-others:.3g} away from {needed}"


def _side_effect(others: float, readout: float, gain: float, little: float) -> str:
    if abs(others) <= little:
        why = "Other features contribute almost nothing"
    else:
        why = f"Other features contribute {others:.3g}" if others > 0 else f"Other features take {-others:.3g} away"
    return f"{why}, so {readout:.3g} of its gain {gain:.3g} is read back."


def _fraction(share: float) -> str:
    """A share in words: "one eighth", "0.3"."""
    for parts, words in FRACTIONS.items():
        if abs(share * parts - 1) < 1e-3:
            return words
    return "all" if abs(share - 1) < 1e-3 else f"{share:.3g}"


def shortfall(prediction: Prediction, names: Sequence[str], member: int, feature: int, target: float) -> list[str]:
    """Say what keeps a solved coefficient from giving what is wanted; nothing where it does, or none was solved."""
    readout = float(prediction.readouts[member][feature])
    missed = abs(readout - target) > WORTH_SAYING * abs(target)
    if prediction.condition is None or feature >= prediction.ranks[member] or not missed:
        return []
    why = []
    for conflict in prediction.conflicts:
        if member in (conflict.first, conflict.second):
            other = names[conflict.second if member == conflict.first else conflict.first]
            why.append(opposed(names[member], other, conflict.cosine))
    if prediction.n_dropped:
        why.append(undetermined(prediction.n_dropped))
    why = why or ["The solution balances the whole outputs of all features, so it does not meet every single gain."]
    return [f"Together this gives {readout:.3g} instead of {target:.3g}.", *why]


def opposed(first: str, second: str, cosine: float) -> str:
    """Say that two tasks are in conflict."""
    return f"{first} and {second} oppose each other in this layer (cosine {cosine:.2f}), so no merge keeps both."


def undetermined(n_dropped: int) -> str:
    """Say that the tasks share directions so closely that the system does not determine how to divide them."""
    directions = "1 direction" if n_dropped == 1 else f"{n_dropped} directions"
    return f"The tasks leave {directions} undetermined; the smallest solution is used."


def word_list(words: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"; "" for none."""
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else "".join(words)
