"""Known vulnerabilities of the installed packages, by pip-audit where it is installed and reaches its data."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

from bench.faults.figures import Figure

COMMAND = "python -m pip install pip-audit && python -m pip_audit"


def attack_dependencies(quick: bool) -> Figure:
    """Ask pip-audit; the quick part only says how."""
    what = "known-vulnerable dependencies"
    if quick or importlib.util.find_spec("pip_audit") is None:
        return Figure(what, 0, (), f"not asked; run `{COMMAND}` where the network allows it")
    done = subprocess.run(
        [sys.executable, "-m", "pip_audit", "--progress-spinner", "off"], capture_output=True, text=True
    )
    lines = [line for line in done.stdout.splitlines() if line and not line.startswith(("Name", "-"))]
    if done.returncode and not lines:
        return Figure(what, 0, (), f"its data could not be reached; run `{COMMAND}` elsewhere")
    return Figure(what, 1, tuple(lines), "pip-audit")
