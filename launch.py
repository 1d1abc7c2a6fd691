#!/usr/bin/env python3
"""Start SFTM Studio. Needs Python 3.10 to 3.13 with pip, and nothing else.

usage: python launch.py [options of the app]
       python launch.py merge | check | inspect RECIPE | extract | fetch [options]
       python launch.py test [pytest arguments] | setup [test] [dev]

The first start makes the folder .venv beside launch.py, installs SFTM Studio into it (some minutes, about 1.5 GB)
and opens the app in the browser. Later starts install nothing. To begin afresh, delete .venv.

test runs the tests, setup installs only (with dev also the linters), merge and the like need no browser.

Where no NVIDIA GPU is found, a CPU build of torch is installed. SFTM_TORCH overrides the choice with pip arguments:
  SFTM_TORCH="torch==2.12.0"                                              a certain version
  SFTM_TORCH="torch --index-url https://download.pytorch.org/whl/cu130"   a certain build
"""

# Standard library only. This file has to parse on old Pythons too (3.6 at least), so that they get a sentence.
import sys

if sys.version_info < (3, 10):
    sys.exit(
        f"SFTM Studio needs Python 3.10 to 3.13, and this is Python {sys.version.split()[0]} ({sys.executable}).\n"
        "Start it with a newer one, for example: python3.12 launch.py. Python can be had at https://www.python.org"
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
STAMP = VENV / "sftm-install.json"  # what a finished installation holds
MARKER = VENV / "sftm-installing"  # there while pip is writing: if found at a start, pip was cut off
LOG, CONSTRAINTS = VENV / "sftm-install.log", VENV / "sftm-constraints.txt"
PYTHON_VERSION = f"{sys.version_info[0]}.{sys.version_info[1]}"
NEWEST_TESTED = (3, 13)
CPU_TORCH = "2.13.0+cpu"  # only CPU builds have the local version "+cpu", so pip cannot take one with CUDA for it
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
NO_NETWORK = (
    r"Connection\w*Error|NameResolutionError|getaddrinfo|name resolution|connection broken|TimeoutError|"
    r"timed out|ProxyError|SSLError|CERTIFICATE_VERIFY_FAILED|Network is unreachable"
)
VENV_PARTS = {"bin", "include", "lib", "lib64", "scripts"}  # what a half-made .venv may hold
APP_COMMANDS = ("merge", "check", "inspect", "extract", "fetch", "cache", "ui")
EXTRAS = {"test": ("test",), "dev": ("dev", "test")}  # asked for -> what is then there

APP_OPTIONS = """\
options of the app (all of them are listed here once it is installed):
  --port PORT                  port on 127.0.0.1
  --device auto|cpu|cuda|mps   where to compute
  --models-dir FOLDER          where to look for checkpoints
  --output-dir FOLDER          where to put merged models
  --no-browser                 do not open the browser"""


class Stop(Exception):
    """An end with a sentence for the person. A second argument is the exit code, when it is not 1."""


def packages(pattern: str) -> list[Path]:
    """What matches `pattern` in the environment's site-packages, whatever its Python version."""
    sites = ("lib/python3*/site-packages", "Lib/site-packages")
    return [found for site in sites for found in VENV.glob(f"{site}/{pattern}")]


def torch_version() -> "str | None":
    """The version of the torch that is installed, such as "2.13.0+cpu", or None."""
    return next((found.stem.partition("-")[2] for found in packages("torch-*.dist-info")), None)


def fingerprint() -> str:
    """Of what has to be unchanged for an installation to be current: the project's settings, the environment's Python,
    and the folder, since an editable install and a virtual environment both hold absolute paths."""
    settings, config = ROOT / "pyproject.toml", VENV / "pyvenv.cfg"
    if not settings.is_file():
        raise Stop(f"{settings} is missing: launch.py has to lie in the complete folder of SFTM Studio.")
    parts = [settings.read_bytes(), config.read_bytes() if config.is_file() else b"", os.fsencode(ROOT)]
    return hashlib.sha256(b"\n".join(parts)).hexdigest()


def read_stamp() -> dict[str, Any]:
    """What the last finished installation wrote: "fingerprint", "extras" and "torch" (what SFTM_TORCH was)."""
    with contextlib.suppress(OSError, ValueError, TypeError):  # absent, cut off in the middle, or something else
        return {"extras": [], "torch": "", **json.loads(STAMP.read_text("utf-8"))}
    return {"extras": [], "torch": ""}


def is_installed(extras: Sequence[str]) -> bool:
    """Whether .venv holds a finished, current installation with `extras`. Looks at files only: milliseconds."""
    stamp = read_stamp()
    return (
        PYTHON.exists()
        and not MARKER.exists()  # a link to a Python that has gone does not exist either
        and stamp.get("fingerprint") == fingerprint()
        and set(extras) <= set(stamp["extras"])
        and os.environ.get("SFTM_TORCH", "").strip() in ("", stamp["torch"])
        and all(packages(name) for name in ("sftm_studio-*.dist-info", "gradio", "torch"))
    )


def venv_fault() -> "str | None":
    """Why .venv has to be made anew, or None when it can be used."""
    if MARKER.exists():
        return "an earlier installation was cut off"
    if not PYTHON.exists() or not (VENV / "pyvenv.cfg").is_file():
        return "it is incomplete"
    probe = "import sys, pip; assert sys.version_info >= (3, 10) and sys.prefix != sys.base_prefix"
    try:
        done = subprocess.run([PYTHON, "-c", probe], capture_output=True, timeout=120, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        return "its Python does not run"
    return "its Python or its pip does not work or is too old" if done.returncode else None


def make_venv() -> None:
    """Make .venv, or make it anew when it is broken. A folder of that name that is something else is left alone."""
    entries = {entry.name.lower() for entry in VENV.iterdir()} if VENV.is_dir() else set()
    fault = venv_fault() if entries else None
    if entries and not fault:
        return
    if fault and "pyvenv.cfg" not in entries and not entries <= VENV_PARTS:
        raise Stop(f"{VENV} exists and is no virtual environment. Move it away, then start again.")
    say(f"Making .venv anew, as {fault}." if fault else "Making the virtual environment .venv")
    if any(importlib.util.find_spec(module) is None for module in ("venv", "ensurepip")):
        raise Stop(
            f"This Python ({sys.executable}) cannot make virtual environments: its venv or ensurepip module is "
            "missing. On Debian or Ubuntu: sudo apt install python3-venv. Then start again."
        )
    command = [sys.executable, "-m", "venv", "--clear", str(VENV)]
    made = subprocess.run(command, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL)
    if made.returncode:
        printed = tail((made.stdout + made.stderr).splitlines())
        raise Stop(
            f"The virtual environment {VENV} could not be made:\n{printed}\n"
            "If the app is running, close it first; otherwise delete .venv by hand and start again."
        )


def run_pip(arguments: Sequence[str]) -> "list[str] | None":
    """Run the environment's `pip install` with `arguments`, show how it goes, keep its output in the log.

    Returns None when all went well, else the lines that pip printed. However it is left, pip is no longer running."""
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
            if pip.poll() is None:  # Ctrl-C or a signal: the terminal has told pip as well, so give it time to tidy up
                with contextlib.suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
                    pip.terminate()
                    pip.wait(timeout=10)
                pip.kill()


def shown(lines: Iterable[str]) -> Iterator[str]:
    """Pass pip's lines on, and tell the person of large downloads and the installing; on a terminal of every step."""
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
    return "\n".join("    " + line for line in [line for line in lines if line.strip()][-count:])


def pip_sentence(what: str, lines: Sequence[str]) -> str:
    """What a failure of pip means for the person, from what pip printed."""
    output = "\n".join(lines)
    if re.search(r"No space left|Errno 28|WinError 112", output):
        cause = "the disk is full. Free some GB, then start again."
    elif re.search(r"Permission denied|Errno 13|WinError 5\b", output):
        cause = f"writing to {VENV} is not permitted. Close the app if it runs, or take a folder of your own."
    elif re.search(NO_NETWORK, output):
        cause = (
            "the package index could not be reached. The first start needs the network (later ones do not): check "
            "the connection or the proxy, then start again; what is downloaded is kept."
        )
    elif re.search(r"No matching distribution|ResolutionImpossible|requires a different Python", output):
        cause = (
            f"no fitting versions exist for Python {PYTHON_VERSION} on this system. "
            "Python 3.10 to 3.13 on 64-bit Linux, Windows or macOS (Apple silicon) will do."
        )
    else:
        cause = f"pip failed. Start again; if that does not help, delete .venv first. All of pip's output: {LOG}"
    return f"{what} could not be installed: {cause}\npip's last lines:\n{tail(lines)}"


def has_nvidia_gpu() -> bool:
    """Whether a working NVIDIA GPU is found: nvidia-smi lists one, or the Linux kernel driver does."""
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
    """Put the right torch into .venv before anything else can bring another one. Without its own dependencies: they
    come with the app's. `custom` is SFTM_TORCH, `kept` what it was at the installation before this one.

    Returns whether the torch that is there now has to stay exactly as it is; if not, the app's own range decides,
    which on macOS and Windows finds a CPU build and on Linux one with CUDA."""
    present = torch_version()
    if custom:
        say(f"Installing torch as SFTM_TORCH says: {custom}")
        failure = run_pip(["--no-deps", *shlex.split(custom, posix=os.name != "nt")])
        if failure:
            raise Stop(pip_sentence(f"torch (SFTM_TORCH={custom})", failure))
        if not torch_version():
            raise Stop(f"SFTM_TORCH={custom} installs no torch. See python launch.py --help.")
        return True
    if present and kept:
        return True
    if gpu or not sys.platform.startswith("linux"):
        return False
    if present == CPU_TORCH:
        return True
    say(f"No NVIDIA GPU found: installing the CPU build of torch (torch {CPU_TORCH}, about 200 MB)")
    # First from wherever this machine's pip looks (a mirror, a folder of wheels), so that a closed network never waits
    # for the official server; then from there.
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
        f"The CPU build of torch {CPU_TORCH} for Python {PYTHON_VERSION} was found neither where pip looks on "
        f"this machine nor at {CPU_INDEX}.\nCheck the network or the proxy, or put the wheel into a folder and "
        "set PIP_FIND_LINKS to it.\nTo take another build (from PyPI: with several GB of CUDA packages), set "
        f'SFTM_TORCH, for example SFTM_TORCH="torch==2.13.0". Then start again.\n{tail(failures[1])}'
    )


def check_torch(gpu: bool, custom: bool) -> None:
    """Import the torch that is installed and see that it is the kind of build that was wanted."""
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
            "Delete .venv and start again; on Windows the Visual C++ runtime may be missing."
        )
    with_cuda = "cuda: None" not in done.stdout
    if with_cuda and not gpu and not custom:
        raise Stop(
            "torch came with CUDA although no NVIDIA GPU was found. Delete .venv and start again; to keep such "
            "a build, set SFTM_TORCH (see python launch.py --help)."
        )
    if gpu and not with_cuda and not custom:
        say(
            "Note: there is an NVIDIA GPU, but this torch cannot use it. For one that can, delete .venv and start with "
            'SFTM_TORCH="torch --index-url https://download.pytorch.org/whl/cu130"'
        )


@contextlib.contextmanager
def install_lock() -> Iterator[None]:
    """Held while installing, so that two starts at once do not write into one .venv. The system frees it at any end."""
    if not os.access(ROOT, os.W_OK):
        raise Stop(
            f"SFTM Studio has to be installed first, and {ROOT} cannot be written to. "
            "Copy the folder to where you may write, then start it there."
        )
    with (ROOT / ".venv.lock").open("a") as lock:
        if not try_lock(lock.fileno()):
            say("Another launch.py is installing; waiting for it")
            while not try_lock(lock.fileno()):
                time.sleep(0.5)
        yield


def try_lock(descriptor: int) -> bool:
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
    """Bring .venv to what pyproject.toml asks for, with `extras` beside those that it has already."""
    began, before = time.monotonic(), read_stamp()
    if sys.version_info[:2] > NEWEST_TESTED:
        say("Note: SFTM Studio is tested with Python 3.10 to 3.13; trying it with this one.")
    make_venv()
    extras = sorted({*extras, *before["extras"]})
    custom = os.environ.get("SFTM_TORCH", "").strip()
    kept = before["torch"] if STAMP.exists() else ""  # no stamp: .venv was made anew
    gpu = has_nvidia_gpu()
    if gpu and not custom:
        say("NVIDIA GPU found: torch comes with CUDA (several GB)")
    MARKER.touch()
    STAMP.unlink(missing_ok=True)
    LOG.unlink(missing_ok=True)
    try:
        constraints = []
        if install_torch(gpu, custom, kept):
            CONSTRAINTS.write_text(f"torch=={torch_version()}\n", "utf-8")
            constraints = ["-c", str(CONSTRAINTS)]
        say("Installing SFTM Studio and what it needs" + (f", with {' and '.join(extras)}" if extras else ""))
        failure = run_pip([*constraints, "-e", f".[{','.join(extras)}]" if extras else "."])
        if failure:
            raise Stop(pip_sentence("SFTM Studio", failure))
        check_torch(gpu, bool(custom or kept))
    except Stop:
        MARKER.unlink(missing_ok=True)  # pip came to its end, so what is in .venv is whole and can be built on
        raise
    STAMP.write_text(json.dumps({"fingerprint": fingerprint(), "extras": extras, "torch": custom or kept}), "utf-8")
    MARKER.unlink()
    say(f"Installed in {time.monotonic() - began:.0f} s. Later starts skip this.")


def ensure_installed(extras: Sequence[str]) -> None:
    if not is_installed(extras):
        with install_lock():
            if not is_installed(extras):  # whoever held the lock may have done it
                install(extras)


def hand_over(command: list[str]) -> int:
    """Become `command`, so that signals and the exit code are its own; Windows cannot, so there wait for it."""
    sys.stdout.flush()
    if os.name != "nt":
        os.execv(command[0], command)
    child = subprocess.Popen(command)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the console tells the child of Ctrl-C: let it end in its own way
    return child.wait()


def show_help() -> int:
    say(__doc__)
    if (ROOT / "pyproject.toml").is_file() and is_installed(()):
        return hand_over([str(PYTHON), "-m", "sftm_app", "ui", "--help"])
    say(APP_OPTIONS)
    return 0


def run(arguments: Sequence[str]) -> int:
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
            raise Stop(f"setup takes {' and '.join(EXTRAS)}, or nothing; found: {' '.join(rest)}", 2)
        ensure_installed(sorted({held for extra in rest for held in EXTRAS[extra]}))
        say("SFTM Studio is installed.")
        return 0
    if word == "test":
        ensure_installed(["test"])
        os.chdir(ROOT)
        return hand_over([str(PYTHON), "-m", "pytest", *rest])
    ensure_installed([])
    return hand_over([str(PYTHON), "-m", "sftm_app", word or "ui", *rest])


def main(arguments: Sequence[str]) -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        return run(arguments)
    except Stop as stop:
        sentence, code = stop.args[0], (*stop.args, 1)[1]
    except KeyboardInterrupt:
        sentence, code = "stopped. An installation that was under way starts again the next time.", 130
    except OSError as error:
        sentence, code = f"{error}. Check the permissions and the free space of {ROOT}, then start again.", 1
    print(f"\nSFTM Studio: {sentence}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
