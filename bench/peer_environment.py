"""A virtual environment for the other merging packages, made once in a cache folder outside the repository."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

TORCH = "torch==2.13.0"
# What to install, and a line of Python that works once it is installed.
PEERS = {
    "FusionBench": ("fusion-bench==0.2.33", "from fusion_bench.method.task_singular_vector import *"),
    "mergekit": ("mergekit==0.1.5", "import mergekit.scripts.merge_raw_pytorch"),
}
READY = "peers.json"


@dataclass(frozen=True)
class Environment:
    """A virtual environment.

    Attributes:
        python: its interpreter.
        missing: peer -> a sentence on why it cannot be used.
    """

    python: Path
    missing: dict[str, str]


def peer_environment(folder: Path) -> Environment:
    """The environment in `folder`, made first if it is not there.

    torch is installed first and stays at one release, because a newer one would bring gigabytes for GPUs. A peer that
    cannot be installed or imported is listed as missing.
    """
    python = folder / "bin" / "python"
    wanted = {"torch": TORCH} | {name: package for name, (package, _) in PEERS.items()}
    ready = folder / READY
    if not ready.exists() or json.loads(ready.read_text()) != wanted:
        print(f"Making an environment for the peers in {folder}", flush=True)
        if why := _run([sys.executable, "-m", "venv", folder]) or _install(python, [TORCH]):
            return Environment(python, {name: f"No environment: {why}" for name in PEERS})
        packages = [package for package, _ in PEERS.values()]
        # Together first, so that one set of versions suits all; if they conflict, one after the other.
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
    """Run a command. Returns "" if it succeeds, otherwise the last line that it printed."""
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    except OSError as error:
        return str(error.strerror)
    lines = [line for line in done.stdout.splitlines() if line.strip()] or ["it printed nothing"]
    return lines[-1][:200] if done.returncode else ""
