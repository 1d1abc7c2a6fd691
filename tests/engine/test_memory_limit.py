"""A real limit on memory ends a merge with a sentence, and the process goes on. (FAULTS C3)"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

CODE = """
import resource, sys
import psutil, torch
from sftm_app import merge
from sftm_app.errors import ResourceError
torch.set_num_threads(1)
base, task, out = sys.argv[1:]
small = base.replace("base", "small"), task.replace("task", "other")
merge(small[0], [small[1]], out + "0", method="average", measure="none")  # everything is loaded by now
limit = psutil.Process().memory_info().vms + (96 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
try:
    merge(base, [task], out, method="ties", measure="none")
except ResourceError as error:
    print(error)
merge(small[0], [small[1]], out + "1", method="average", measure="none")
print("still here")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of address space are Linux's")
def test_a_limit_on_memory_ends_as_a_sentence(tmp_path: Path) -> None:
    for name, side in (("base", 3000), ("task", 3000), ("small", 8), ("other", 8)):
        save_file({"layer.weight": torch.randn(side, side)}, tmp_path / f"{name}.safetensors")
    paths = [str(tmp_path / name) for name in ("base.safetensors", "task.safetensors", "out")]
    done = subprocess.run([sys.executable, "-c", CODE, *paths], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "Out of memory at 'layer.weight', which needs about" in done.stdout and "still here" in done.stdout
    assert not (tmp_path / "out").exists() and (tmp_path / "out1").exists() and not list(tmp_path.glob("*.partial"))
