"""Reads and downloads model repositories of the Hugging Face hub. Runs in its own process: see hub_worker.

It sends the names of the repositories and files that are needed, and huggingface_hub's user agent (its version and
Python's). A token is sent only if the person has logged in (`hf auth login`) or set HF_TOKEN. There is no telemetry.
"""

from __future__ import annotations

import glob
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, hf_hub_url, snapshot_download
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

from sftm_app.errors import HubError, SFTMError
from sftm_app.hub.hub_errors import explained
from sftm_app.hub.hub_files import CONFIGS, Download, needed_files, pickles, weight_files
from sftm_app.weights.file_names import INDEX_NAME
from sftm_app.weights.hub_names import HubRef

MAX_JSON_BYTES = 64 * 1024 * 1024
# The limit of weights.header, which refuses a longer header with a sentence.
MAX_HEADER_BYTES = 16 * 1024 * 1024
# Enough for weights.header to recognise other formats by their first bytes.
START_BYTES = 64
CONVERTER = "https://huggingface.co/spaces/safetensors/convert"
_CONVERSION_BOT, _CONVERSION_TITLE = "SFconvertbot", "Adding `safetensors` variant of this model"
Report = Callable[[int], None]


@dataclass(frozen=True)
class Listing:
    """The files of a repository at one commit: their sizes in bytes, and the names of their blobs in the cache."""

    ref: HubRef
    commit: str
    sizes: dict[str, int]
    blobs: dict[str, str]
    note: str = ""


def look_up(ref: HubRef, folder: Path, cache: Path) -> Download:
    """Read a repository's configs and safetensors headers, but no weights, into a new skeleton `folder`.

    A skeleton has the names and sizes of the real folder. JSON files are complete; a weight file is its header and a
    hole, which takes no disk space. It opens like any checkpoint, but its tensors must not be read.

    Raises:
        HubError: the repository cannot be reached, does not exist, is not accessible, or holds no safetensors.
    """
    try:
        listing = _listing(ref)
        shards = _write_configs(listing, folder)
        if not weight_files(listing.sizes, shards) and pickles(listing.sizes):
            listing = _converted(listing)
            shards = _write_configs(listing, folder)
        weights = weight_files(listing.sizes, shards)
        if not weights:
            raise HubError(f"{ref}: holds no weights in safetensors format. Pick another repository or revision.")
        for name in weights:
            _write_hollow(listing, name, folder / name)
    except SFTMError:
        raise
    except Exception as error:
        raise explained(ref, error) from error
    files = {name: listing.sizes[name] for name in needed_files(listing.sizes, shards)}
    home = repo_folder(cache, ref)
    snapshot = home / "snapshots" / listing.commit
    missing = [
        size
        for name, size in files.items()
        if not (snapshot / name).exists() and not (home / "blobs" / listing.blobs[name]).exists()
    ]
    return Download(listing.ref, listing.commit, files, sum(missing), listing.note)


def repo_folder(cache: Path, ref: HubRef) -> Path:
    """Where huggingface_hub's cache keeps a model repository."""
    return cache / f"models--{ref.repo_id.replace('/', '--')}"


def download(wanted: Download, cache: Path, report: Report) -> Path:
    """Download a repository's files into huggingface_hub's cache. Complete files are kept if it fails.

    Args:
        wanted: what to download.
        cache: huggingface_hub's cache.
        report: called from several threads, with the bytes written since its last call.

    Returns:
        The snapshot folder.

    Raises:
        HubError: the connection failed, or the repository is not accessible.
        ResourceError: the disk is full.
    """
    try:
        folder = Path(
            snapshot_download(
                wanted.ref.repo_id,
                revision=wanted.commit,
                cache_dir=cache,
                allow_patterns=[glob.escape(name) for name in wanted.files],
                tqdm_class=_bar_class(report),
                max_workers=4,
            )
        )
        # huggingface_hub returns an incomplete folder if the hub fails halfway and an older one exists.
        for name, size in wanted.files.items():
            if not (folder / name).is_file() or (folder / name).stat().st_size != size:
                raise HubError(f"{wanted.ref}: {name} arrived incomplete. Download it again; the rest is kept.")
        _remember_revision(wanted, cache)
    except SFTMError:
        raise
    except Exception as error:
        raise explained(wanted.ref, error) from error
    return folder


def _remember_revision(wanted: Download, cache: Path) -> None:
    """Record in the cache which commit a branch is at, so that the branch can be used offline."""
    note = repo_folder(cache, wanted.ref) / "refs" / (wanted.ref.revision or constants.DEFAULT_REVISION)
    if wanted.ref.revision != wanted.commit:
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(wanted.commit, "utf-8")


def _listing(ref: HubRef) -> Listing:
    info = HfApi().model_info(
        ref.repo_id, revision=ref.revision, files_metadata=True, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT
    )
    files = [file for file in info.siblings or [] if file.size is not None]
    blobs = {file.rfilename: str(file.lfs.sha256 if file.lfs else file.blob_id) for file in files}
    return Listing(ref, str(info.sha), {file.rfilename: int(file.size) for file in files}, blobs)


def _converted(listing: Listing) -> Listing:
    """The hub's own conversion of pickles to safetensors, which is an open pull request of its bot.

    As in transformers, it is used only if it was made from the requested commit.
    """
    ref, api = listing.ref, HfApi()
    if ref.revision is None:
        offers = api.get_repo_discussions(
            ref.repo_id, author=_CONVERSION_BOT, discussion_type="pull_request", discussion_status="open"
        )
        for offer in offers:
            if offer.author != _CONVERSION_BOT or offer.title != _CONVERSION_TITLE:
                continue
            commits = api.list_repo_commits(ref.repo_id, revision=offer.git_reference)
            if len(commits) > 1 and commits[1].commit_id == listing.commit:
                note = (
                    f"{ref}: holds only a pickle, so the hub's own conversion to safetensors is used "
                    f"({offer.git_reference}, by {_CONVERSION_BOT})."
                )
                return replace(_listing(HubRef(ref.repo_id, str(offer.git_reference))), note=note)
    raise HubError(
        f"{ref}: its weights are a pickle ({pickles(listing.sizes)[0]}), which can run code when loaded. Request "
        f"safetensors at {CONVERTER} and then fetch {ref.repo_id}@refs/pr/N with the number of its pull request, or "
        "load the model with transformers and save it with `model.save_pretrained(folder)`."
    )


def _write_configs(listing: Listing, folder: Path) -> list[str]:
    """Write the JSON files that describe the weights. Returns the shards that an index names."""
    folder.mkdir(parents=True, exist_ok=True)
    index: Any = None
    for name in CONFIGS:
        size = listing.sizes.get(name)
        if size is None or (name == INDEX_NAME and weight_files(listing.sizes)):
            continue
        if size > MAX_JSON_BYTES:
            raise HubError(f"{listing.ref}: {name} is larger than {MAX_JSON_BYTES} bytes. Pick another repository.")
        raw = _read(listing, name, 0, size)
        (folder / name).write_bytes(raw)
        if name == INDEX_NAME:
            try:
                index = json.loads(raw)
            except (ValueError, RecursionError):
                raise HubError(f"{listing.ref}: {name} is not valid JSON. Pick another revision.") from None
    table = index.get("weight_map") if isinstance(index, dict) else None
    return [str(shard) for shard in table.values()] if isinstance(table, dict) else []


def _write_hollow(listing: Listing, name: str, path: Path) -> None:
    size = listing.sizes[name]
    start = _read(listing, name, 0, min(START_BYTES, size))
    stop = 8 + int.from_bytes(start[:8], "little")
    if len(start) < stop <= min(size, 8 + MAX_HEADER_BYTES):
        start += _read(listing, name, len(start), stop)
    with open(path, "wb") as file:
        file.write(start)
        file.truncate(size)


def _read(listing: Listing, name: str, start: int, stop: int) -> bytes:
    """Read bytes start:stop of a file, and no further even if the server ignores ranges."""
    if stop <= start:
        return b""
    headers = {**build_hf_headers(), "Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
    url = hf_hub_url(listing.ref.repo_id, name, revision=listing.commit)
    with get_session().stream("GET", url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT) as response:
        hf_raise_for_status(response)
        skipped = start if response.status_code == 200 else 0
        found = b""
        for chunk in response.iter_bytes():
            found += chunk
            if len(found) >= skipped + stop - start:
                break
    found = found[skipped : skipped + stop - start]
    if len(found) != stop - start:
        raise HubError(f"{listing.ref}: the hub sent {len(found)} of {stop - start} bytes of {name}. Try again.")
    return found


def _bar_class(report: Report) -> type:
    """A class that huggingface_hub uses as its progress bar. It shows nothing and reports the written bytes."""

    class Bar:
        def __init__(self, iterable: Any = None, *args: Any, **kwargs: Any) -> None:
            self.iterable, self.total, self.n = iterable, kwargs.get("total"), kwargs.get("initial") or 0
            # There are bars for files, for bytes received and for bytes written; only the last kind counts.
            self.counts = kwargs.get("unit") == "B" and not str(kwargs.get("desc")).startswith("Downloading")
            self.format_dict: dict[str, Any] = {"rate": None}

        def update(self, n: float | None = 1) -> None:
            self.n += n or 0
            if self.counts:
                report(int(n or 0))

        def __iter__(self) -> Iterator[Any]:
            return iter(self.iterable)

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *args: Any) -> None:
            pass

        def __getattr__(self, name: str) -> Any:
            # All methods that draw: refresh, set_description, set_postfix_str, close, ...
            if name.startswith("__") or name in ("get_lock", "set_lock"):
                raise AttributeError(name)
            return lambda *args, **kwargs: None

    return Bar
