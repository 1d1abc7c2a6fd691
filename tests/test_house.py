"""The rules of the house, read from the source: rooms, imports, sizes, docstrings, state and the names of methods."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from graphlib import CycleError, TopologicalSorter
from importlib.metadata import packages_distributions
from pathlib import Path

from sftm_app.methods import METHODS

ROOT = Path(__file__).resolve().parents[1]
APP = ROOT / "sftm_app"

# The rooms from the ground up, each with the rooms that it may import besides itself.
HOUSE = {
    "errors": "",
    "units": "",
    "devices": "",
    "resources": "errors",
    "caching": "errors",
    "processes": "",
    "linalg": "errors",
    "machine_speed": "caching linalg",
    "methods": "errors linalg",
    "weights": "errors units caching processes linalg",
    "architecture": "errors caching processes weights",
    "session": "errors units caching machine_speed weights architecture",
    "preflight": "errors weights architecture",
    "planning": "errors units devices linalg machine_speed methods weights architecture session preflight",
    "pipeline": "errors session preflight planning",
    "engine": "errors units linalg methods weights architecture session preflight planning",
    "output": "errors units caching linalg methods weights architecture session preflight planning engine",
    "inspection": "errors units caching linalg methods weights architecture preflight planning engine",
    "evaluation": "errors units caching linalg methods weights architecture session preflight planning pipeline engine",
    "tuning": "errors units caching weights methods session preflight planning engine evaluation",
    "plots": "errors linalg methods",
    "api": "errors methods session preflight planning pipeline output inspection evaluation tuning",
    "jobs": "errors units processes weights architecture session planning pipeline output",
    "hub": "errors units processes weights architecture preflight planning jobs",
    "ui": """errors units resources caching linalg methods weights architecture session preflight planning pipeline
        output inspection evaluation tuning plots jobs hub""",
    "cli_options": "devices",
    "cli_tuning": "errors units methods session planning tuning api ui",
    "cli": """errors units processes methods weights session planning pipeline output tuning api hub ui cli_options
        cli_tuning""",
    "__main__": "cli",
}
# The files and rooms that may import a library.
LIBRARIES = {
    "PIL": ("evaluation/image_files.py", "ui/inspect/"),
    "gradio": ("ui/",),
    "huggingface_hub": ("hub/", "weights/hub_names.py"),
    "markupsafe": ("ui/",),
    "optuna": ("tuning/",),
    "platformdirs": ("caching.py",),
    "plotly": ("plots/",),
    "ray": ("output/ray_executor.py",),
    "re2": ("weights/patterns.py",),
    "safetensors": ("weights/",),
    "pyarrow": ("evaluation/table_files.py",),
    "starlette": ("ui/",),
    "torchmetrics": ("evaluation/measures.py",),
    "tqdm": ("cli.py",),
    "transformers": ("architecture/", "evaluation/"),
    "yaml": ("planning/recipe.py", "output/card.py"),
}
# Where a process starts or starts another one. `session` reads the environment for all rooms above it.
ENVIRONMENT = {
    "cli.py",
    "session.py",
    "ui/app.py",
    "jobs/workers.py",
    "hub/hub_process.py",
    "output/ray_executor.py",  # tells Ray not to report its use
}
CACHES = {"Cache", "LRUCache", "TTLCache", "lru_cache", "cache", "Lock", "RLock", "local", "ContextVar", "defaultdict"}
CHANGES = {"add", "append", "clear", "discard", "extend", "insert", "pop", "popitem", "remove", "setdefault", "update"}


def parse(file: Path) -> ast.Module:
    """Return the syntax tree of a file."""
    return ast.parse(file.read_text(encoding="utf-8"))


TREES = {file.relative_to(APP).as_posix(): parse(file) for file in sorted(APP.rglob("*.py"))}
MODULES = {".".join(("sftm_app", *Path(name).with_suffix("").parts)).removesuffix(".__init__"): name for name in TREES}


def imports(tree: ast.AST) -> Iterator[str]:
    """Yield the full name of everything that a file imports, also inside functions and under TYPE_CHECKING."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imported_modules(tree: ast.AST) -> set[str]:
    """Return the modules of the app that a file imports. The door, `sftm_app` itself, has only the version for them."""
    found = {name for name in imports(tree) if name.split(".")[0] == "sftm_app"} - {"sftm_app.__version__"}
    return {name if name in MODULES else name.rpartition(".")[0] for name in found}


def room_of(file: str) -> str:
    """Return the room of a file, given relative to sftm_app."""
    return file.split("/")[0].removesuffix(".py")


def lines_of(found: Iterable[str]) -> str:
    """Return a message with one finding per line."""
    return "\n" + "\n".join(sorted(found))


def top_level(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes that run when the module is imported."""
    for child in ast.iter_child_nodes(tree):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield child
            yield from top_level(child)


def test_the_rooms_stand_in_order() -> None:
    rooms = list(HOUSE)
    for place, (room, allowed) in enumerate(HOUSE.items()):
        assert set(allowed.split()) <= set(rooms[:place]), f"{room} may import rooms above it only"
    assert {room_of(file) for file in TREES} == {*HOUSE, "__init__"}, "every file is in a room of the table"


def test_imports_run_one_way() -> None:
    wrong = [
        f"{file} imports {module}"
        for file, tree in TREES.items()
        if file != "__init__.py"
        for module in sorted(imported_modules(tree))
        if (room := room_of(MODULES[module])) != room_of(file) and room not in HOUSE[room_of(file)].split()
    ]
    assert not wrong, lines_of(wrong)


def test_there_is_no_import_loop() -> None:
    graph = {file: {MODULES[module] for module in imported_modules(tree)} - {file} for file, tree in TREES.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise AssertionError("import loop: " + " <- ".join(error.args[1])) from None


def test_libraries_stay_in_their_rooms() -> None:
    wrong = [
        f"{file} imports {library}"
        for file, tree in TREES.items()
        for library in sorted({name.split(".")[0] for name in imports(tree)} & set(LIBRARIES))
        if not file.startswith(LIBRARIES[library])
    ]
    assert not wrong, lines_of(wrong)


def test_every_imported_library_is_a_dependency() -> None:
    listed = re.search(
        r"^dependencies = \[(.*?)^\]", (ROOT / "pyproject.toml").read_text("utf-8"), re.DOTALL | re.MULTILINE
    )
    assert listed
    # ray is the extra `cluster`, and pydantic pins the version of its core.
    declared = {"ray", "pydantic_core", *re.findall(r'"([\w-]+)', listed[1])}
    distributions = packages_distributions()
    used = {name.split(".")[0] for tree in TREES.values() for name in imports(tree)} - {"sftm_app", "__future__"}
    missing = {
        library
        for library in used & set(distributions)
        if not {name.lower() for name in distributions[library]} & declared
    }
    assert not missing, lines_of(missing) + "\nAdd them to the dependencies in pyproject.toml."


def test_the_reader_of_imports_finds_them_all() -> None:
    """Imports inside functions and under TYPE_CHECKING count, and so does every spelling of an import."""
    tree = ast.parse(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from sftm_app.planning.plan import Plan\n"
        "def late():\n    import sftm_app.engine.run\n"
        "    from sftm_app.linalg import svd\n    from sftm_app import api\n"
    )
    wanted = {"sftm_app.planning.plan", "sftm_app.engine.run", "sftm_app.linalg.svd", "sftm_app.api"}
    assert imported_modules(tree) == wanted
    assert "sftm_app.ui.app" in imported_modules(TREES["cli.py"])


def test_files_stay_small() -> None:
    lines = {file: len((APP / file).read_text(encoding="utf-8").splitlines()) for file in TREES}
    long = [f"{file}: {count} lines" for file, count in lines.items() if count > 400]
    assert not long, lines_of(long)


def test_everything_public_is_documented() -> None:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    bare = [file for file, tree in TREES.items() if tree.body and not ast.get_docstring(tree)]
    for file, tree in TREES.items():
        classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]
        for owner in (tree, *classes):
            bare += [
                f"{file}: {node.name}"
                for node in owner.body
                if isinstance(node, kinds) and not node.name.startswith("_") and not ast.get_docstring(node)
            ]
    assert not bare, lines_of(bare)


def test_no_module_holds_state_that_changes() -> None:
    wrong = []
    for file, tree in TREES.items():
        names = {
            target.id
            for node in tree.body
            if isinstance(node, ast.Assign | ast.AnnAssign)
            for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
            if isinstance(target, ast.Name)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Global):
                wrong.append(f"{file}:{node.lineno}: global")
            if isinstance(node, ast.Subscript) and not isinstance(node.ctx, ast.Load):
                changed = node.value
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CHANGES:
                changed = node.func.value
            else:
                continue
            if isinstance(changed, ast.Name) and changed.id in names:
                wrong.append(f"{file}:{node.lineno}: changes {changed.id}")
        for node in top_level(tree):
            called = node.func if isinstance(node, ast.Call) else None
            name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
            if name in CACHES:
                wrong.append(f"{file}:{node.lineno}: {name} at module level")  # type: ignore[attr-defined]
        for node in ast.walk(tree):
            for decorator in getattr(node, "decorator_list", []):
                if re.match(r"(functools\.)?(lru_cache|cache)\b", ast.unparse(decorator)):
                    wrong.append(f"{file}:{decorator.lineno}: {ast.unparse(decorator)}")
    assert not wrong, lines_of(wrong) + "\nPut caches into an object that is passed down."


def test_only_entry_points_read_the_environment() -> None:
    wrong = []
    for file, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and ast.unparse(node) in ("os.environ", "os.getenv", "os.putenv"):
                wrong.append(file)
        wrong += [file for name in imports(tree) if name in ("os.environ", "os.getenv")]
    assert not set(wrong) - ENVIRONMENT, lines_of(set(wrong) - ENVIRONMENT)


def test_a_method_is_known_by_its_own_file_only() -> None:
    """No other file contains the name of a method, except the default in planning/recipe.py."""
    wrong = []
    for file, tree in TREES.items():
        if file.startswith("methods/"):
            continue
        others = {
            id(node.value) for node in ast.walk(tree) if isinstance(node, ast.keyword) and node.arg in ("prog", "name")
        }
        for node in ast.walk(tree):
            # "average" is also the rule for norms, so for this name only comparisons with a method count.
            if isinstance(node, ast.Compare) and "method" in ast.unparse(node) and "'average'" in ast.unparse(node):
                wrong.append(f"{file}:{node.lineno}: {ast.unparse(node)}")
            if (
                isinstance(node, ast.Constant)
                and node.value in {*METHODS, "superpose"} - {"average"}
                and id(node) not in others
                and not (file == "linalg/__init__.py" and node.value == "superpose")
            ):
                wrong.append(f"{file}:{node.lineno}: {node.value!r}")
    elsewhere = [place for place in wrong if not place.startswith("planning/recipe.py")]
    assert not elsewhere, lines_of(elsewhere)
    assert len(wrong) == 1, lines_of(wrong) + "\nName the default once, as a constant."


def test_a_method_file_imports_linalg_the_contract_and_params_only() -> None:
    allowed = ("sftm_app.linalg", "sftm_app.methods.base", "sftm_app.methods.params", "sftm_app.errors")
    shared = {f"methods/{name}.py" for name in ("__init__", "base", "calling", "params", "settings")}
    files = [file for file in TREES if file.startswith("methods/") and file not in shared]
    wrong = [
        f"{file} imports {module}"
        for file in files
        for module in imported_modules(TREES[file])
        if not module.startswith(allowed)
    ]
    assert not wrong, lines_of(wrong)
    assert {name.removeprefix("sftm_app.methods.") for name in imported_modules(TREES["methods/__init__.py"])} >= {
        Path(file).stem for file in files
    }, "every file of a method is in the table"


def test_every_error_is_in_the_tree_of_the_docstring() -> None:
    from sftm_app import errors

    names = [node.name for node in TREES["errors.py"].body if isinstance(node, ast.ClassDef)]
    drawn = re.findall(r"^(?:    )?[│├└─ ]*(\w+)\s{2,}", errors.__doc__ or "", re.MULTILINE)
    assert sorted(drawn) == sorted(names)
    for name in names:
        kind = getattr(errors, name)
        assert issubclass(kind, errors.SFTMError)
        assert kind.exit_code in (1, 2, 3, 130)


def test_no_path_of_a_machine_is_in_the_source() -> None:
    paths = [file for file in TREES if re.search(r"/(work|home|Users)/\w", (APP / file).read_text(encoding="utf-8"))]
    assert paths == []
