"""The command line: sftm merge | extract | inspect | check | fetch | cache | ui. Exit: 0, 2 refused, 3 no room, 130."""

from __future__ import annotations

import argparse
import dataclasses
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from sftm_app import __version__
from sftm_app.devices import DEVICES
from sftm_app.errors import InputError, OutputError, RecipeError, SFTMError

if TYPE_CHECKING:
    from sftm_app.checkpoints.checkpoint import Checkpoint
    from sftm_app.merging.progress import Progress
    from sftm_app.merging.recipe import Recipe


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Parse the arguments, run the command, exit with its code. Errors end as one sentence on stderr."""
    # Until a command is under way nothing has to be cleaned up, and a KeyboardInterrupt could get lost: some library's
    # import swallows it.
    signal.signal(signal.SIGINT, _leave)
    options = build_parser().parse_args(arguments)
    # Nothing here needs a model hub; a name that looks like one must never be fetched by accident.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    # torch asks Linux for large pages then: long thin matrices are merged in half the time.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    # By the environment they reach the processes that carry out runs, too.
    for name in ("cache_dir", "cache_gb"):
        if getattr(options, name, None) is not None:
            os.environ[f"SFTM_{name.upper()}"] = getattr(options, name)
    command: Callable[[argparse.Namespace], None] = options.command
    try:
        command(options)
    except SFTMError as error:
        print(f"sftm: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("sftm: cancelled, nothing was written.", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output left (`sftm inspect ... | head`): not an error of ours.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(0)
    sys.exit(0)


def _leave(signal_number: int, frame: FrameType | None) -> NoReturn:
    os.write(2, b"sftm: cancelled, nothing was written.\n")
    os._exit(130)


def _interruptible() -> Callable[[], None]:
    """From here on Ctrl-C is a KeyboardInterrupt again, which lets a merge remove what it began to write.

    Call what is returned now and then: it raises one that a library swallowed once more.
    """
    asked: list[int] = []

    def interrupt(signal_number: int, frame: FrameType | None) -> NoReturn:
        asked.append(signal_number)
        raise KeyboardInterrupt

    def check() -> None:
        if asked:
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    return check


def build_parser() -> argparse.ArgumentParser:
    """All commands and options. Needs no torch."""
    parser = argparse.ArgumentParser(prog="sftm", description="Merge fine-tuned models by superposing their features.")
    parser.add_argument("--version", action="version", version=f"SFTM Studio {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    merge = commands.add_parser("merge", help="merge by a recipe", description="Merge by a recipe and write the model.")
    merge.add_argument("recipe", type=Path, help="a YAML recipe, as the app's Merge tab downloads it")
    merge.add_argument("--output", type=Path, help="output folder (default: the recipe's output.path)")
    merge.add_argument("--device", choices=DEVICES, help="where to compute (default: the recipe's)")
    merge.add_argument("--method", help="another method than the recipe's: sftm, average, task_arithmetic")
    merge.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="another value for a parameter of the method, such as scaling=0.8 or rank=25%% (may be repeated)",
    )
    merge.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        help="go on with what a killed merge left (the result is the same), or throw it away and merge anew",
    )
    merge.add_argument("--quiet", action="store_true", help="no progress bar")
    _add_cache_options(merge)
    merge.set_defaults(command=_merge)

    check = commands.add_parser(
        "check", help="compare base and tasks", description="Compare base and tasks by headers."
    )
    check.add_argument("recipe", type=Path, help="a YAML recipe")
    check.set_defaults(command=_check)

    inspect = commands.add_parser(
        "inspect",
        help="measure every layer",
        description="Measures of every layer, and how many things in it deserve a look. --layer tells what they are, "
        "--json holds everything: measures overall and per task, spectra and clusters, overlaps, principal angles, "
        "warnings, and what the recipe's method would keep of every task.",
    )
    inspect.add_argument("recipe", type=Path, help="a YAML recipe")
    inspect.add_argument("--layer", help="one layer in detail, by the tensor's name")
    inspect.add_argument("--json", action="store_true", help="everything as one JSON document")
    _add_cache_options(inspect)
    inspect.set_defaults(command=_inspect)

    extract = commands.add_parser(
        "extract",
        help="turn a fine-tune into a LoRA adapter",
        description="Write what a fine-tune changed as a LoRA adapter of a rank or energy. Without either, only print "
        "what it would cost: the share of the change that each rank keeps, and the size.",
    )
    extract.add_argument("--base", required=True, help="folder of the model that was fine-tuned")
    extract.add_argument("--task", required=True, help="folder of the fine-tune")
    extract.add_argument("--output", type=Path, help="output folder")
    extract.add_argument("--rank", help="features a layer at most: a count such as 16, or a share such as 25%%")
    extract.add_argument("--energy", type=float, help="share of each layer's squared change to keep, such as 0.9")
    extract.add_argument("--table", action="store_true", help="only print what each rank would cost")
    extract.add_argument("--dtype", help="type of the adapter's numbers: float32, float16 or bfloat16")
    extract.add_argument("--device", choices=DEVICES, default="auto", help="where to compute (default: auto)")
    extract.add_argument("--quiet", action="store_true", help="no progress bar")
    extract.set_defaults(command=_extract)

    fetch = commands.add_parser(
        "fetch",
        help="download models from the Hugging Face hub",
        description="Look at models on the hub, compare them by their headers, and download them into the hub's cache. "
        "Prints their folders: base first, then tasks. This is the one command that contacts the hub.",
    )
    fetch.add_argument("models", nargs="*", metavar="MODEL", help="org/name, org/name@revision, or a folder here")
    fetch.add_argument("--base", help="the model that the others were fine-tuned from: they are compared with it first")
    fetch.add_argument("--preset", help="a well-known set: base and tasks by one name (a wrong one lists them all)")
    fetch.add_argument("--recipe", type=Path, metavar="FILE", help="write a recipe for base and tasks")
    fetch.add_argument("--look", action="store_true", help="only say what would be downloaded, and compare")
    fetch.add_argument("--quiet", action="store_true", help="no progress bar, print nothing but the folders")
    fetch.set_defaults(command=_fetch)

    cache = commands.add_parser(
        "cache",
        help="what is kept of earlier factorisations",
        description="Factors of task matrices are kept on disk, so that the next merge or look at the same layers need "
        "not compute them. Prints where, how many and how large; --clear removes them.",
    )
    cache.add_argument("--clear", action="store_true", help="remove all of them")
    _add_cache_options(cache)
    cache.set_defaults(command=_cache)

    ui = commands.add_parser(
        "ui", help="open the app in the browser", description="Start the app and open the browser."
    )
    add_ui_options(ui)
    ui.set_defaults(command=_ui)
    return parser


def add_ui_options(parser: argparse.ArgumentParser) -> None:
    """The options of the app itself."""
    parser.add_argument("--port", type=int, help="port on 127.0.0.1 (default: the first free one from 7860)")
    parser.add_argument("--device", choices=DEVICES, default="auto", help="where to compute (default: auto)")
    parser.add_argument(
        "--models-dir",
        type=Path,
        help="folder to pick checkpoints from (default: ./models if it exists, else your home folder)",
    )
    parser.add_argument("--output-dir", type=Path, help="folder for runs and saved models (default: ./sftm-output)")
    parser.add_argument("--no-browser", action="store_true", help="do not open a browser")
    _add_cache_options(parser)


def _add_cache_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--cache-dir", metavar="DIR", help="where factors are kept (default: SFTM_CACHE_DIR, else the user's cache)"
    )
    parser.add_argument(
        "--cache-gb", metavar="N", help="gigabytes of factors kept at most, 0 for none (default: SFTM_CACHE_GB or 10)"
    )


def _cache(options: argparse.Namespace) -> None:
    from sftm_app.merging.factor_cache import look_into

    print(look_into(options.clear))


def _load(path: Path) -> Recipe:
    from sftm_app.merging.recipe import load_recipe

    return load_recipe(path)


def _merge(options: argparse.Namespace) -> None:
    from sftm_app.api import merge_recipe

    check = _interruptible()
    recipe = _with_changes(_load(options.recipe), options)
    output = options.output or (Path(recipe.output.path) if recipe.output.path else None)
    if output is None:
        raise OutputError("The recipe names no output.path. Give --output FOLDER, or add `output: {path: ...}` to it.")
    with _progress_bar(check, options.quiet) as show:
        report = merge_recipe(recipe, output, show, options.resume)
    print(f"Merged {len(report.inputs) - 1} tasks with {report.method} in {report.time}: {output}")
    print(f"  {report.memory}")
    if kept := report.machine.get("resumed_after_tensors"):
        print(f"  Resumed: {kept} tensors were there already.")
    for task, error in report.readout_errors.items():
        mapping = report.mapping_errors[task]
        print(f"  {task}: readout error {error:.2g}, mapping error {mapping:.2g} (medians over layers)")
    for warning in report.warnings:
        print(f"  {warning}")


@contextmanager
def _progress_bar(check: Callable[[], None], quiet: bool) -> Iterator[Callable[[Progress], None]]:
    """What to call with each step. The bar is drawn with the first tensor: a sentence about inputs stands alone."""
    from tqdm import tqdm

    bars: list[Any] = []

    def show(step: Progress) -> None:
        check()
        if not bars:
            shape = "{l_bar}{bar}| {elapsed}<{remaining} {postfix}"
            bars.append(tqdm(total=100, bar_format=shape, disable=quiet))
        bars[0].set_postfix_str(step.name, refresh=False)
        bars[0].update(round(100 * step.fraction) - bars[0].n)

    try:
        yield show
    finally:
        for bar in bars:
            bar.close()


def _extract(options: argparse.Namespace) -> None:
    from sftm_app.api import extract, extraction_costs
    from sftm_app.merging.params import check_size_rank

    check = _interruptible()
    rank = check_size_rank(options.rank, "--rank")
    if options.table or (rank is None and options.energy is None):
        with _progress_bar(check, options.quiet) as show:
            costs = extraction_costs(options.base, options.task, options.device, show)
        print(" rank  change kept  worst layer   size")
        for cost in costs:
            size = f"{cost.n_bytes / 1e6:.1f} MB" if cost.n_bytes >= 1e5 else f"{cost.n_bytes / 1e3:.1f} kB"
            print(f"{cost.rank:5d}  {cost.energy:11.1%}  {cost.worst_energy:11.1%}  {size:>9}")
        print(f"{1 - costs[0].carried:.1%} of the whole change is outside the layers that an adapter carries.")
        return
    if options.output is None:
        raise OutputError("Give --output FOLDER for the adapter, or --table to see what each rank would cost.")
    with _progress_bar(check, options.quiet) as show:
        report = extract(
            options.base, options.task, options.output, rank, options.energy, options.device,
            dtype=options.dtype, progress=show,
        )  # fmt: skip
    print(f"Extracted an adapter of {report.output_bytes / 1e6:.1f} MB in {report.seconds:.1f} s: {options.output}")
    for warning in report.warnings:
        print(f"  {warning}")


def _with_changes(recipe: Recipe, options: argparse.Namespace) -> Recipe:
    from sftm_app.merging.methods import get_method
    from sftm_app.merging.params import make_params

    params: dict[str, Any] = dataclasses.asdict(recipe.params)
    if options.method and options.method != recipe.method:
        params = {}
    for item in options.set:
        name, separator, value = item.partition("=")
        if not separator:
            raise RecipeError(f"--set {item!r} should read NAME=VALUE, such as scaling=0.8.")
        params[name.strip()] = _value(value.strip())
    method = options.method or recipe.method
    made = make_params(get_method(method).params, params, f"params of {method}")
    return dataclasses.replace(recipe, method=method, params=made, device=options.device or recipe.device)


def _value(text: str) -> str | float:
    """A number if it reads as one; ranks and words stay text, their control knows them."""
    try:
        return float(text) if "." in text or "e" in text.lower() else int(text)
    except ValueError:
        return text


def _check(options: argparse.Namespace) -> None:
    from sftm_app.checkpoints.compatibility import refuse_unchanged
    from sftm_app.checkpoints.hub_names import short_name
    from sftm_app.merging.cost import estimate
    from sftm_app.merging.plan import check_recipe, plan_for

    recipe = _load(options.recipe)
    found = check_recipe(recipe).require()
    refuse_unchanged(found)
    for note in found.notes:
        print(note)
    print(f"{len(found.tasks)} tasks fit the base {short_name(found.base.path)} ({_kind(found.base)}).")
    print(*estimate(plan_for(recipe, found)).sentences(), sep="\n")


def _kind(base: Checkpoint) -> str:
    return "no config.json, so roles are guessed" if base.bare else base.architecture


def _inspect(options: argparse.Namespace) -> None:
    from sftm_app.api import inspect_recipe

    result = inspect_recipe(_load(options.recipe), options.layer)
    if options.json:
        print(result.to_json())
        return
    if not result.layers:
        raise InputError("Base and tasks share no weight matrix: there is nothing to inspect. Pick other checkpoints.")
    width = max(len(one.layer.name) for one in result.layers)
    print(f"{'layer':<{width}}  {'shape':>11}  change  rank/full  read overlap  write overlap  warnings")
    for one in result.layers:
        change, rank, read, write = (
            one.measures[name].overall for name in ("change", "effective_rank", "read_overlap", "write_overlap")
        )
        n_warnings = sum(not warning.informational for warning in one.warnings)
        print(
            f"{one.layer.name:<{width}}  {one.layer.shape[0]:>5}x{one.layer.shape[1]:<5}  {change:6.3f}  {rank:9.2f}  "
            f"{read:12.3f}  {write:13.3f}  {n_warnings:8d}"
        )
    if options.layer:
        for spectrum in result.layers[0].detail.spectra:
            gains = ", ".join(f"{gain:.3g}" for gain in spectrum.gains[:8])
            ranks = ", ".join(f"{rank} for {energy:.0%}" for energy, rank in spectrum.ranks_for_energy.items())
            print(f"{spectrum.task}: gains {gains}, ...; features needed: {ranks}")
        for warning in result.layers[0].warnings:
            print(f"{'note' if warning.informational else 'warning'}: {warning.sentence}")


def _fetch(options: argparse.Namespace) -> None:
    from tqdm import tqdm

    from sftm_app.jobs.fetching import choose, fetch
    from sftm_app.jobs.hub_look import look
    from sftm_app.jobs.hub_process import HubProcess
    from sftm_app.merging.recipe import recipe_to_yaml

    if not options.models and not options.preset:
        raise InputError("Name a model, such as org/name, or a set with --preset. See sftm fetch --help.")
    if options.recipe and not (options.base or options.preset):
        raise InputError("--recipe needs a base. Add --base MODEL.")
    if options.recipe and options.recipe.exists():
        raise OutputError(f"{options.recipe}: exists already. Give --recipe another name, or remove it first.")
    _interruptible()
    chosen = choose(options.base or "", options.models, options.preset, _folder)
    seen = look(chosen, HubProcess())
    if not options.quiet:
        for line in (*seen.summary(), *seen.notes):
            print(line, file=sys.stderr)
    seen.require()
    if options.look:
        return
    with tqdm(total=seen.missing_bytes, unit="B", unit_scale=True, disable=options.quiet) as bar:
        fetched = fetch(seen, HubProcess(), lambda done, total: bar.update(done - bar.n) and None)
    for source in chosen.sources:
        print(fetched.folders[source])
    if options.recipe:
        options.recipe.write_text(recipe_to_yaml(fetched.recipe()), encoding="utf-8")


def _folder(text: str) -> Path | None:
    path = Path(os.path.abspath(os.path.expanduser(text)))
    return path if path.is_dir() else None


def _ui(options: argparse.Namespace) -> None:
    from sftm_app.ui.app import serve
    from sftm_app.ui.settings import make_settings

    _interruptible()
    serve(make_settings(options.models_dir, options.output_dir, options.device, options.port), not options.no_browser)
