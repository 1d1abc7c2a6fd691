"""The command line, `sftm COMMAND`. Exit codes: 0 done, 2 refused, 3 no room, 130 cancelled."""

from __future__ import annotations

import argparse
import dataclasses
import gc
import importlib
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from sftm_app.cli_options import build_parser
from sftm_app.errors import Cancelled, InputError, OutputError, RecipeError, SFTMError
from sftm_app.processes import stay_offline
from sftm_app.units import format_bytes, format_count, format_duration

# torch takes seconds to import, and `sftm --help` does not need it: commands import what they need.
if TYPE_CHECKING:
    from sftm_app.output.progress import Progress
    from sftm_app.planning.recipe import Recipe
    from sftm_app.weights.checkpoint import Checkpoint


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Parse the arguments, run the command, and exit with its code. Errors end as one sentence on stderr."""
    # Until a command runs there is nothing to clean up, and a KeyboardInterrupt could get lost: some library's import
    # swallows it.
    signal.signal(signal.SIGINT, _leave)
    options = build_parser().parse_args(arguments)
    # Nothing here needs a model hub; a name that looks like one must never be fetched by accident.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    # torch then asks Linux for large pages: long thin matrices are merged in half the time.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    # Through the environment they also reach the processes that carry out runs.
    for name in ("cache_dir", "cache_gb"):
        if getattr(options, name, None) is not None:
            os.environ[f"SFTM_{name.upper()}"] = getattr(options, name)
    _import_engine()
    # `fetch` starts a process that goes online, and the workers of a cluster are other machines.
    if getattr(options, "executor", "local") == "local":
        stay_offline([options.listen] if getattr(options, "listen", None) else ())
    try:
        COMMANDS[options.command](options)
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


def _import_engine() -> None:
    """Import what every command needs. The garbage collector is off: it takes a fifth of the time and finds nothing."""
    if "torch" in sys.modules:
        return
    gc.disable()
    importlib.import_module("sftm_app.api")
    gc.freeze()
    gc.enable()


def _leave(signal_number: int, frame: FrameType | None) -> NoReturn:
    os.write(2, b"sftm: cancelled, nothing was written.\n")
    os._exit(130)


def _interruptible() -> Callable[[], None]:
    """Make Ctrl-C a KeyboardInterrupt again, so that a merge removes what it began to write.

    Returns:
        A function to call now and then: it raises a KeyboardInterrupt that a library swallowed.
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


def _cache(options: argparse.Namespace) -> None:
    from sftm_app.session import describe_cache, open_session

    print(describe_cache(open_session(), options.clear))


def _load(path: Path) -> Recipe:
    from sftm_app.planning.recipe import load_recipe

    return load_recipe(path)


def _merge(options: argparse.Namespace) -> None:
    from sftm_app.api import get_executor, merge_recipe
    from sftm_app.session import open_session

    executor = get_executor(options.executor, options.address, options.workers)
    check = _interruptible()
    recipe = _with_changes(_load(options.recipe), options)
    output = options.output or (Path(recipe.output.path) if recipe.output.path else None)
    if output is None:
        raise OutputError("The recipe names no output.path. Give --output FOLDER, or add `output: {path: ...}` to it.")
    with _progress_bar(check, options.quiet) as show:
        report = merge_recipe(recipe, output, open_session(), show, options.resume, executor, options.replace)
    machine = report.machine
    print(f"Merged {format_count(len(report.inputs) - 1, 'task')} with {report.method} in {report.time}: {output}")
    print(f"  {report.memory}{' in each process' if machine.workers > 1 else ''}")
    if machine.executor != "local":
        print(f"  Merged by {machine.workers} worker{'s' if machine.workers > 1 else ''} of a Ray cluster.")
    if machine.resumed_after_tensors:
        done = machine.resumed_after_tensors
        print(f"  Resumed: {format_count(done, 'tensor')} {'was' if done == 1 else 'were'} finished already.")
    for task, error in report.readout_errors.items():
        print(f"  {task}: readout error {error:.2g} (median over layers)")
    for line in dict.fromkeys((*report.account, *report.notes, *report.warnings)):
        print(f"  {line}")


def _merge_words(step: Progress) -> str:
    return f"{format_duration(step.remaining_s)} left, {step.name}"


@contextmanager
def _progress_bar(
    check: Callable[[], None], quiet: bool, words: Callable[[Any], str] = _merge_words
) -> Iterator[Callable[[Any], None]]:
    """Give a function to call with each step. The first one draws the bar, so errors about inputs come before it.

    words: what to say of a step behind the bar.
    """
    from tqdm import tqdm

    bars: list[Any] = []

    def show(step: Any) -> None:
        check()
        if not bars:
            shape = "{l_bar}{bar}| {elapsed}{postfix}"
            bars.append(tqdm(total=100, bar_format=shape, disable=quiet))
        # The bar's own estimate follows the first tensors, which say little about the others.
        bars[0].set_postfix_str(words(step), refresh=False)
        bars[0].update(round(100 * step.fraction) - bars[0].n)

    try:
        yield show
    finally:
        for bar in bars:
            bar.close()


def _extract(options: argparse.Namespace) -> None:
    from sftm_app.api import extract, extraction_costs
    from sftm_app.methods.params import check_size_rank

    check = _interruptible()
    rank = check_size_rank(options.rank, "--rank")
    if options.table or (rank is None and options.energy is None):
        with _progress_bar(check, options.quiet) as show:
            costs = extraction_costs(options.base, options.task, options.device, show)
        print(" rank  change kept  worst layer   size")
        for cost in costs:
            print(f"{cost.rank:5d}  {cost.energy:11.1%}  {cost.worst_energy:11.1%}  {format_bytes(cost.n_bytes):>9}")
        print(
            f"{max(0.0, 1 - costs[0].carried):.1%} of the whole change is outside the layers that an adapter carries."
        )
        return
    if options.output is None:
        raise OutputError("Give --output FOLDER for the adapter, or --table to see what each rank would cost.")
    with _progress_bar(check, options.quiet) as show:
        report = extract(
            options.base, options.task, options.output, rank, options.energy, options.device,
            dtype=options.dtype, progress=show,
        )  # fmt: skip
    print(f"Extracted an adapter of {format_bytes(report.output_bytes)} in {report.seconds:.1f} s: {options.output}")
    for warning in report.warnings:
        print(f"  {warning}")


def _search(options: argparse.Namespace) -> None:
    from sftm_app.cli_tuning import print_search, refuse_existing_file, run_search, search_words

    check = _interruptible()
    recipe = _with_changes(_load(options.recipe), options)
    refuse_existing_file(options.output)
    try:
        with _progress_bar(check, options.quiet, search_words) as show:
            found = run_search(options, recipe, show)
    except KeyboardInterrupt:
        raise Cancelled("cancelled. The trials so far are kept, and the same command goes on with them.") from None
    print_search(found, options.output)


def _scaling(options: argparse.Namespace) -> None:
    from sftm_app.cli_tuning import print_scaling

    print_scaling(options, _with_changes(_load(options.recipe), options))


def _with_changes(recipe: Recipe, options: argparse.Namespace) -> Recipe:
    from sftm_app.methods import get_method
    from sftm_app.methods.params import make_params
    from sftm_app.planning.recipe import check_tokenizer, parse_size

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
    if getattr(options, "memory", None) is not None:
        parse_size(options.memory, "--memory")
    check_tokenizer(getattr(options, "tokenizer", None), [task.name for task in recipe.tasks])
    names = ("device", "memory", "measure", "tokenizer")
    changes = {name: getattr(options, name, None) or getattr(recipe, name) for name in names}
    return dataclasses.replace(recipe, method=method, params=made, **changes)


def _value(text: str) -> str | float:
    """A number if it reads as one; ranks and words stay text, which their control understands."""
    try:
        return float(text) if "." in text or "e" in text.lower() else int(text)
    except ValueError:
        return text


def _check(options: argparse.Namespace) -> None:
    from sftm_app.pipeline import prepare
    from sftm_app.planning.account import accounts
    from sftm_app.planning.budget import check_budget
    from sftm_app.session import open_session
    from sftm_app.weights.hub_names import short_name

    session = open_session()
    plan = prepare(_with_changes(_load(options.recipe), options), session)
    found = plan.preflight
    for note in found.notes:
        print(note)
    for line in accounts(plan):
        print(line.sentence())
    fits = "1 task fits" if len(found.tasks) == 1 else f"{len(found.tasks)} tasks fit"
    print(f"{fits} the base ({short_name(found.base.path)}, {_kind(found.base)}).")
    print(*plan.cost.sentences(), sep="\n")
    check_budget(plan, session.n_threads)


def _kind(base: Checkpoint) -> str:
    return "roles guessed, as there is no config.json" if base.bare else base.architecture


def _inspect(options: argparse.Namespace) -> None:
    from sftm_app.api import inspect_recipe
    from sftm_app.session import open_session

    result = inspect_recipe(_with_changes(_load(options.recipe), options), open_session(), options.layer)
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


def _convert(options: argparse.Namespace) -> None:
    from sftm_app.weights.pickles import convert

    _interruptible()
    print("\n".join(convert(options.path.expanduser().absolute(), options.output)))


def _fetch(options: argparse.Namespace) -> None:
    from tqdm import tqdm

    from sftm_app.hub.fetching import choose, fetch
    from sftm_app.hub.hub_look import look
    from sftm_app.hub.hub_process import HubProcess
    from sftm_app.planning.recipe import recipe_to_yaml
    from sftm_app.session import open_session

    if not options.models and not options.preset:
        raise InputError("Name a model, such as org/name, or a set with --preset. See sftm fetch --help.")
    if options.recipe and not (options.base or options.preset):
        raise InputError("--recipe needs a base. Add --base MODEL.")
    if options.recipe and options.recipe.exists():
        raise OutputError(f"{options.recipe}: exists already. Give --recipe another name, or remove it first.")
    _interruptible()
    chosen = choose(options.base or "", options.models, options.preset, _folder)
    seen = look(chosen, HubProcess(), open_session().architectures)
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
    from sftm_app.ui.listening import open_door
    from sftm_app.ui.settings import make_settings

    _interruptible()
    if options.allow_host and options.listen is None:
        raise InputError("--allow-host is for --listen. Add that, or leave the host out.")
    door = open_door(options.listen, options.allow_host) if options.listen is not None else None
    settings = make_settings(options.models_dir, options.output_dir, options.device, options.port)
    serve(settings, not options.no_browser, door=door)


COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "merge": _merge,
    "search": _search,
    "scaling": _scaling,
    "check": _check,
    "inspect": _inspect,
    "extract": _extract,
    "convert": _convert,
    "fetch": _fetch,
    "cache": _cache,
    "ui": _ui,
}
