"""Parameters that describe themselves: one declaration gives the control, the option, the recipe field and the docs."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from sftm_app.errors import RecipeError
from sftm_app.linalg.factors import AUTO, Rank


@dataclass(frozen=True)
class Control:
    """How one parameter is shown and checked.

    Attributes:
        kind: "choice" (one of `choices`), "number" (from minimum to maximum), or "rank" (see `parse_rank`).
        label, help: for the screen.
        choices: of a choice.
        minimum, maximum, step: of a number. A step of 1 means a whole number.
        searched: whether a search for the best merge may change it. The seed of random masks is not a setting to tune.
        auto: whether a rank may be "auto"; see `linalg.factors.settled`.
    """

    kind: str
    label: str
    help: str
    choices: tuple[str, ...] = ()
    minimum: float = 0.0
    maximum: float = math.inf
    step: float = 0.05
    searched: bool = True
    auto: bool = False


def choice(default: str, label: str, help: str, choices: tuple[str, ...]) -> Any:
    """Declare a parameter that is one of several words."""
    return field(default=default, metadata={"control": Control("choice", label, help, choices=choices)})


def number(default: float, label: str, help: str, minimum: float, maximum: float, step: float = 0.05) -> Any:
    """Declare a number from `minimum` to `maximum`, both included. step: of the slider; any number can be typed."""
    return field(default=default, metadata={"control": Control("number", label, help, (), minimum, maximum, step)})


def whole(default: int, label: str, help: str, minimum: int, maximum: int, searched: bool = True) -> Any:
    """Declare a whole number from `minimum` to `maximum`, both included. searched: see `Control`."""
    control = Control("number", label, help, (), minimum, maximum, 1, searched)
    return field(default=default, metadata={"control": control})


def rank(label: str, help: str, default: Rank = None, auto: bool = False) -> Any:
    """Declare a rank; see `parse_rank`. The default is the full rank unless another is given. auto: see `Control`."""
    return field(default=default, metadata={"control": Control("rank", label, help, auto=auto)})


def controls(params: type[Any]) -> dict[str, Control]:
    """The controls of a Params dataclass, by field name: the method's own in order, then the common ones."""
    found = {item.name: item.metadata["control"] for item in dataclasses.fields(params)}
    return {name: found[name] for name in sorted(found, key=_COMMON.__contains__)}


def values_of(params: Any) -> dict[str, Any]:
    """The values of a Params instance by field name, in the order of `controls`."""
    return {name: getattr(params, name) for name in controls(type(params))}


def values_to_name(params: Any) -> dict[str, Any]:
    """The values that a sentence on a merge names: those that act, without common settings that are off as usual."""
    usual, unused = values_of(type(params)()), _unused(params)
    return {
        name: value
        for name, value in values_of(params).items()
        if name not in unused and not (value == _COMMON.get(name, ...) and value == usual[name])
    }


def make_params(params: type[Any], values: Mapping[str, Any], where: str) -> Any:
    """Check values and build a method's Params.

    Args:
        params: the Params dataclass.
        values: by field name; missing ones get their defaults.
        where: what the values are, for errors.

    Returns:
        An instance of `params`.

    Raises:
        RecipeError: a name is unknown (the nearest known one is given), or a value has a wrong type or is out of range.
    """
    known = controls(params)
    refuse_unknown(values, known, where)
    checked = {name: _check(_typed(name, known[name]), value, f"{where}: {name}") for name, value in values.items()}
    return params(**checked)


def _typed(name: str, control: Control) -> Control:
    """A control as it limits typed values: a scaling may be negative, which takes the merged change away."""
    return dataclasses.replace(control, minimum=-control.maximum) if name == "scaling" else control


def refuse_unknown(values: Iterable[object], known: Iterable[str], where: str) -> None:
    """Raise RecipeError for the first name that is not known, with the nearest known one."""
    names = list(known)
    for value in values:
        if value not in names:
            near = difflib.get_close_matches(str(value), names, n=1, cutoff=0.4)
            hint = f"Did you mean {near[0]!r}?" if near else f"Known are {', '.join(names)}."
            raise RecipeError(f"{where}: {value!r} is not known. {hint}")


def parse_rank(text: str) -> Rank:
    """Read a rank as people type it.

    Args:
        text: "" or "full" (all features), "32" (so many), "0.25" or "25%" (a share of the full rank), or "90% energy",
            "energy 90%", "energy 0.9" (the fewest features that hold this share of the energy).

    Returns:
        None, a count, a fraction, or the share of energy as "90% energy".

    Raises:
        RecipeError: it is none of these.
    """
    word = " ".join(text.lower().split())
    if word in ("", "full", "none", "null"):
        return None
    if "energy" in word:
        return _parse_energy(text, word)
    try:
        if word.endswith("%"):
            share = float(word[:-1]) / 100
            return None if share == 1 else _check_rank(share, "rank")
        return _check_rank(float(word) if "." in word or "e" in word else int(word), "rank")
    except ValueError:
        raise _no_rank(text, "rank") from None


_ENERGY = re.compile(r"(?:energy )?((?:\d{1,3})?\.?\d{0,9}) ?(%?)(?: energy)?")
_RANKS = (
    "Give `full`, a count such as 32, a fraction such as 0.25 or 25%, or a share of the energy between 0 and 100 %, "
    "such as 90% energy."
)


def _no_rank(value: Any, where: str) -> RecipeError:
    return RecipeError(f"{where}: {value!r} is not a rank. {_RANKS}")


def _parse_energy(text: str, word: str) -> str:
    """The canonical text of a share of energy: percent, in as few digits as possible."""
    found = _ENERGY.fullmatch(word)
    if not found or word.count("energy") != 1 or not any(map(str.isdigit, found[1])):
        raise _no_rank(text, "rank")
    percent = Decimal(found[1]) if found[2] else 100 * Decimal(found[1])
    if not 0 < percent < 100:
        raise _no_rank(text, "rank")
    plain = f"{percent:f}"
    return f"{plain.rstrip('0').rstrip('.') if '.' in plain else plain}% energy"


def _check_rank(value: Any, where: str) -> int | float | None:
    if value is None:
        return None
    if type(value) is int and value >= 1:
        return value
    if type(value) is float and 0 < value < 1:
        return value
    raise _no_rank(value, where)


def check_rank(value: Any, where: str) -> Rank:
    """A rank as a value, or as text (see `parse_rank`).

    Raises:
        RecipeError: it is not a rank.
    """
    return parse_rank(value) if isinstance(value, str) else _check_rank(value, where)


def check_size_rank(value: Any, where: str) -> int | float | None:
    """The same for an output, whose size follows from the rank: a share of energy has its own field there.

    Raises:
        RecipeError: it is not a rank, or a share of energy.
    """
    checked = check_rank(value, where)
    if isinstance(checked, str):
        share = Decimal(checked.partition("%")[0]) / 100
        raise RecipeError(f"{where}: {value!r} is a share of the energy. Give it as the energy instead: {share:f}.")
    return checked


def _check(control: Control, value: Any, where: str) -> Any:
    if control.kind == "rank":
        return AUTO if control.auto and value == AUTO else check_rank(value, where)
    if control.kind == "choice":
        if value not in control.choices:
            raise RecipeError(f"{where}: {value!r} is not one of {', '.join(control.choices)}.")
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RecipeError(f"{where}: {value!r} is not a number.")
    if not control.minimum <= value <= control.maximum:
        raise RecipeError(f"{where}: {value} is outside {control.minimum:g} to {control.maximum:g}.")
    if control.step == 1:
        if value != int(value):
            raise RecipeError(f"{where}: {value!r} is not a whole number.")
        return int(value)
    return float(value)


@dataclass(frozen=True, kw_only=True)
class CommonParams:
    """The settings that every method has. Every Params dataclass inherits them, and the engine applies them.

    `calibration` shrinks the singular values of a linear map's delta: see `linalg.calibration`.

    `depth` scales the delta by how deep its block lies (Wang et al., "LiNeS: Post-training Layer Scaling Prevents
    Forgetting and Enhances Model Merging", ICLR 2025, arXiv 2410.17146): block l of L gets

        lambda(l) = scaling * (depth + (1 - depth) (l - 1) / (L - 1)),

    so the last block keeps the whole scaling. The paper writes alpha + beta (l - 1) / (L - 1): alpha = scaling * depth,
    beta = scaling * (1 - depth). As in the paper's code, all tensors of a block are scaled, of any role, and what lies
    outside the blocks (embeddings, a last norm, a pooler) gets the first block's share.
    """

    calibration: float = number(
        0.0,
        "Calibration",
        "Shrinks directions into which the merge adds up more than a task has there (SVC). 0 is off, 1 is the paper's "
        "strength, 0.5 is its square root.",
        minimum=0.0,
        maximum=1.0,
    )
    depth: float = number(
        1.0,
        "First block's share",
        "The first block gets this share of the scaling, the last block all of it, and those in between follow a line "
        "(LiNeS). 1 is off.",
        minimum=0.0,
        maximum=1.0,
    )

    def unused(self) -> frozenset[str]:
        """The fields that do nothing at the values of the others."""
        return frozenset()

    def share_at(self, depth: float | None) -> float:
        """The share of the scaling that a tensor at this depth gets, 0..1. See `base.Layer` for depth."""
        return self.depth + (1 - self.depth) * (depth or 0.0)


@dataclass(frozen=True, kw_only=True)
class NoParams(CommonParams):
    """The params of methods without parameters of their own."""


# The common settings when they are off.
_COMMON: Mapping[str, Any] = {item.name: item.default for item in dataclasses.fields(CommonParams)}


def common_of(params: Any) -> CommonParams:
    """The common settings that act; those that a method's params lack, or do not use, are off."""
    unused = _unused(params)
    return CommonParams(
        **{name: off if name in unused else getattr(params, name, off) for name, off in _COMMON.items()}
    )


def _unused(params: Any) -> frozenset[str]:
    return params.unused() if isinstance(params, CommonParams) else frozenset()
