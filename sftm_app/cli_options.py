"""The commands and options of the command line."""

from __future__ import annotations

import argparse
from pathlib import Path

from sftm_app import __version__
from sftm_app.devices import DEVICES

# As in api and planning.recipe, which need torch.
EXECUTORS = ("local", "ray")
MEASURE = ("auto", "all", "none")


def build_parser() -> argparse.ArgumentParser:
    """All commands and options; `command` is the name of the one that was given. Needs no torch."""
    parser = argparse.ArgumentParser(prog="sftm", description="Merge fine-tuned models.")
    parser.add_argument("--version", action="version", version=f"SFTM Studio {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, help: str, description: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=help, description=description)
        added.set_defaults(command=name)
        return added

    _add_merge_options(command("merge", "merge by a recipe", "Merge by a recipe and write the merged model."))
    check = command(
        "check",
        "compare base and tasks, and say what merging them takes",
        "Compare base and tasks by their headers, and say what the merge would take. Refuses the same inputs, settings "
        "and memory as merge.",
    )
    _add_recipe_options(check)
    _add_plan_options(check)
    inspect = command(
        "inspect",
        "measure every layer",
        "Print measures of every layer, and how many warnings it has. --layer prints the warnings, and --json "
        "everything: measures overall and per task, spectra and clusters, overlaps, principal angles, warnings, and "
        "what the method would keep of every task.",
    )
    _add_recipe_options(inspect)
    inspect.add_argument("--layer", help="one layer in detail, by the tensor's name")
    inspect.add_argument("--json", action="store_true", help="everything as one JSON document")
    extract = command(
        "extract",
        "turn a fine-tune into a LoRA adapter",
        "Write what a fine-tune changed as a LoRA adapter of a rank or energy. Without either, only print what it "
        "would cost: the share of the change that each rank keeps, and the size.",
    )
    _add_extract_options(extract)
    convert = command(
        "convert",
        "turn pickled weights into safetensors",
        "Write a copy of a checkpoint whose pickled weights (.bin, .pt, .pth, .ckpt) are safetensors. Only tensors are "
        "read, in a process that is offline and has limits of time and memory.",
    )
    convert.add_argument("path", type=Path, help="a folder with pickled weights, or one such file")
    convert.add_argument("--output", type=Path, help="the new folder (default: FOLDER-safetensors)")
    fetch = command(
        "fetch",
        "download models from the Hugging Face hub",
        "Look at models on the hub, compare them by their headers, and download them into the hub's cache. Prints "
        "their folders: base first, then tasks. This is the only command that contacts the hub.",
    )
    _add_fetch_options(fetch)
    search = command(
        "search",
        "find the best merge on labelled samples",
        "Try merges with many settings and print which is best: method, its settings, and one weight per task. Half of "
        "each task's samples choose, the other half say how good the best is. A search that was interrupted goes on.",
    )
    _add_search_options(search)
    scaling = command(
        "scaling",
        "pick the scaling without labels",
        "Print the scaling at which the merge agrees most with each task's own model, on 16 to 64 inputs of each task "
        "that need no labels.",
    )
    _add_scaling_options(scaling)
    cache = command(
        "cache",
        "what is cached",
        "Features, merged layers and hashes are cached on disk, so that the next merge or look at the same files is "
        "quick. Prints where, how many and how large; --clear removes them.",
    )
    cache.add_argument("--clear", action="store_true", help="remove all of them")
    _add_cache_options(cache)
    add_ui_options(command("ui", "open the app in the browser", "Start the app and open it in the browser."))
    return parser


def add_ui_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the app itself."""
    parser.add_argument("--port", type=int, help="port (default: the first free one from 7860)")
    parser.add_argument("--device", choices=DEVICES, default="auto", help="where to compute (default: auto)")
    parser.add_argument(
        "--models-dir",
        type=Path,
        action="append",
        default=[],
        help="folder to pick checkpoints from (default: ./models if it exists, otherwise your home folder); can be "
        "given several times",
    )
    parser.add_argument("--output-dir", type=Path, help="folder for runs and saved models (default: ./sftm-output)")
    parser.add_argument("--no-browser", action="store_true", help="do not open a browser")
    parser.add_argument(
        "--listen",
        nargs="?",
        const="0.0.0.0",
        metavar="ADDRESS",
        help="let others in who have the address that is printed, with its token (default: this machine alone)",
    )
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="another name by which others call this machine, with --listen; can be given several times",
    )
    _add_cache_options(parser)


def _add_merge_options(parser: argparse.ArgumentParser) -> None:
    _add_recipe_options(parser)
    _add_plan_options(parser)
    parser.add_argument("--output", type=Path, help="output folder (default: the recipe's output.path)")
    parser.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        help="continue a merge that was killed, or throw away what it left and start again",
    )
    parser.add_argument(
        "--replace",
        action="store_true",
        help="if the output folder is a merged model already, put the new one in its place once it is complete",
    )
    parser.add_argument(
        "--executor",
        choices=EXECUTORS,
        default=EXECUTORS[0],
        help="who merges: this process (default), or the workers of a Ray cluster; the result is the same",
    )
    parser.add_argument(
        "--address", metavar="HOST:PORT", help="Ray cluster to join, or auto (default: start one for this merge)"
    )
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes of a Ray cluster that is started here (default: CPUs / OMP_NUM_THREADS, the threads of each)",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def _add_extract_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--base", required=True, help="folder of the model that was fine-tuned")
    parser.add_argument("--task", required=True, help="folder of the fine-tune")
    parser.add_argument("--output", type=Path, help="output folder")
    parser.add_argument("--rank", help="features per layer at most: a count such as 16, or a share such as 25%%")
    parser.add_argument("--energy", type=float, help="share of each layer's squared change to keep, such as 0.9")
    parser.add_argument("--table", action="store_true", help="only print what each rank would cost")
    parser.add_argument("--dtype", help="dtype of the adapter: float32, float16 or bfloat16")
    parser.add_argument("--device", choices=DEVICES, default="auto", help="where to compute (default: auto)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def _add_fetch_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("models", nargs="*", metavar="MODEL", help="org/name, org/name@revision, or a local folder")
    parser.add_argument(
        "--base", help="the model that the others were fine-tuned from: they are compared with it first"
    )
    parser.add_argument("--preset", help="a well-known set of base and tasks by one name (a wrong name lists them all)")
    parser.add_argument("--recipe", type=Path, metavar="FILE", help="write a recipe for base and tasks")
    parser.add_argument("--look", action="store_true", help="only compare, and say what would be downloaded")
    parser.add_argument("--quiet", action="store_true", help="no progress bar; print only the folders")


def _add_search_options(parser: argparse.ArgumentParser) -> None:
    _add_recipe_options(parser)
    parser.add_argument(
        "--samples",
        required=True,
        metavar="FOLDER",
        help="labelled samples: a file of texts, a folder with one per task, a folder of images (one folder per task, "
        "and in each one folder per class), or the folder of a demo",
    )
    parser.add_argument("--trials", type=int, default=50, help="merges to try (default: 50)")
    parser.add_argument("--minutes", type=float, help="stop after so many minutes")
    parser.add_argument("--methods", help="only these methods, with commas between (default: all that fit)")
    parser.add_argument("--equal-weights", action="store_true", help="leave the task weights as they are in the recipe")
    parser.add_argument(
        "--limit", type=int, default=100, help="samples of a task to choose on, and as many to test (default: 100)"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the recipe of the best merge")
    parser.add_argument(
        "--output-dir", type=Path, default=Path("sftm-output"), help="folder of the trials (default: ./sftm-output)"
    )
    parser.add_argument("--device", choices=DEVICES, help="where to compute (default: the recipe's)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def _add_scaling_options(parser: argparse.ArgumentParser) -> None:
    _add_recipe_options(parser)
    parser.add_argument(
        "--inputs",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="a folder with TASK.txt (one text a line) or a folder TASK of images for each task; or labelled samples, "
        "whose labels are not looked at",
    )
    parser.add_argument("--scalings", help="those to try, with commas between (default: 0.2 to 1.4)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the recipe with the scaling")
    parser.add_argument("--device", choices=DEVICES, help="where to compute (default: the recipe's)")


def _add_recipe_options(parser: argparse.ArgumentParser) -> None:
    """The recipe, another method or parameters than it names, and the cache."""
    parser.add_argument("recipe", type=Path, help="a YAML recipe, such as the Merge tab downloads")
    parser.add_argument("--method", help="another method than the recipe's (a wrong name shows the nearest one)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="another value for a parameter of the method, such as scaling=0.8 or rank=25%% (may be repeated)",
    )
    _add_cache_options(parser)


def _add_plan_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=DEVICES, help="where to compute (default: the recipe's)")
    parser.add_argument(
        "--memory", metavar="SIZE", help="the most memory that the merge may take, such as 4GB (default: the recipe's)"
    )
    parser.add_argument(
        "--measure",
        choices=MEASURE,
        help="the layers on which to measure what each task keeps; auto: where it is quick (default: the recipe's)",
    )
    parser.add_argument(
        "--tokenizer",
        metavar="WHOSE",
        help="whose tokenizer the merged model has where they differ: base, union (all tokens) or 'task NAME'",
    )


def _add_cache_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--cache-dir", metavar="DIR", help="folder of the cache (default: SFTM_CACHE_DIR, otherwise the user's cache)"
    )
    parser.add_argument(
        "--cache-gb",
        metavar="N",
        help="the cache holds at most N gigabytes, 0 for none (default: SFTM_CACHE_GB or 10)",
    )
