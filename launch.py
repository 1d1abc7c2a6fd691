#!/usr/bin/env python3
"""Start SFTM Studio. Needs Python 3.10 to 3.13 with pip, and nothing else.

usage: python launch.py [options of the app]
       python launch.py merge | search | scaling | check | inspect RECIPE [options]
       python launch.py extract | convert | fetch | cache [options]
       python launch.py test [pytest arguments]
       python launch.py setup [test] [dev] [cluster]

The first start creates the folder .venv next to launch.py, installs SFTM Studio into it (a few minutes, about 1.5 GB)
and opens the app in the browser. Later starts install nothing. To start over, delete .venv.

merge and the other commands need no browser. test runs the tests in two processes. setup only installs: test adds what
the tests need, dev adds the linters as well, and cluster adds Ray.

Without an NVIDIA GPU, the CPU build of torch is installed. To choose another, set SFTM_TORCH to pip arguments:
  SFTM_TORCH="torch==2.12.0"
  SFTM_TORCH="torch --index-url https://download.pytorch.org/whl/cu130"
"""

# Standard library only. Old Pythons (3.6 and later) must be able to parse this file to print this message.
import sys

if sys.version_info < (3, 10):
    sys.exit(
        f"SFTM Studio needs Python 3.10 to 3.13, and this is Python {sys.version.split()[0]} ({sys.executable}).\n"
        "Start it with a supported version, for example: python3.12 launch.py. Get Python from https://www.python.org"
    )

import contextlib
import difflib
import functools
import hashlib
import importlib.util
import json
import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

say = functools.partial(print, flush=True)

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
PYTHON = VENV / "Scripts" / "python.exe" if os.name == "nt" else VENV / "bin" / "python"
STAMP = VENV / "sftm-install.json"  # describes the last complete installation
MARKER = VENV / "sftm-installing"  # exists while pip is writing; if it exists at a start, pip was interrupted
LOG, CONSTRAINTS = VENV / "sftm-install.log", VENV / "sftm-constraints.txt"
PYTHON_VERSION = f"{sys.version_info[0]}.{sys.version_info[1]}"
NEWEST_TESTED = (3, 13)
CPU_TORCH = "2.13.0+cpu"  # only CPU builds have the local version "+cpu", so pip cannot pick a CUDA build instead
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
NO_NETWORK = (
    r"Connection\w*Error|NameResolutionError|getaddrinfo|name resolution|connection broken|TimeoutError|"
    r"timed out|ProxyError|SSLError|CERTIFICATE_VERIFY_FAILED|Network is unreachable"
)
VENV_PARTS = {"bin", "include", "lib", "lib64", "scripts"}  # what an incomplete .venv may contain
APP_COMMANDS = ("merge", "search", "scaling", "check", "inspect", "extract", "convert", "fetch", "cache", "ui")
EXTRAS = {"test": ("test",), "dev": ("dev", "test"), "cluster": ("cluster",)}  # requested -> extras to install
TEST_OPTIONS = ("-n", "2", "--dist", "loadfile", "--no-loadscope-reorder")  # see tests/conftest.py

APP_OPTIONS = """\
options of the app (the full list appears here once the app is installed):
  --port PORT                  port on 127.0.0.1
  --device auto|cpu|cuda|mps   device to compute on
  --models-dir FOLDER          folder with your checkpoints
  --output-dir FOLDER          folder for merged models
  --no-browser                 do not open the browser"""


class Stop(Exception):
    """Ends the program with a message for the user. The second argument is the exit code; the default is 1."""


def packages(pattern: str) -> list[Path]:
    """Return the paths in the environment's site-packages that match `pattern`, for any Python version."""
    sites = ("lib/python3*/site-packages", "Lib/site-packages")
    return [found for site in sites for found in VENV.glob(f"{site}/{pattern}")]


def torch_version() -> "str | None":
    """Return the version of the installed torch, such as "2.13.0+cpu", or None."""
    return next((found.stem.partition("-")[2] for found in packages("torch-*.dist-info")), None)


def fingerprint() -> str:
    """Hash everything that makes an installation out of date when it changes.

    This covers pyproject.toml, the Python of the environment, and the folder: an editable install and a virtual
    environment both contain absolute paths.
    """
    settings, config = ROOT / "pyproject.toml", VENV / "pyvenv.cfg"
    if not settings.is_file():
        raise Stop(f"{settings} is missing. Run launch.py from a complete copy of the SFTM Studio folder.")
    parts = [settings.read_bytes(), config.read_bytes() if config.is_file() else b"", os.fsencode(ROOT)]
    return hashlib.sha256(b"\n".join(parts)).hexdigest()


def read_stamp() -> dict[str, Any]:
    """Read the description of the last installation: "fingerprint", "extras" and "torch" (the value of SFTM_TORCH)."""
    with contextlib.suppress(OSError, ValueError, TypeError):  # missing, truncated, or not ours
        return {"extras": [], "torch": "", **json.loads(STAMP.read_text("utf-8"))}
    return {"extras": [], "torch": ""}


def is_installed(extras: Sequence[str]) -> bool:
    """Return whether .venv holds a complete, current installation with `extras`. Only reads files: milliseconds."""
    stamp = read_stamp()
    return (
        PYTHON.exists()  # False for a link to a Python that was removed
        and not MARKER.exists()
        and stamp.get("fingerprint") == fingerprint()
        and set(extras) <= set(stamp["extras"])
        and os.environ.get("SFTM_TORCH", "").strip() in ("", stamp["torch"])
        and all(packages(name) for name in ("sftm_studio-*.dist-info", "gradio", "torch"))
    )


def venv_fault() -> "str | None":
    """Return why .venv must be recreated, or None if it can be used."""
    if MARKER.exists():
        return "an earlier installation was interrupted"
    if not PYTHON.exists() or not (VENV / "pyvenv.cfg").is_file():
        return "it is incomplete"
    probe = "import sys, pip; assert sys.version_info >= (3, 10) and sys.prefix != sys.base_prefix"
    try:
        done = subprocess.run([PYTHON, "-c", probe], capture_output=True, timeout=120, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        return "its Python does not run"
    return "its Python or its pip does not work or is too old" if done.returncode else None


def make_venv() -> None:
    """Create .venv, or recreate it if it is broken. Another folder with that name is never touched."""
    entries = {entry.name.lower() for entry in VENV.iterdir()} if VENV.is_dir() else set()
    fault = venv_fault() if entries else None
    if entries and not fault:
        return
    if fault and "pyvenv.cfg" not in entries and not entries <= VENV_PARTS:
        raise Stop(f"{VENV} exists but is not a virtual environment. Move it elsewhere, then start again.")
    say(f"Recreating .venv: {fault}." if fault else "Creating the virtual environment .venv")
    if any(importlib.util.find_spec(module) is None for module in ("venv", "ensurepip")):
        raise Stop(
            f"This Python ({sys.executable}) cannot create virtual environments: its venv or ensurepip module is "
            "missing. On Debian or Ubuntu, run: sudo apt install python3-venv. Then start again."
        )
    command = [sys.executable, "-m", "venv", "--clear", str(VENV)]
    made = subprocess.run(command, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL)
    if made.returncode:
        printed = tail((made.stdout + made.stderr).splitlines())
        raise Stop(
            f"The virtual environment {VENV} could not be created:\n{printed}\n"
            "If the app is running, close it first. Otherwise delete .venv yourself, then start again."
        )


def run_pip(arguments: Sequence[str]) -> "list[str] | None":
    """Run the environment's `pip install` with `arguments`, show its progress and log its output.

    Returns None on success, otherwise the lines that pip printed. pip has always ended when this function is left.
    """
    command = [str(PYTHON), "-m", "pip", "install", "--prefer-binary", "--progress-bar", "off", *arguments]
    settings = {"PIP_USER": "0", "PIP_NO_INPUT": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PYTHONUNBUFFERED": "1"}
    lines: list[str] = []
    with LOG.open("a", encoding="utf-8") as log:
        log.write(f"$ {shlex.join(command)}\n")
        pip = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            errors="replace",
            cwd=ROOT,
            env={**os.environ, **settings},
        )
        try:
            for line in shown(pip.stdout or ()):
                lines.append(line)
                log.write(line + "\n")
            return (lines or ["pip printed nothing"]) if pip.wait() else None
        finally:
            if pip.poll() is None:  # Ctrl-C or a signal: the terminal stops pip as well, so give it time to clean up
                with contextlib.suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
                    pip.terminate()
                    pip.wait(timeout=10)
                pip.kill()


def shown(lines: Iterable[str]) -> Iterator[str]:
    """Yield pip's lines, and print large downloads and the installation; on a terminal, print every step."""
    wipe = "\r" + 78 * " " + "\r" if sys.stdout.isatty() else ""
    for line in lines:
        yield line.rstrip()
        found = re.match(r"\s*Downloading .*?([^/ ]+?)-(\d[^-]*)-?\S* \(([\d.]+ [MG]B)\)", line)
        if found:
            say(f"{wipe}  downloading {found.group(1)} {found.group(2)} ({found.group(3)})")
        elif line.startswith("Installing collected packages:"):
            say(f"{wipe}  installing packages: {line.count(',') + 1}")
        elif wipe and re.match(r"\s*(Collecting|Using cached|Downloading|Building|Preparing|Getting) ", line):
            say(f"{wipe}  {' '.join(line.split()[:2])[:70]}", end="")
    say(wipe, end="")


def tail(lines: Sequence[str], count: int = 8) -> str:
    """Return the last lines that are not blank, indented."""
    return "\n".join("    " + line for line in [line for line in lines if line.strip()][-count:])


def pip_sentence(what: str, lines: Sequence[str]) -> str:
    """Explain a failure of pip to the user, based on what pip printed."""
    output = "\n".join(lines)
    if re.search(r"No space left|Errno 28|WinError 112", output):
        cause = "the disk is full. Free a few GB, then start again."
    elif re.search(r"Permission denied|Errno 13|WinError 5\b", output):
        cause = f"you may not write to {VENV}. Close the app if it runs, or copy SFTM Studio to a folder of yours."
    elif re.search(NO_NETWORK, output):
        cause = (
            "the package index could not be reached. Only the first start needs the network: check the connection or "
            "the proxy, then start again. Completed downloads are kept."
        )
    elif re.search(r"No matching distribution|ResolutionImpossible|requires a different Python", output):
        cause = (
            f"there are no compatible versions for Python {PYTHON_VERSION} on this system. "
            "Use Python 3.10 to 3.13 on 64-bit Linux, Windows or macOS (Apple silicon)."
        )
    else:
        cause = f"pip failed. Start again; if it fails again, delete .venv first. The full output of pip is in {LOG}"
    return f"{what} could not be installed: {cause}\nThe last lines from pip:\n{tail(lines)}"


def has_nvidia_gpu() -> bool:
    """Return whether nvidia-smi or the Linux kernel driver lists an NVIDIA GPU."""
    if sys.platform == "darwin":
        return False
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):  # OSError: there is no nvidia-smi
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, timeout=60, stdin=subprocess.DEVNULL)
        if listed.returncode == 0 and b"GPU " in listed.stdout:
            return True
    with contextlib.suppress(OSError):
        return any(Path("/proc/driver/nvidia/gpus").iterdir())
    return False


def install_torch(gpu: bool, custom: str, kept: str) -> bool:
    """Install the right torch first, so that no other package pulls in a different build.

    Its dependencies are installed later, together with those of the app.

    Args:
        gpu: whether there is an NVIDIA GPU.
        custom: the value of SFTM_TORCH.
        kept: the value of SFTM_TORCH at the previous installation.

    Returns:
        Whether the installed torch must stay exactly as it is. If not, pip chooses a version that the app accepts: a
        CPU build on macOS and Windows, a CUDA build on Linux.
    """
    present = torch_version()
    if custom:
        say(f"Installing torch as set in SFTM_TORCH: {custom}")
        failure = run_pip(["--no-deps", *shlex.split(custom, posix=os.name != "nt")])
        if failure:
            raise Stop(pip_sentence(f"torch (SFTM_TORCH={custom})", failure))
        if not torch_version():
            raise Stop(f"SFTM_TORCH={custom} does not install torch. See python launch.py --help.")
        return True
    if present and kept:
        return True
    if gpu or not sys.platform.startswith("linux"):
        return False
    if present == CPU_TORCH:
        return True
    say(f"No NVIDIA GPU found: installing the CPU build of torch ({CPU_TORCH}, about 200 MB)")
    # Try the sources that pip is configured for first (a mirror, a folder of wheels), so that a closed network does not
    # wait for the official server.
    failures = []
    for source in ([], ["--index-url", CPU_INDEX, "--timeout", "15"]):
        failure = run_pip(["--no-deps", "--retries", "1", *source, f"torch=={CPU_TORCH}"])
        if not failure:
            return True
        failures.append(failure)
        if "No matching distribution" not in "\n".join(failure):
            raise Stop(pip_sentence(f"torch {CPU_TORCH}", failure))
    if re.search(NO_NETWORK, "\n".join(failures[0])):
        raise Stop(pip_sentence(f"torch {CPU_TORCH}", failures[0]))
    raise Stop(
        f"torch {CPU_TORCH} for Python {PYTHON_VERSION} was not found, neither in the sources that pip is configured "
        f"for nor at {CPU_INDEX}.\nCheck the network or the proxy, or download the wheel into a folder and set "
        "PIP_FIND_LINKS to that folder.\nTo use another build (the one from PyPI brings several GB of CUDA packages), "
        f'set SFTM_TORCH, for example SFTM_TORCH="torch==2.13.0". Then start again.\n{tail(failures[1])}'
    )


def check_torch(gpu: bool, custom: bool) -> None:
    """Import the installed torch and check that it is the kind of build we want."""
    done = subprocess.run(
        [PYTHON, "-c", "import torch; print('cuda:', torch.version.cuda)"],
        capture_output=True,
        text=True,
        errors="replace",
        stdin=subprocess.DEVNULL,
    )
    if done.returncode:
        raise Stop(
            f"torch was installed but cannot be imported:\n{tail(done.stderr.splitlines())}\n"
            "Delete .venv and start again. On Windows, the Visual C++ runtime may be missing."
        )
    with_cuda = "cuda: None" not in done.stdout
    if with_cuda and not gpu and not custom:
        raise Stop(
            "pip installed torch with CUDA, but this machine has no NVIDIA GPU. Delete .venv and start again. To keep "
            "such a build, set SFTM_TORCH (see python launch.py --help)."
        )
    if gpu and not with_cuda and not custom:
        say(
            "Note: this torch cannot use the NVIDIA GPU. For a build that can, delete .venv and start with "
            'SFTM_TORCH="torch --index-url https://download.pytorch.org/whl/cu130"'
        )


@contextlib.contextmanager
def install_lock() -> Iterator[None]:
    """Hold the lock that keeps two starts from writing to .venv at once. The system releases it if we are killed."""
    if not os.access(ROOT, os.W_OK):
        raise Stop(
            f"SFTM Studio is not installed yet, and you may not write to {ROOT}. "
            "Copy the folder to a place where you can write, then start it there."
        )
    with (ROOT / ".venv.lock").open("a") as lock:
        if not try_lock(lock.fileno()):
            say("Waiting for another launch.py to finish its installation")
            while not try_lock(lock.fileno()):
                time.sleep(0.5)
        yield


def try_lock(descriptor: int) -> bool:
    """Lock an open file, and return False if another process holds its lock."""
    with contextlib.suppress(BlockingIOError, PermissionError):
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def install(extras: Sequence[str]) -> None:
    """Install what pyproject.toml asks for into .venv, with `extras` and the extras that it already has."""
    began, before = time.monotonic(), read_stamp()
    if sys.version_info[:2] > NEWEST_TESTED:
        say("Note: SFTM Studio is tested with Python 3.10 to 3.13. Trying it with this newer version.")
    make_venv()
    extras = sorted({*extras, *before["extras"]})
    custom = os.environ.get("SFTM_TORCH", "").strip()
    kept = before["torch"] if STAMP.exists() else ""  # without a stamp, .venv is new
    gpu = has_nvidia_gpu()
    if gpu and not custom:
        say("NVIDIA GPU found: installing torch with CUDA (several GB)")
    MARKER.touch()
    STAMP.unlink(missing_ok=True)
    LOG.unlink(missing_ok=True)
    try:
        constraints = []
        if install_torch(gpu, custom, kept):
            CONSTRAINTS.write_text(f"torch=={torch_version()}\n", "utf-8")
            constraints = ["-c", str(CONSTRAINTS)]
        say("Installing SFTM Studio and its dependencies" + (f", with {' and '.join(extras)}" if extras else ""))
        failure = run_pip([*constraints, "-e", f".[{','.join(extras)}]" if extras else "."])
        if failure:
            raise Stop(pip_sentence("SFTM Studio", failure))
        check_torch(gpu, bool(custom or kept))
    except Stop:
        MARKER.unlink(missing_ok=True)  # pip ended by itself, so .venv is consistent and the next start can use it
        raise
    STAMP.write_text(json.dumps({"fingerprint": fingerprint(), "extras": extras, "torch": custom or kept}), "utf-8")
    MARKER.unlink()
    say(f"Installed in {time.monotonic() - began:.0f} s. Later starts skip this step.")


def ensure_installed(extras: Sequence[str]) -> None:
    """Install SFTM Studio with `extras`, unless it is installed already."""
    if not is_installed(extras):
        with install_lock():
            if not is_installed(extras):  # the process that held the lock may have installed it
                install(extras)


def hand_over(command: list[str]) -> int:
    """Replace this process by `command`, which then gets the signals and sets the exit code; on Windows, wait."""
    sys.stdout.flush()
    if os.name != "nt":
        os.execv(command[0], command)
    child = subprocess.Popen(command)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the console sends Ctrl-C to the child too: let the child handle it
    return child.wait()


def show_help() -> int:
    """Print the help of launch.py, followed by the options of the app."""
    say(__doc__)
    if (ROOT / "pyproject.toml").is_file() and is_installed(()):
        return hand_over([str(PYTHON), "-m", "sftm_app", "ui", "--help"])
    say(APP_OPTIONS)
    return 0


def run(arguments: Sequence[str]) -> int:
    """Do what the command line asks for, and return the exit code."""
    word, rest = (arguments[0], arguments[1:]) if arguments and not arguments[0].startswith("-") else ("", arguments)
    if word not in ("", "test", "setup", *APP_COMMANDS):
        near = difflib.get_close_matches(word, ["test", "setup", *APP_COMMANDS], 1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise Stop(f"launch.py does not know '{word}'.{hint} See python launch.py --help.", 2)
    own_help = (word in APP_COMMANDS and is_installed([])) or (word == "test" and is_installed(["test"]))
    if ("--help" in rest or "-h" in rest) and not own_help:
        return show_help()
    if word == "setup":
        if not set(rest) <= set(EXTRAS):
            raise Stop(f"setup accepts {', '.join(EXTRAS)} or nothing, but was given: {' '.join(rest)}.", 2)
        ensure_installed(sorted({held for extra in rest for held in EXTRAS[extra]}))
        say("SFTM Studio is installed.")
        return 0
    if word == "test":
        ensure_installed(["test"])
        os.chdir(ROOT)
        return hand_over([str(PYTHON), "-m", "pytest", *TEST_OPTIONS, *rest])
    ensure_installed([])
    return hand_over([str(PYTHON), "-m", "sftm_app", word or "ui", *rest])


def main(arguments: Sequence[str]) -> int:
    """Run launch.py and turn every failure into a message."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        return run(arguments)
    except Stop as stop:
        sentence, code = stop.args[0], (*stop.args, 1)[1]
    except KeyboardInterrupt:
        sentence, code = "stopped. An unfinished installation starts again next time.", 130
    except BrokenPipeError:
        # The reader of our output left (`launch.py --help | head -1`): not an error of ours.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except OSError as error:
        sentence, code = f"{error}. Check the permissions and the free space of {ROOT}, then start again.", 1
    print(f"\nSFTM Studio: {sentence}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
