"""Work on independent items by as many threads as torch would use for one, each of which computes alone.

Factorisations gain little from two threads inside, and much is lost where the cores are busy with something else: each
of their many short steps then waits for the slower thread (measured on two busy cores: an eigendecomposition of
768 x 768 took 28 times as long with two threads as with one). Two side by side take half of the time of one after the
other, busy or not.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Thread
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def n_processors() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def compute_single_threaded(n_threads: int) -> None:
    """Have the thread that calls this compute alone, and those that start later as before, by `n_threads`.

    (One that starts in between, within some ten microseconds, computes alone as well: torch has one number for all
    that are to come.)
    """
    # Asked first, for a thread takes the number of all when it is asked or computes for the first time.
    torch.get_num_threads()
    torch.set_num_threads(1)
    # Threads that start later take the number that was set last, by whichever thread.
    other = Thread(target=torch.set_num_threads, args=(n_threads,))
    other.start()
    other.join()


@contextmanager
def single_threaded() -> Iterator[None]:
    """Inside, this thread computes alone."""
    n_threads = torch.get_num_threads()
    compute_single_threaded(n_threads)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)


def parallel_map(
    function: Callable[[Item], Result], items: Iterable[Item], n_threads: int | None = None
) -> list[Result]:
    """[function(item) for item in items], `n_threads` of them at a time (None: torch's number of threads).

    Every item is computed by one thread, so results do not depend on how many there are. Raises what the first item
    that fails raises, once those that were begun have ended.
    """
    items = list(items)
    n_before = torch.get_num_threads()
    n_threads = min(n_before if n_threads is None else n_threads, len(items))
    if n_threads <= 1:
        return [function(item) for item in items]
    with ThreadPoolExecutor(n_threads, initializer=compute_single_threaded, initargs=(n_before,)) as pool:
        return list(pool.map(function, items))
