"""Names of models on the Hugging Face hub, and their places in its cache. Nothing here contacts the hub."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import constants

from sftm_app.errors import CheckpointError, HubError, InputError
from sftm_app.weights.file_names import ADAPTER_CONFIG_NAME, CONFIG_NAME, INDEX_NAME

HUB_PREFIX = "hub:"
MAX_REPO_ID = 96
_REPO_ID = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?/[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?")
_REVISION = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._/-]{0,198}[A-Za-z0-9_-])?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_REPO_FOLDER = re.compile(r"models((?:--[A-Za-z0-9._-]+?){1,2})")


@dataclass(frozen=True)
class HubRef:
    """A model repository, and a branch, tag or commit of it; None means the default branch."""

    repo_id: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{self.repo_id}@{self.revision}" if self.revision else self.repo_id

    @property
    def name(self) -> str:
        """The repository's own name, without its owner."""
        return self.repo_id.rpartition("/")[2]


def parse_ref(text: str) -> HubRef:
    """Read `org/name` or `org/name@revision`, also after `hub:` or the hub's address.

    Raises:
        HubError: the text has another form.
    """
    named = text.strip().removeprefix(HUB_PREFIX).removeprefix("https://huggingface.co/")
    repo_id, at, revision = named.partition("@")
    shown = text.strip()[:200]
    is_valid = _REPO_ID.fullmatch(repo_id) and len(repo_id) <= MAX_REPO_ID and not repo_id.endswith(".git")
    if not is_valid or "--" in repo_id or ".." in repo_id:
        raise HubError(
            f"{shown!r} is neither a folder on this machine nor the name of a model on the hub. Write org/name, such "
            "as openai/clip-vit-base-patch32, or org/name@revision."
        )
    if at and (not _REVISION.fullmatch(revision) or ".." in revision or "//" in revision):
        raise HubError(
            f"{shown!r}: {revision[:100]!r} is not a revision. After @ write a branch, a tag, a commit or refs/pr/N."
        )
    return HubRef(repo_id, revision or None)


def endpoint() -> str:
    """The hub's address: https://huggingface.co, or HF_ENDPOINT."""
    return str(constants.ENDPOINT)


def hub_cache() -> Path:
    """The folder where huggingface_hub keeps its downloads, shared with other programs."""
    return Path(constants.HF_HUB_CACHE).resolve()


def hub_name(path: str | Path) -> str | None:
    """ "org/name@commit" for a snapshot folder of any hub cache; None for other folders."""
    folder = Path(path)
    if len(folder.parts) < 3 or folder.parent.name != "snapshots" or not _COMMIT.fullmatch(folder.name):
        return None
    found = _REPO_FOLDER.fullmatch(folder.parent.parent.name)
    return f"{found[1].removeprefix('--').replace('--', '/')}@{folder.name}" if found else None


def snapshot_of(folder: Path) -> Path:
    """The snapshot that a repository's folder in a hub cache, models--ORG--NAME, stands for; other folders as they are.

    Raises:
        CheckpointError: it holds no snapshot, or several and none of them is the main one.
    """
    snapshots = folder / "snapshots"
    if not _REPO_FOLDER.fullmatch(folder.name) or not snapshots.is_dir():
        return folder
    found = {child.name: child for child in snapshots.iterdir() if child.is_dir()}
    with contextlib.suppress(OSError, UnicodeDecodeError):
        main = (folder / "refs" / "main").read_text(encoding="utf-8")[:64].strip()
        if main in found:
            return found[main]
    if len(found) == 1:
        return next(iter(found.values()))
    which = f"several snapshots: pick one of {', '.join(sorted(found)[:8])}" if found else "no snapshot: download it"
    raise CheckpointError(f"{folder}: is a folder of the hub's cache with {which}.")


def hub_hint(missing: Path) -> str:
    """How to download a model, where a path that is not there ends like the name of one on the hub; otherwise ""."""
    name = "/".join(missing.parts[-2:])
    if not _REPO_ID.fullmatch(name) or missing.parent.exists() or missing.suffix in (".safetensors", ".bin", ".json"):
        return ""
    return f" If you mean {name} on the Hugging Face hub, run `sftm fetch {name}` and give the folder that it prints."


def short_name(path: str | Path) -> str:
    """A checkpoint's short name: the model's name for a snapshot of the hub's cache, otherwise the folder's."""
    fetched = hub_name(path)
    return fetched.partition("@")[0].rpartition("/")[2] if fetched else Path(path).name


def is_snapshot(path: Path) -> bool:
    """Whether a resolved path is a snapshot folder of this machine's hub cache."""
    return hub_name(path) is not None and path.parents[2] == hub_cache()


def is_blob(path: Path) -> bool:
    """Whether a resolved path lies in the hub cache, where the links of its snapshots lead."""
    return hub_cache() in path.parents


def cached_snapshot(ref: HubRef, cache: Path) -> Path | None:
    """The snapshot that an earlier download of this revision left in a hub cache, if any. The hub is not contacted."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(ref.repo_id, revision=ref.revision, cache_dir=cache, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    return folder if any((folder / name).exists() for name in (CONFIG_NAME, ADAPTER_CONFIG_NAME, INDEX_NAME)) else None


def read_source(text: str, local: Callable[[str], Path | None]) -> tuple[HubRef | Path, str]:
    """Read a text that names a folder or a model on the hub.

    An existing folder takes precedence over the hub. `hub:` always means the hub; an absolute path, or one that begins
    with a dot or ~, never does.

    Args:
        text: what a person typed.
        local: returns the folder for a path, or None where there is none.

    Returns:
        The folder or repository, and a note where the text is also the name of the other ("" otherwise).

    Raises:
        HubError: the text is neither.
        InputError: `local` raised it for a text that can only be a path.
    """
    text = text.strip()
    if text.startswith(HUB_PREFIX):
        return parse_ref(text), ""
    only_path = text.startswith(("/", ".", "~")) or "\\" in text or Path(text).is_absolute()
    try:
        folder = local(text)
    except InputError:
        if only_path:
            raise
        folder = None
    if folder is None:
        return parse_ref(text), ""
    with contextlib.suppress(HubError):
        note = f"{text} means the folder {folder}. Write hub:{parse_ref(text)} for the model on the hub."
        return folder, note
    return folder, ""
