"""Keep some entries of a tensor, and set the others to 0. `methods.sparsify` says which method keeps which."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Entries that are ranked at a time, and the bytes that each takes: its magnitude, a sorted copy, their order in int64
# and its work space, the probabilities.
RANKED, RANKING_BYTES = 1 << 18, 32
# Entries that are counted at a time.
COUNTED = 1 << 17


def keep_largest(D: Tensor, density: float) -> Tensor:
    """Keep the largest entries, and all that are as large as the smallest of these.

    Args:
        D: a tensor of any shape with at least one entry.
        density: the share of entries to keep, above 0 and at most 1; at least one entry is kept.

    Returns:
        A copy of D with 0 in place of the other entries.
    """
    (smallest,) = order_statistics(D, D.numel() - _n_kept(D, density))
    return keep_from(D, smallest)


def keep_from(D: Tensor, smallest: float) -> Tensor:
    """A copy of D with 0 in place of every entry whose magnitude is below `smallest`."""
    below = torch.nextafter(D.new_tensor(smallest), D.new_zeros(()))
    return torch.nn.functional.hardshrink(D, float(below))  # it keeps what is strictly above


def keep_below_outliers(D: Tensor, density: float, gamma: float) -> Tensor:
    """Drop the largest entries and keep the next ones. Those as large as the ends of this range are kept too.

    Args:
        D, density: as for `keep_largest`.
        gamma: the share of entries to drop as too large, 0 or more; less where `density` leaves no room for it.

    Returns:
        A copy of D with 0 in place of the other entries.
    """
    n_kept = _n_kept(D, density)
    last = D.numel() - min(int(gamma * D.numel()), D.numel() - n_kept)
    smallest, largest = order_statistics(D, last - n_kept, last - 1)
    magnitudes = D.abs()
    kept = (magnitudes >= smallest).logical_and_(magnitudes <= largest)
    del magnitudes
    return _where(kept, D)


def keep_at_random(D: Tensor, kept: Tensor, density: float) -> Tensor:
    """Keep random entries, and divide them by the probability of that, so that D is kept on average.

    Args:
        D: a tensor of any shape.
        kept: which entries to keep, booleans of the shape of D, each true with probability `density`.
        density: above 0 and at most 1.
    """
    return _where(kept, D).div_(density)


def keep_by_rank(D: Tensor, random: Tensor, density: float, epsilon: float) -> Tensor:
    """Keep large entries of a row more often than small ones, and divide each by its probability.

    Args:
        D: a tensor of any shape. A vector is one row; of other tensors, all but the first dimension are.
        random: independent numbers, uniform in [0, 1), of the shape of D.
        density: the mean probability, above 0 and at most 1.
        epsilon: the largest entry of a row has the probability density + epsilon, the smallest density - epsilon. It is
            cut to what keeps both between 0 and 1.
    """
    result = torch.empty_like(D)
    rows = [_rows(tensor) for tensor in (D, random, result)]
    n = rows[0].shape[1]
    spread = min(epsilon, density, 1 - density)
    places = torch.linspace(-1, 1, n, dtype=torch.float64) if n > 1 else torch.zeros(n, dtype=torch.float64)
    by_place = (density + spread * places).to(D)
    zero = D.new_zeros(())
    for values, numbers, target in zip(*(tensor.split(max(1, RANKED // n)) for tensor in rows), strict=True):
        order = values.abs().argsort(dim=1, stable=True)
        keeping = torch.empty_like(values).scatter_(1, order, by_place.expand_as(order))
        # An entry of probability 0 is never kept, so nothing that is kept was divided by 0.
        torch.where(numbers < keeping, values / keeping, zero, out=target)
    return result


def order_statistics(D: Tensor, *places: int) -> tuple[float, ...]:
    """Magnitudes of D by their place in ascending order.

    Args:
        D: a tensor of any shape with at least one entry.
        places: counted from 0.
    """
    magnitudes = D.abs().flatten()
    if D.device.type == "cpu":  # numpy selects ten times as fast as torch
        array = magnitudes.numpy()
        array.partition(sorted(set(places)))
        return tuple(float(array[place]) for place in places)
    return tuple(float(magnitudes.kthvalue(place + 1).values) for place in places)


def _where(kept: Tensor, D: Tensor) -> Tensor:
    # Multiplying by booleans would convert them to numbers first, which takes another tensor.
    return torch.where(kept, D, D.new_zeros(()))


def _n_kept(D: Tensor, density: float) -> int:
    # Rounded down, as in mergekit, but never to nothing.
    return max(1, int(density * D.numel()))


def _rows(tensor: Tensor) -> Tensor:
    """The same numbers as a matrix: a vector is one row."""
    return tensor.reshape(1, -1) if tensor.ndim < 2 else tensor.reshape(len(tensor), -1)


def smallest_kept(read: Callable[[], Iterable[Tensor]], density: float) -> float:
    """The smallest magnitude among the largest entries of many tensors together, which are held one at a time.

    Numbers of one sign are ordered as their bits are. So the upper 16 bits of the result are found by counting in a
    first pass, and the lower 16 bits in a second one.

    Args:
        read: gives the tensors, float32, of any shapes; called twice.
        density: the share of all entries to keep, above 0 and at most 1; at least one entry is kept.

    Returns:
        The magnitude, exactly; 0 where there are no entries.
    """
    counts = np.zeros(1 << 16, np.int64)
    for bits in _bits(read()):
        counts += np.bincount(bits >> 16, minlength=counts.size)
    n_entries = int(counts.sum())
    if n_entries == 0:
        return 0.0
    upper, place = _find(counts, n_entries - max(1, int(density * n_entries)))
    counts = np.zeros(1 << 16, np.int64)
    for bits in _bits(read()):
        counts += np.bincount(bits[bits >> 16 == upper] & 0xFFFF, minlength=counts.size)
    lower, _ = _find(counts, place)
    return float(np.uint32(upper << 16 | lower).view(np.float32))


def _bits(tensors: Iterable[Tensor]) -> Iterator[NDArray[np.uint32]]:
    """The bits of the magnitudes of float32 numbers, COUNTED of them at a time."""
    for tensor in tensors:
        for piece in tensor.flatten().split(COUNTED):
            yield piece.abs().numpy().view(np.uint32)


def _find(counts: NDArray[np.int64], place: int) -> tuple[int, int]:
    """The value at a place in ascending order, and the place among its equals; `counts` says how many there are."""
    ends = counts.cumsum()
    value = int(np.searchsorted(ends, place, side="right"))
    return value, place - int(ends[value] - counts[value])
