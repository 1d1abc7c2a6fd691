"""No entry point of the library contacts or looks up another machine, whatever a config names. (FAULTS A13, D5)"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_checkpoints import change_config

from sftm_app.planning.recipe import make_recipe, recipe_to_yaml
from sftm_app.processes import _is_this_machine

pytestmark = pytest.mark.apart

# Runs at the start of every process below, also of those that it starts.
RECORDER = """
import os, sys
def note(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        with open(os.environ["REACHED"], "a") as file:
            file.write(f"{event} {arguments[1:] if 'connect' in event else arguments}\\n")
sys.addaudithook(note)
"""
REACHING = {
    "use_pretrained_backbone": True,
    "backbone": "timm/resnet18.a1_in1k",
    "attn_implementation": "kernels-community/flash-attn2",
    "_attn_implementation": "owner/repo",
    "auto_map": {"AutoModel": "owner/repo--modeling.Evil", "AutoConfig": "owner/repo--configuration.Evil"},
    "trust_remote_code": True,
    "_name_or_path": "owner/repo",
    "tokenizer_class": "owner/repo",
}
API = """
import sftm_app
from pathlib import Path
root = Path({root!r})
sftm_app.check(root / "base", [root / "a"])
sftm_app.inspect(root / "base", [root / "a", root / "b"])
sftm_app.merge(root / "base", [root / "a", root / "b"], root / "out", method="average")
sftm_app.extract(root / "base", root / "a", root / "adapter", rank=2)
from sftm_app.cli import main
for command in (["check", {recipe!r}], ["merge", {recipe!r}, "--output", str(root / "out2"), "--quiet"]):
    try:
        main(command)
    except SystemExit as ended:
        assert not ended.code, ended.code
"""


def reached(tmp_path: Path, *command: str) -> str:
    """What a Python command tried to reach. It has no setting that keeps libraries offline."""
    (tmp_path / "hook").mkdir(exist_ok=True)
    (tmp_path / "hook" / "sitecustomize.py").write_text(RECORDER)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    environment |= {"PYTHONPATH": str(tmp_path / "hook"), "REACHED": str(tmp_path / "reached")}
    environment["SFTM_CACHE_DIR"] = str(tmp_path / "cache")
    done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return (tmp_path / "reached").read_text() if (tmp_path / "reached").exists() else ""


def test_the_recorder_sees_what_is_reached(tmp_path: Path) -> None:
    code = "import socket\ntry: socket.create_connection(('127.0.0.1', 9))\nexcept OSError: pass"
    assert "127.0.0.1" in reached(tmp_path, "-c", code)


def test_nothing_is_reached_from_python_or_the_command_line(models: Path, tmp_path: Path) -> None:
    for name in ("base", "a", "b"):
        change_config(models / name, **REACHING)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(recipe_to_yaml(make_recipe(models / "base", [models / "a"], method="average")))
    assert reached(tmp_path, "-c", API.format(root=str(models), recipe=str(recipe))) == ""
    assert (models / "out2" / "model.safetensors").exists()


def test_processes_refuse_other_machines_by_themselves(tmp_path: Path) -> None:
    """Also where a library has a way of its own to get there."""
    code = """
from sftm_app.processes import stay_offline
import socket
stay_offline()
for call in (
    lambda: socket.create_connection(("198.51.100.1", 80), 0.1), lambda: socket.getaddrinfo("example.org", 443),
    lambda: socket.gethostbyname("example.org"), lambda: socket.create_connection(("2001:db8::1", 80), 0.1),
    lambda: socket.socket(type=socket.SOCK_DGRAM).sendto(b"", ("192.0.2.1", 53)),
):
    try:
        call()
    except PermissionError as error:
        assert "SFTM Studio is offline" in str(error)
    else:
        raise SystemExit("reached")
server = socket.create_server(("127.0.0.1", 0))
socket.create_connection(server.getsockname()).close()
socket.getaddrinfo("localhost", 80)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize(
    "host", [None, "", "localhost", b"localhost", "127.0.0.1", "127.8.9.1", "::1", "0.0.0.0", "::"]
)
def test_this_machine_by_all_its_names(host: object) -> None:
    assert _is_this_machine(host)


@pytest.mark.parametrize(
    "host", ["example.org", "10.0.0.1", "localhost.evil", "127.0.0.1.evil", "fe80::1%eth0", b"\xff", 3]
)
def test_everything_else_is_another_machine(host: object) -> None:
    assert not _is_this_machine(host)
