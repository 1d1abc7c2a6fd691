"""What the server remembers of labelled samples that were read, so that they are not read for every click."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass

from cachetools import LRUCache

SETS_KEPT = 16


@dataclass(frozen=True)
class SampleSet:
    """What is known of samples once they were read.

    Attributes:
        digests: by task, what identifies its samples.
        n_samples: by task.
        left_out: sentences on tasks without samples.
    """

    digests: Mapping[str, str]
    n_samples: Mapping[str, int]
    left_out: tuple[str, ...]


class SampleSets:
    """The sample sets that were read last. Safe to use from several threads."""

    def __init__(self) -> None:
        self._known: LRUCache[object, SampleSet] = LRUCache(SETS_KEPT)
        self._lock = threading.Lock()

    def get(self, key: object) -> SampleSet | None:
        """A set that was read before."""
        with self._lock:
            return self._known.get(key)

    def put(self, key: object, found: SampleSet) -> None:
        """Keep a set."""
        with self._lock:
            self._known[key] = found
