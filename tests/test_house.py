"""The house rules of DESIGN section 4, read from the source itself."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
APP = ROOT / "sftm_app"
FILES = sorted(APP.rglob("*.py"))

# A room may import itself and the rooms named here. `__init__` and `__main__` are the doors; they name api and cli.
# A name that lies in no room (a new top-level file) fails the test until it is placed.
ERRORS, LINALG, CHECKPOINTS, MERGING = (
    {"errors"},
    {"errors"},
    {"errors", "caching", "sizes"},
    {"errors", "caching", "devices", "sizes", "linalg", "checkpoints", "__init__"},
)
INSPECTION = EVALUATION = MERGING | {"merging"}
JOBS = INSPECTION | {"inspection", "evaluation"}
MAY_IMPORT = {
    "errors": set(),
    "caching": {"errors"},
    "devices": set(),
    "sizes": set(),
    "resources": {"errors"},
    "linalg": LINALG,
    "checkpoints": CHECKPOINTS,
    "merging": MERGING,
    "inspection": INSPECTION,
    "evaluation": EVALUATION,
    "jobs": JOBS,
    "plots": JOBS | {"resources"},
    "ui": JOBS | {"jobs", "plots", "resources"},
    "api": JOBS | {"jobs"},
    "cli_options": {"devices", "__init__"},
    "cli": JOBS | {"jobs", "api", "ui", "cli_options"},
    "__init__": {"api"},
    "__main__": {"cli"},
}
# Where a library may be imported: rooms, or single files.
ONLY_IN = {
    "gradio": ("ui/",),
    "huggingface_hub": ("checkpoints/hub",),
    "plotly": ("plots/",),
    "ray": ("merging/cluster.py",),
    "safetensors": ("checkpoints/",),
    "transformers": ("checkpoints/architecture.py", "evaluation/"),
}


def name_of(file: Path) -> str:
    return file.relative_to(APP).as_posix()


def room_of(dotted: str) -> str:
    """The room of a file's path or of a module's name below sftm_app."""
    return re.split(r"[/.]", dotted)[0]


def imports(file: Path) -> Iterator[str]:
    """Full names of everything a file imports, wherever in the file it does."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            for alias in node.names:
                yield f"{node.module}.{alias.name}"


def parts_below_app(dotted: str) -> str:
    """ "sftm_app.planning.plan.Plan" -> "merging.plan.Plan"; what sftm_app/__init__ itself holds -> "__init__"."""
    rest = dotted.removeprefix("sftm_app").removeprefix(".")
    room = room_of(rest)
    return rest if (APP / room).is_dir() or (APP / f"{room}.py").exists() else "__init__"


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_imports_run_one_way(file: Path) -> None:
    room = room_of(name_of(file).removesuffix(".py"))
    assert room in MAY_IMPORT, f"{room} is not placed in the house: add it to MAY_IMPORT"
    used = {room_of(parts_below_app(name)) for name in imports(file) if name.split(".")[0] == "sftm_app"}
    assert used - {room} <= MAY_IMPORT[room]


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_libraries_stay_in_their_rooms(file: Path) -> None:
    for name in imports(file):
        library = name.split(".")[0]
        if library in ONLY_IN:
            assert name_of(file).startswith(ONLY_IN[library]), f"{library} belongs into {', '.join(ONLY_IN[library])}"


def test_the_rules_see_what_they_should() -> None:
    """The reader of imports finds those inside functions and under TYPE_CHECKING too."""
    assert "sftm_app.api.merge_recipe" in set(imports(APP / "cli.py"))
    assert parts_below_app("sftm_app.__version__") == "__init__"
    assert parts_below_app("sftm_app.planning.plan.Plan") == "merging.plan.Plan"
    assert {"gradio", "plotly", "safetensors", "transformers"} <= {
        name.split(".")[0] for file in FILES for name in imports(file)
    }


def test_a_method_file_imports_linalg_the_base_type_and_params_only() -> None:
    allowed = ("sftm_app.linalg.", "sftm_app.methods.base.", "sftm_app.methods.params.")
    for file in sorted((APP / "merging" / "methods").glob("*.py")):
        if file.name in ("__init__.py", "base.py"):
            continue
        for name in imports(file):
            assert not name.startswith("sftm_app") or name.startswith(allowed), (file.name, name)


def test_every_method_file_is_in_the_table() -> None:
    from sftm_app.methods import METHODS

    files = {file.stem for file in (APP / "merging" / "methods").glob("*.py")} - {"__init__", "base"}
    assert files == set(METHODS)


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_files_stay_small(file: Path) -> None:
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 400


def undocumented(node: ast.AST, where: str = "") -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not child.name.startswith("_"):
            yield from [] if ast.get_docstring(child) else [f"{where}{child.name}"]


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_everything_public_is_documented(file: Path) -> None:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    if tree.body:
        assert ast.get_docstring(tree), "the file itself says nothing"
    assert list(undocumented(tree)) == []


def test_every_error_is_drawn_in_the_tree() -> None:
    from sftm_app import errors

    tree = ast.parse((APP / "errors.py").read_text(encoding="utf-8"))
    names = [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
    drawn = re.findall(r"^(?:    )?[│├└─ ]*(\w+)\s{2,}", errors.__doc__ or "", re.MULTILINE)
    assert sorted(drawn) == sorted(names)
    for name in names:
        kind = getattr(errors, name)
        assert issubclass(kind, errors.SFTMError)
        assert kind.exit_code in (1, 2, 3, 130)


def test_no_module_holds_state_that_changes() -> None:
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            assert not isinstance(node, ast.Global), f"{name_of(file)} changes a name of its module"


def test_no_path_of_a_machine_is_in_the_source() -> None:
    for file in FILES:
        assert not re.search(r"/(work|home|Users)/\w", file.read_text(encoding="utf-8")), name_of(file)
