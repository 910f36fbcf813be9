"""How the code is laid out: which room may import which, what ships, and what no library file holds."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
from repository import HELPERS, ROOT

import wise

ROOMS = {
    "wise": "wise",
    "wise.router": "router",
    "wise.memory": "memory",
    "wise.training": "training",
    "wise.lab": "lab",
}
VOCABULARY = {f"wise.{name}" for name in "architectures config edits errors probes progress safe_text".split()}
"""What any room may import."""
BELOW = {
    "wise.memory": ("wise.memory",),
    "wise.router": ("wise.memory", "wise.router"),
    "wise.training": ("wise.memory", "wise.router", "wise.training"),
}
"""What each room may import besides: itself and the rooms below it."""
LABORATORY, COMMANDS = "wise.lab", "wise.cli"
WITHIN_LAB = {
    "editors": set(),
    "eval": {"editors"},
    "bench": {"eval", "editors"},
    "locate": {"editors", "eval"},
}
"""What each part of the laboratory may import of the others."""


def files() -> Iterator[tuple[str, Path]]:
    """Each library file with the room it is in; the links inside `wise` are not followed."""
    for room, folder in ROOMS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            if not any(parent.is_symlink() for parent in path.parents):
                yield room, path


FILES = [path for _, path in files()]
TESTS = sorted((ROOT / "tests").rglob("*.py"))
each_file = pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(ROOT).as_posix())


def imported(tree: ast.AST, *, when_loaded: bool = False) -> set[str]:
    """Modules that a file imports from this project; `wise` itself only where a name is taken from it.

    when_loaded: only those that it imports at its top, and not for type checkers alone.
    """
    found: set[str] = set()
    for node in ast.iter_child_nodes(tree) if when_loaded else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
            found.add(node.module or "")
    return {name for name in found if name.split(".")[0] in ("wise", "router", "memory", "training", "lab")}


def misplaced(room: str, modules: set[str], version_only: bool) -> set[str]:
    """Those of `modules` that a file in `room` may not import."""
    if room == "wise.lab":
        return {name for name in modules if name.split(".")[0] != "wise" or name.startswith(COMMANDS)}
    if room not in BELOW:
        return {name for name in modules if name.split(".")[0] != "wise" or name.startswith(LABORATORY)}
    allowed = VOCABULARY | ({"wise"} if version_only else set())
    return {
        name
        for name in modules
        if name not in allowed and not any(f"{name}.".startswith(f"{below}.") for below in BELOW[room])
    }


def only_the_version(tree: ast.AST) -> bool:
    """`__version__` is all that is taken from `wise` itself."""
    taken = [
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "wise"
        for alias in node.names
    ]
    return taken == ["__version__"]


def test_rooms_import_downwards_only() -> None:
    wrong = {}
    for room, path in files():
        tree = ast.parse(path.read_text())
        lazily = path.is_relative_to(ROOT / "wise" / "cli")
        found = misplaced(room, imported(tree, when_loaded=lazily), only_the_version(tree))
        if found:
            wrong[path.relative_to(ROOT).as_posix()] = sorted(found)
    assert not wrong


@pytest.mark.parametrize(
    ("room", "line"),
    [
        ("wise.memory", "from wise.router.assemble import assemble"),
        ("wise.memory", "from wise.model import wrap"),
        ("wise.memory", "from wise import wrap"),
        ("wise.memory", "def f():\n    import wise.training.trainer"),
        ("wise.router", "from wise.training import trainer"),
        ("wise.training", "from wise.model import WiseModel"),
        ("wise.training", "from wise.cli.app import app"),
        ("wise", "from router.assemble import assemble"),
        ("wise", "def f():\n    from wise.lab.eval import run"),
        ("wise.lab", "from wise.cli.common import show_table"),
        ("wise.memory", "from wise.memory_extra import x"),
    ],
)
def test_an_import_upwards_would_be_seen(room: str, line: str) -> None:
    tree = ast.parse(line)
    assert misplaced(room, imported(tree), only_the_version(tree))


def test_a_memory_does_not_know_its_store() -> None:
    for path in (ROOT / "memory").glob("*.py"):
        assert not {name for name in imported(ast.parse(path.read_text())) if name.startswith("wise.memory.store")}
    store = (ROOT / "memory" / "store" / "pack.py").read_text()  # negative control
    assert {name for name in imported(ast.parse(store)) if name.startswith("wise.memory.store")}


@pytest.mark.parametrize("part", WITHIN_LAB)
def test_parts_of_the_laboratory_import_downwards_only(part: str) -> None:
    found = set()
    for path in (ROOT / "lab" / part).rglob("*.py"):
        names = (name.split(".") for name in imported(ast.parse(path.read_text())))
        found |= {name[2] for name in names if name[:2] == ["wise", "lab"] and len(name) > 2}
    assert found - {part} <= WITHIN_LAB[part]


def test_no_two_modules_of_the_laboratory_import_each_other() -> None:
    modules = {f"wise.{p.relative_to(ROOT).with_suffix('').as_posix().replace('/', '.')}": p for r, p in files()
               if r == LABORATORY}  # fmt: skip
    uses = {name: imported(ast.parse(path.read_text())) & modules.keys() for name, path in modules.items()}
    assert len(uses) > 50
    assert not [(one, other) for one in uses for other in uses[one] if one in uses[other]]


def test_every_package_ships() -> None:
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert tools["package-dir"] == ROOMS
    found = set()
    for name, folder in ROOMS.items():
        for init in (ROOT / folder).rglob("__init__.py"):
            if any(parent.is_symlink() for parent in init.parents):
                continue
            found.add(".".join([name, *init.parent.relative_to(ROOT / folder).parts]))
    assert found == set(tools["packages"])


def test_every_folder_of_code_is_a_package() -> None:
    assert not [path for path in FILES if not (path.parent / "__init__.py").is_file()]


def test_tests_lie_in_the_rooms_that_they_test() -> None:
    folders = {path.parent.relative_to(ROOT / "tests").as_posix() for path in TESTS if path.parent != HELPERS}
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    rooms = {name.replace(".", "/") for name in packages}
    assert len(folders) > 15
    assert {folder for folder in folders if not {folder, f"wise/{folder}"} & rooms} == {"."}


def test_what_a_user_touches_is_a_few_files_and_one_class() -> None:
    named = "__init__ __main__ architectures config edits errors explain ingest loading model namespaces probes".split()
    further = "progress safe_text saving supported workers".split()
    assert {path.stem for path in (ROOT / "wise").glob("*.py")} == {*named, *further}
    mixins = [base for base in wise.WiseModel.__mro__[1:] if base.__module__.partition(".")[0] == "wise"]
    assert mixins == []


# -- the public surface -----------------------------------------------------------------------


def test_all_is_sorted_and_each_name_is_there() -> None:
    assert wise.__all__ == sorted(wise.__all__)
    for name in wise.__all__:
        assert getattr(wise, name).__module__ == wise._HOME[name]
    assert set(dir(wise)) == {*wise.__all__, "__version__"}
    with pytest.raises(AttributeError, match="'warp'"):
        wise.warp  # noqa: B018


def test_type_checkers_see_the_names_that_are_loaded_when_used() -> None:
    tree = ast.parse((ROOT / "wise" / "__init__.py").read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    assert ast.unparse(block.test) == "TYPE_CHECKING"
    seen = {
        alias.asname: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.name == alias.asname
    }
    assert seen == wise._HOME


def test_the_version_is_that_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert wise.__version__ == project["version"]


def run(code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONSAFEPATH": ""}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd, env=environment
    )


STEPS = {
    "wise": "import wise",
    "reading": "wise.read_edits",
    "engine": "import wise.serving.engines.local, wise.serving.editor_process",
    "service": "import wise.serving.service",
    "edit": """
import wise.serving.app
from chats import chat_model
from wise import Edit
assert chat_model().edit(Edit(prompt="w50 w51 w52", target="w70", subject="w50")).count("verified") == 1
""",
    "lab": "import wise.lab.locate.facts",
}
"""What one process does, one after the other, which knows our helpers."""


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The modules that are loaded after each step, one per line."""
    told = "print(' '.join(sys.modules))"
    code = [f"import sys\nsys.path.insert(0, {str(HELPERS)!r})", *(f"{step}\n{told}" for step in STEPS.values())]
    done = run("\n".join(code), tmp_path_factory.mktemp("nowhere"))
    assert done.returncode == 0, done.stderr
    return {name: line.replace(" ", "\n") for name, line in zip(STEPS, done.stdout.splitlines(), strict=True)}


@pytest.mark.parametrize(
    ("names", "steps", "control"),
    [
        ("(torch|transformers|faiss|matplotlib|numpy|typer|rich|fastapi|pydantic)$", ["wise", "reading"], "engine"),
        ("(fastapi|starlette|uvicorn)$", ["wise", "engine"], "service"),
        (r"wise\.lab", ["engine", "service", "edit"], "lab"),
    ],
    ids=["importing wise is light", "engines and the editor know no http", "editing and serving load no lab"],
)
def test_what_is_not_needed_is_not_loaded(
    loaded: dict[str, str], names: str, steps: list[str], control: str
) -> None:
    assert {step: re.findall(f"^{names}", loaded[step], re.MULTILINE) for step in steps} == {step: [] for step in steps}
    assert re.search(f"^{names}", loaded[control], re.MULTILINE)


@pytest.mark.parametrize("folder", ["router", "memory", "training", "lab"])
def test_a_room_cannot_be_imported_by_its_folder(folder: str) -> None:
    done = run(f"import {folder}", ROOT)
    assert done.returncode == 1
    assert (
        f"ImportError: import wise.{folder}, not {folder}: the repository root is on sys.path" in done.stderr
    )


@pytest.mark.parametrize("room", "router memory memory.store training training.router training.writers".split())
def test_a_room_can_be_imported_by_its_name(room: str) -> None:
    assert import_module(f"wise.{room}").__name__ == f"wise.{room}"


# -- what no test holds -----------------------------------------------------------------------


def sleeps(tree: ast.AST) -> list[int]:
    """Lines that let time pass; `asyncio.sleep(0)` lets other tasks run."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in ("sleep", "wait_for_timeout"):
            if ast.unparse(node) != "asyncio.sleep(0)":
                found.append(node.lineno)
    return found


def test_no_test_lets_time_pass_for_something_to_happen() -> None:
    """What must come is waited for: an event, a line of a stream, or `until` where nothing can tell."""
    found = {path.relative_to(ROOT).as_posix() for path in TESTS if sleeps(ast.parse(path.read_text()))}
    assert found == {"tests/helpers/waiting.py"}


@pytest.mark.parametrize(
    "line",
    ["time.sleep(0.1)", "from time import sleep\nsleep(1)", "await asyncio.sleep(0.5)", "page.wait_for_timeout(9)"],
)
def test_a_sleep_would_be_seen(line: str) -> None:
    assert sleeps(ast.parse(line))
    assert not sleeps(ast.parse("await asyncio.sleep(0)\nevent.wait(60)"))


FOREIGN = {"_dynamo", "_exit", "_forward_hooks", "_forward_pre_hooks", "_replace"}
"""Names of torch and Python that begin with an underscore."""
REACHING_IN = {
    "helpers/two_devices.py": "a tensor that acts as one of another device is made of torch's own private parts",
    "helpers/tiny.py": "a memory that no edit made is served for good, as nobody else may",
    "lab/editors": "the terms of an editor's formula are held against its paper one by one",
    "memory/test_keys.py": "what is left of a removed key, and which rows are shared, is no answer of the index",
    "test_structure.py": "the names that `wise` loads when they are used are its own table",
    "wise/test_saving.py": "transformers keeps the commit of a base in a private field",
    "wise/test_other_libraries.py": "hooks are torch's; which texts a reader has read is no answer of it",
    "wise/test_chat_edits.py": "the tiny vocabulary has no answer that is a word",
}
"""Tests that use private names of ours, with the reason."""


def private(tree: ast.AST) -> set[str]:
    """Private names of other modules and objects that a test uses."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) not in ("self", "cls"):
            found.add(node.attr)
        elif isinstance(node, ast.ImportFrom):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("setattr"):
            texts = [argument.value for argument in node.args[:2] if isinstance(argument, ast.Constant)]
            found |= {text.rpartition(".")[2] for text in texts if isinstance(text, str)}
    return {name for name in found if name.startswith("_") and not name.startswith("__")} - FOREIGN


def test_private_names_are_private_to_tests_too() -> None:
    """What a test must replace is an argument, or public."""
    found = set()
    for path in TESTS:
        name = path.relative_to(ROOT / "tests").as_posix()
        if private(ast.parse(path.read_text())):
            found.add("lab/editors" if name.startswith("lab/editors/") else name)
    assert found == set(REACHING_IN)


@pytest.mark.parametrize(
    "line", ["model._served", "from wise.model import _x", "patch.setattr(Store, '_put', f)", "setattr(m, '_x', 1)"]
)
def test_a_private_name_would_be_seen(line: str) -> None:
    assert private(ast.parse(line))
    assert not private(ast.parse("self._x\nroute._replace(a=1)\nmodel.__class__\npatch.setattr(m, 'x', '_y')"))


# -- what no library file holds ---------------------------------------------------------------


def forbidden(tree: ast.AST) -> set[str]:
    """Statements for people at a keyboard, loaders that execute what they load, checks that -O takes away."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert):
            found.add("assert")
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "torch.load", "eval", "exec"):
            found.add(ast.unparse(node.func))
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
            found |= {
                n for n in names if n.split(".")[0] in ("pickle", "dill", "joblib", "marshal", "shelve")
            }
    return found


@each_file
def test_library_file(path: Path) -> None:
    source = path.read_text()
    tree = ast.parse(source)
    assert not forbidden(tree)
    if path.name != "__init__.py":
        assert ast.get_docstring(tree), "opens with what it is and why"


@pytest.mark.parametrize(
    "line",
    ["print(1)", "assert x", "import pickle", "from pickle import loads", "torch.load('x')", "eval('1')"],
)
def test_what_is_forbidden_would_be_seen(line: str) -> None:
    assert forbidden(ast.parse(line))
    assert not forbidden(ast.parse("model.eval()\nimprint(1)\nload(x)\nassert_close(a, b)"))
