"""What one of two processes does to a cache that they share. Imports little, so that the other one starts quickly."""

from __future__ import annotations

from pathlib import Path

import torch

from sftm_app.linalg.svd import factorise
from sftm_app.weights.disk_cache import DiskCache, Entry, FactorKey, digest

M, N = 80, 70
HAMMER_LIMIT = 4 * 45_000


def hammer(folder: Path, first: int) -> None:
    """Write, read and push out the same few entries as the other process."""
    torch.set_num_threads(1)
    cache = DiskCache(folder, HAMMER_LIMIT)
    matrices = [torch.randn(M, N, generator=torch.Generator().manual_seed(seed)) for seed in range(6)]
    known = [(factorise(D), float(D.square().sum())) for D in matrices]
    for step in range(120):
        seed = (first + step * 5) % 6
        key = FactorKey(digest("factors", seed), (M, N), torch.float32, 10 + step % 60)
        found, energy = cache.factors(key, lambda seed=seed: known[seed])
        wanted = known[seed][0]
        assert torch.equal(found.cut(10).S, wanted.S[:10]) and torch.equal(found.cut(10).Vh, wanted.Vh[:10])
        assert energy == known[seed][1]
        layer, value = digest("layer", seed), float(seed)
        entry = cache.find(layer)
        assert entry is None or (entry.values == {"v": value} and bool((entry.tensors["delta"] == value).all()))
        cache.put(layer, Entry({"delta": torch.full((40, 40), value)}, {"v": value}))
