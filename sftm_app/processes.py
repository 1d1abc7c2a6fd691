"""Processes: how one is started that finds this package and nothing of the folder that it is started in, and how one is
kept off the network."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import sys
from collections.abc import Collection, Mapping
from typing import Any

# Python raises these audit events before it contacts or looks up another machine.
_REACHING = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "socket.sendmsg")


def search_path() -> list[str]:
    """Where a worker looks for modules: where this process does, except for the folder it is started in.

    `python -m` would put that folder first, and a file `random.py` of the person's would break or take over the run.
    The folder that holds this package stays, so that a checkout that is not installed finds itself.
    """
    home = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    try:
        here = os.path.realpath(os.getcwd())
    except OSError:  # it was removed
        here = ""
    entries = [os.path.abspath(entry) for entry in sys.path if os.path.isabs(entry) or (entry and here)]
    kept = [entry for entry in entries if entry == home or os.path.realpath(entry) != here]
    return kept if home in kept else [home, *kept]


def python_command(module: str, environment: Mapping[str, str]) -> list[str]:
    """The command of a process that runs `main()` of a module of this package.

    Args:
        module: its full name.
        environment: variables that are set before anything is imported.
    """
    # The folder that a process is started in comes first in its path once `site` has run, so the path is replaced then.
    code = (
        f"import os, sys\nsys.path[:] = sys.argv[1:]\nos.environ.update({dict(environment)!r})\n"
        f"from {module} import main\nmain()\n"
    )
    return [sys.executable, "-c", code, *search_path()]


def limit_memory(n_bytes: int) -> None:
    """Let this process take so much address space more than it has, where the system can limit it."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource  # Windows has none

        import psutil

        taken = psutil.Process().memory_info().vms
        resource.setrlimit(resource.RLIMIT_AS, (taken + n_bytes, taken + n_bytes))


def stay_offline(own: Collection[str] = ()) -> None:
    """From now on, refuse whatever code of this process tries to reach a machine other than this one.

    Args:
        own: further addresses of this machine, which a server asks whether it is up.

    Libraries look for weights and code by names in a config. This process has no use for any of it, so the refusal does
    not depend on their settings. It cannot be undone.
    """

    def refuse(event: str, arguments: tuple[Any, ...]) -> None:
        _refuse_other_machines(event, arguments, own)

    sys.addaudithook(refuse)


def _refuse_other_machines(event: str, arguments: tuple[Any, ...], own: Collection[str]) -> None:
    if event in _REACHING:
        host = arguments[0]
        if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
            address = arguments[1] if len(arguments) > 1 else None
            host = address[0] if isinstance(address, tuple) else None  # not a tuple: a socket in the file system
        if not _is_this_machine(host) and host not in own:
            raise PermissionError(f"SFTM Studio is offline: {str(host)[:80]!r} is not contacted.")


def _is_this_machine(host: Any) -> bool:
    if isinstance(host, bytes):
        host = host.decode("ascii", "replace")
    if host in (None, "", "localhost"):
        return True
    try:
        address = ipaddress.ip_address(str(host).partition("%")[0])
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified
