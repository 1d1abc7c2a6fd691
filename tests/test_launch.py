"""launch.py without a network: a copy in its own folder, and a stand-in for the Python of .venv that logs its calls."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from sftm_app.cli import COMMANDS

SOURCE = Path(__file__).parent.parent / "launch.py"
NOT_FOUND = "ERROR: No matching distribution found for torch==2.13.0+cpu"
NO_NETWORK = "WARNING: Retrying after connection broken by 'NewConnectionError(... name resolution)'"

# Logs each call in calls.jsonl. Called as pip, it follows the first entry of pip.json that matches: [part of the
# command line, lines to print, exit code]. Without a match it "installs" by creating folders. Any other call prints its
# arguments and exits with 7.
STAND_IN = """#!{python} -IS
import json, os, sys
from pathlib import Path
root, words = Path({root!r}), sys.argv[1:]
with open(root / "calls.jsonl", "a") as calls:
    calls.write(json.dumps(words) + "\\n")
if words[0] == "-c":
    print("cuda:", (root / "cuda.txt").read_text() if (root / "cuda.txt").exists() else None)
elif words[:3] == ["-m", "pip", "install"]:
    for part, output, code in json.loads((root / "pip.json").read_text()):
        if part in " ".join(words):
            print(output)
            sys.exit(code)
    names = ["torch", "torch-2.13.0+cpu.dist-info"]
    if "-e" in words:
        names += ["gradio", "sftm_studio-0.1.0.dist-info"]
        print("  Downloading https://host/path/gradio-6.31.0-py3-none-any.whl (31.4 MB)")
    for name in names:
        (root / ".venv/lib/python3.11/site-packages" / name).mkdir(parents=True, exist_ok=True)
else:
    print("ran", json.dumps(words))
    sys.exit(7)
"""

needs_posix = pytest.mark.skipif(os.name == "nt", reason="the stand-in is a script with a shebang")


class Checkout:
    """A folder with a copy of launch.py, and the calls that launch.py made there."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.venv = root / ".venv"
        (root / "launch.py").write_bytes(SOURCE.read_bytes())
        (root / "pyproject.toml").write_text("[project]\n")
        self.pip_does()

    def pip_does(self, *answers: tuple[str, str, int]) -> None:
        (self.root / "pip.json").write_text(json.dumps(answers))

    def make_venv(self) -> None:
        python = self.venv / "bin" / "python"
        python.parent.mkdir(parents=True, exist_ok=True)
        python.write_text(STAND_IN.format(python=sys.executable, root=str(self.root)))
        python.chmod(0o755)
        (self.venv / "pyvenv.cfg").write_text("version = 3.11.7\n")

    def load(self) -> ModuleType:
        spec = importlib.util.spec_from_file_location("launch_under_test", self.root / "launch.py")
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    def start(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(self.root / "launch.py"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)

    def pip_calls(self) -> list[list[str]]:
        notes = self.root / "calls.jsonl"
        calls = [json.loads(line) for line in notes.read_text().splitlines()] if notes.exists() else []
        return [call[3:] for call in calls if call[:3] == ["-m", "pip", "install"]]


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checkout:
    monkeypatch.delenv("SFTM_TORCH", raising=False)
    return Checkout(tmp_path)


@pytest.fixture
def launch(checkout: Checkout, monkeypatch: pytest.MonkeyPatch) -> Any:
    """launch.py as a module, on a Linux machine without a GPU, with an empty .venv."""
    checkout.make_venv()
    module = checkout.load()
    monkeypatch.setattr(module, "has_nvidia_gpu", lambda: False)
    monkeypatch.setattr(module.sys, "platform", "linux")
    monkeypatch.setattr(module.signal, "signal", lambda *_: None)
    monkeypatch.setattr(module, "hand_over", lambda command: 7)
    monkeypatch.setattr(module.os, "chdir", lambda folder: None)
    return module


def test_imports_the_standard_library_only() -> None:
    tree = ast.parse(SOURCE.read_text("utf-8"))
    imported = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in imported} <= sys.stdlib_module_names


def test_an_old_python_gets_a_message() -> None:
    ast.parse(SOURCE.read_text("utf-8"), feature_version=(3, 6))
    code = f"import sys; sys.version_info = (3, 8, 18, 'final', 0); exec(open({str(SOURCE)!r}).read())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "needs Python 3.10 to 3.13" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["test", "--help"], ["setup", "--help"]])
def test_help_needs_no_installation(checkout: Checkout, arguments: list[str]) -> None:
    done = checkout.start(*arguments)
    assert done.returncode == 0, done.stderr
    assert "launch.py test" in done.stdout and "--models-dir" in done.stdout and "SFTM_TORCH" in done.stdout
    assert not checkout.venv.exists()


def test_every_command_of_the_app_is_passed_on(launch: Any) -> None:
    assert sorted(launch.APP_COMMANDS) == sorted(COMMANDS)


@needs_posix
def test_a_reader_that_leaves_is_no_error(checkout: Checkout) -> None:
    """`python launch.py --help | head -1`"""
    command = [sys.executable, "-u", str(checkout.root / "launch.py"), "--help"]
    writing = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert writing.stdout is not None and writing.stderr is not None
    writing.stdout.close()
    errors = writing.stderr.read()
    writing.stderr.close()
    assert (writing.wait(60), errors) == (0, "")


@needs_posix
def test_arguments_and_exit_code_are_passed_on_and_nothing_is_installed_twice(checkout: Checkout, launch: Any) -> None:
    assert launch.main([]) == 7
    installs = checkout.pip_calls()
    done = checkout.start("--port", "7", "--models-dir", "a b", "--no-browser")
    assert done.returncode == 7
    assert 'ran ["-m", "sftm_app", "ui", "--port", "7", "--models-dir", "a b", "--no-browser"]' in done.stdout
    assert checkout.start("--help").stdout.endswith('ran ["-m", "sftm_app", "ui", "--help"]\n')
    assert checkout.pip_calls() == installs


@needs_posix
def test_the_cpu_build_of_torch_comes_first_and_is_held(checkout: Checkout, launch: Any, capsys: Any) -> None:
    assert launch.main(["test", "-k", "x"]) == 7
    torch, app = checkout.pip_calls()
    assert torch[-1] == "torch==2.13.0+cpu" and "--no-deps" in torch and "--index-url" not in torch
    assert app[-2:] == ["-e", ".[test]"]
    assert Path(app[app.index("-c") + 1]).read_text() == "torch==2.13.0+cpu\n"
    assert "downloading gradio 6.31.0 (31.4 MB)" in capsys.readouterr().out
    assert not launch.MARKER.exists()


@needs_posix
def test_where_pip_has_no_cpu_build_the_official_server_is_asked(checkout: Checkout, launch: Any) -> None:
    checkout.pip_does(("--retries 1 torch==", NOT_FOUND, 1))
    assert launch.main(["setup"]) == 0
    first, second, _ = checkout.pip_calls()
    assert "--index-url" not in first
    assert second[second.index("--index-url") + 1] == "https://download.pytorch.org/whl/cpu"


@needs_posix
@pytest.mark.parametrize(
    ("output", "sentence"),
    [
        (NOT_FOUND, "PIP_FIND_LINKS"),
        (NO_NETWORK + "\n" + NOT_FOUND, "Only the first start needs the network"),
        ("No space left", "disk is full"),
    ],
)
def test_without_a_cpu_build_it_stops(checkout: Checkout, launch: Any, capsys: Any, output: str, sentence: str) -> None:
    checkout.pip_does(("torch==", output, 1))
    assert launch.main([]) == 1
    assert sentence in capsys.readouterr().err
    assert not any("-e" in call for call in checkout.pip_calls())
    assert not launch.STAMP.exists() and not launch.MARKER.exists()
    checkout.pip_does()
    assert launch.main([]) == 7  # the next start continues


@needs_posix
def test_with_a_gpu_torch_comes_with_the_app(checkout: Checkout, launch: Any, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(launch, "has_nvidia_gpu", lambda: True)
    (checkout.root / "cuda.txt").write_text("13.0")
    assert launch.main([]) == 7
    (app,) = checkout.pip_calls()
    assert app[-2:] == ["-e", "."] and "-c" not in app
    assert "Note" not in capsys.readouterr().out


@needs_posix
def test_cuda_without_a_gpu_is_refused(checkout: Checkout, launch: Any, capsys: Any) -> None:
    (checkout.root / "cuda.txt").write_text("13.0")
    assert launch.main([]) == 1
    assert "pip installed torch with CUDA, but this machine has no NVIDIA GPU" in capsys.readouterr().err
    assert not launch.is_installed([])


@needs_posix
def test_sftm_torch_wins_and_is_remembered(checkout: Checkout, launch: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("SFTM_TORCH", "torch==2.12.0 --index-url https://host/cu130")
    (checkout.root / "cuda.txt").write_text("13.0")
    assert launch.main([]) == 7
    assert checkout.pip_calls()[0][-3:] == ["torch==2.12.0", "--index-url", "https://host/cu130"]
    monkeypatch.delenv("SFTM_TORCH")
    assert launch.is_installed([])
    assert launch.main(["test"]) == 7  # installs the extra and keeps that torch
    assert len(checkout.pip_calls()) == 3
    monkeypatch.setenv("SFTM_TORCH", "torch==2.11.0")
    assert not launch.is_installed([])


def change_project(launch: Any) -> None:
    (launch.ROOT / "pyproject.toml").write_text("[project]\nname='other'\n")


def change_python(launch: Any) -> None:
    (launch.VENV / "pyvenv.cfg").write_text("version = 3.12.1\n")


@needs_posix
@pytest.mark.parametrize(
    "spoil",
    [
        change_project,
        change_python,
        lambda launch: launch.MARKER.touch(),
        lambda launch: launch.STAMP.unlink(),
        lambda launch: launch.STAMP.write_text('{"fingerpr'),
        lambda launch: launch.PYTHON.unlink(),
        lambda launch: launch.packages("gradio")[0].rmdir(),
    ],
)
def test_what_makes_an_installation_out_of_date(launch: Any, spoil: Callable[[Any], None]) -> None:
    launch.main(["setup", "dev"])
    assert launch.is_installed([]) and launch.is_installed(["test", "dev"])
    spoil(launch)
    assert not launch.is_installed([])


@needs_posix
def test_a_moved_folder_is_installed_again(checkout: Checkout, launch: Any, tmp_path: Path) -> None:
    launch.main([])
    moved = tmp_path / "moved"
    moved.mkdir()
    (moved / "launch.py").write_bytes(SOURCE.read_bytes())
    (moved / "pyproject.toml").write_text("[project]\n")
    checkout.venv.rename(moved / ".venv")
    checkout.root = moved
    assert not checkout.load().is_installed([])


@needs_posix
def test_extras_are_kept_when_the_project_changes(checkout: Checkout, launch: Any) -> None:
    launch.main(["setup", "dev"])
    change_project(launch)
    launch.main([])
    assert checkout.pip_calls()[-1][-1] == ".[dev,test]"


@needs_posix
def test_the_tests_run_in_two_processes_and_arguments_come_last(launch: Any, monkeypatch: Any) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(launch, "hand_over", lambda command: commands.append(command) or 0)
    assert launch.main(["test", "-n", "0", "-k", "name"]) == 0
    assert commands[0][1:5] == ["-m", "pytest", "-n", "2"] and commands[0][-4:] == ["-n", "0", "-k", "name"]


@needs_posix
def test_ray_comes_with_the_extra_cluster(checkout: Checkout, launch: Any) -> None:
    assert launch.main(["setup", "dev", "cluster"]) == 0
    assert checkout.pip_calls()[-1][-1] == ".[cluster,dev,test]"
    assert launch.is_installed(["cluster", "dev", "test"])


@needs_posix
def test_an_interrupted_installation_starts_over(checkout: Checkout, launch: Any, monkeypatch: Any) -> None:
    def interrupt(arguments: list[str]) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(launch, "run_pip", interrupt)
        assert launch.main([]) == 130
    assert launch.MARKER.exists()
    made: list[list[str]] = []
    real = subprocess.run

    def run(command: list[Any], **options: Any) -> Any:
        if "venv" in command:
            made.append(command)
            launch.MARKER.unlink()
            return subprocess.CompletedProcess(command, 0, "", "")
        return real(command, **options)

    monkeypatch.setattr(launch.subprocess, "run", run)
    assert launch.main([]) == 7
    assert made == [[sys.executable, "-m", "venv", "--clear", str(checkout.venv)]]


def test_another_folder_named_venv_is_not_touched(checkout: Checkout) -> None:
    (checkout.venv / "bin").mkdir(parents=True)
    (checkout.venv / "thesis.txt").write_text("mine")
    done = checkout.start()
    assert done.returncode == 1 and "is not a virtual environment" in done.stderr and "Traceback" not in done.stderr
    assert (checkout.venv / "thesis.txt").exists()


@pytest.mark.parametrize("missing", ["venv", "ensurepip"])
def test_without_the_venv_module(checkout: Checkout, monkeypatch: Any, capsys: Any, missing: str) -> None:
    module: Any = checkout.load()
    monkeypatch.setattr(module.signal, "signal", lambda *_: None)
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None if name == missing else object())
    assert module.main([]) == 1
    assert "apt install python3-venv" in capsys.readouterr().err


def test_without_write_permission(launch: Any, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(launch.os, "access", lambda *_: False)
    assert launch.main([]) == 1
    assert "may not write to" in capsys.readouterr().err


def test_a_system_error_is_a_message(launch: Any, monkeypatch: Any, capsys: Any) -> None:
    def fail(extras: list[str]) -> None:
        raise PermissionError(13, "Permission denied", "here/.venv")

    monkeypatch.setattr(launch, "ensure_installed", fail)
    assert launch.main([]) == 1
    assert "Permission denied: 'here/.venv'. Check the permissions" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("output", "sentence"),
    [
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "disk is full"),
        ("ERROR: [Errno 13] Permission denied: '/x'", "you may not write"),
        (NO_NETWORK, "could not be reached"),
        ("ERROR: No matching distribution found for torch>=2.10", "no compatible versions"),
        ("error: subprocess-exited-with-error", "sftm-install.log"),
    ],
)
def test_a_failure_of_pip_is_explained(launch: Any, output: str, sentence: str) -> None:
    found = launch.pip_sentence("SFTM Studio", ["Collecting gradio", output])
    assert sentence in found and output in found


@pytest.mark.parametrize(
    ("arguments", "sentence"), [(["tset"], "mean 'test'"), (["setup", "x"], "dev, cluster or nothing")]
)
def test_unknown_words(checkout: Checkout, arguments: list[str], sentence: str) -> None:
    done = checkout.start(*arguments)
    assert done.returncode == 2 and sentence in done.stderr
    assert not checkout.venv.exists()


def test_one_installation_at_a_time(launch: Any) -> None:
    with launch.install_lock(), (launch.ROOT / ".venv.lock").open("a") as other:
        assert not launch.try_lock(other.fileno())
    with (launch.ROOT / ".venv.lock").open("a") as other:
        assert launch.try_lock(other.fileno())


def test_a_gpu_is_one_that_nvidia_smi_lists(launch: Any, monkeypatch: Any, checkout: Checkout) -> None:
    found = checkout.load()
    listed = subprocess.CompletedProcess([], 0, b"GPU 0: NVIDIA H100 (UUID: GPU-1)\n", b"")
    monkeypatch.setattr(launch.subprocess, "run", lambda *_, **__: listed)
    assert found.has_nvidia_gpu()
    monkeypatch.setattr(launch.sys, "platform", "darwin")
    assert not found.has_nvidia_gpu()
