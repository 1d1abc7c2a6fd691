"""A virtual environment for the packages that are compared with, made once in a cache folder outside the repository."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

TORCH = "torch==2.13.0"
# What is installed, and a line of Python that works once it is.
PEERS = {
    "FusionBench": ("fusion-bench==0.2.33", "from fusion_bench.method.task_singular_vector import *"),
    "mergekit": ("mergekit==0.1.5", "import mergekit.scripts.merge_raw_pytorch"),
}
READY = "peers.json"


@dataclass(frozen=True)
class Environment:
    """python: of the environment. missing: peer -> why it cannot be used, in a sentence."""

    python: Path
    missing: dict[str, str]


def peer_environment(folder: Path) -> Environment:
    """Make the environment in `folder`, or take what stands there from the time before.

    torch comes first and stays at one release: a newer one would bring gigabytes for GPUs. A peer that cannot be
    installed or imported is reported, never an error.
    """
    python = folder / "bin" / "python"
    wanted = {"torch": TORCH} | {name: package for name, (package, _) in PEERS.items()}
    ready = folder / READY
    if not ready.exists() or json.loads(ready.read_text()) != wanted:
        print(f"making an environment for the peers in {folder}", flush=True)
        if why := _run([sys.executable, "-m", "venv", folder]) or _install(python, [TORCH]):
            return Environment(python, {name: f"No environment: {why}" for name in PEERS})
        packages = [package for package, _ in PEERS.values()]
        # Together first, so that one set of versions suits all; if they fight, each as far as it gets.
        if _install(python, packages):
            for package in packages:
                _install(python, [package])
    missing = {name: why for name, (_, line) in PEERS.items() if (why := _run([python, "-c", line]))}
    if not missing:
        ready.write_text(json.dumps(wanted))
    return Environment(python, missing)


def _install(python: Path, packages: list[str]) -> str:
    return _run([python, "-m", "pip", "install", "-q", TORCH, *packages])


def _run(command: list[str | Path]) -> str:
    """Nothing if the command succeeds, else the last line that it printed."""
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    except OSError as error:
        return str(error.strerror)
    lines = [line for line in done.stdout.splitlines() if line.strip()] or ["it printed nothing"]
    return lines[-1][:200] if done.returncode else ""
