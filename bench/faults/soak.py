"""Many small merges in one process, some of which fail: memory does not grow, and no file stays open."""

from __future__ import annotations

import gc
import shutil
import tempfile
from pathlib import Path

import psutil
import torch
from safetensors.torch import load_file, save_file

from bench.faults.figures import Figure
from bench.faults.kills import merge
from bench.faults.models import make_models, plain_session, recipe_of
from sftm_app.errors import SFTMError
from sftm_app.pipeline import prepare

N_QUICK, N_FULL = 12, 300
FAILING = 10
MAX_GROWTH = 50 << 20


def attack_soak(quick: bool) -> Figure:
    """Merge again and again; every tenth merge meets a NaN."""
    n, process, session = N_QUICK if quick else N_FULL, psutil.Process(), plain_session()
    wrong: list[str] = []
    with tempfile.TemporaryDirectory(prefix="sftm-faults-") as name:
        root = Path(name)
        files = make_models(root / "models", side=128)
        bad = root / "models" / "bad.safetensors"
        save_file(load_file(files[1]) | {"layers.3.mlp.weight": torch.full((256, 128), float("nan"))}, bad)
        memory = files_open = failed = 0
        for index in range(n):
            failing = index % FAILING == FAILING - 1
            tasks = [files[0], bad, files[2]] if failing else files
            try:
                merge(
                    prepare(recipe_of(tasks, method="task_arithmetic", measure="none"), session), session, root / "out"
                )
            except SFTMError:
                failed += 1
                if not failing:
                    raise
            if (root / "out").exists() == failing:
                wrong.append(f"merge {index}: {'wrote' if failing else 'wrote no'} output")
            shutil.rmtree(root / "out", ignore_errors=True)
            if index == min(n // 4, 20):  # caches and arenas are filled by then
                gc.collect()
                memory, files_open = process.memory_info().rss, process.num_fds()
        gc.collect()
        growth, leaked = process.memory_info().rss - memory, process.num_fds() - files_open
    if growth > MAX_GROWTH:
        wrong.append(f"memory grew by {growth / 2**20:.0f} MB")
    if leaked > 0:
        wrong.append(f"{leaked} files stayed open")
    return Figure(
        "soak of small merges", n, tuple(wrong), f"{failed} failing, {growth / 2**20:+.1f} MB, {leaked} files"
    )
