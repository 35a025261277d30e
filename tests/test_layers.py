"""The layers: what may import what, where files may lie, how long a module and a function may be, what prose may name.

Each check stands beside a test that the check can fail.
"""

import ast
import re
import sysconfig
from collections.abc import Iterable, Iterator
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import ROOT, run_python

CORE = ROOT / "ilcp"
CODECS = ROOT / "codecs"

# From the ground up: a room imports rooms of lower floors only, so that there can be no circle. "ilcp" is the package's
# own module, which names what is below it.
FLOORS = (
    ("errors",),
    ("files", "folders", "records", "tracing"),
    ("database", "identity", "inputs", "signing"),
    ("assurance", "evidence", "message"),
    ("codec", "nn"),
    ("models",),
    ("handoff", "tasks", "transport"),
    ("audit",),
    ("measure",),
    ("training", "trace"),
    ("embedded",),
    ("ilcp",),
    ("cli", "testing"),
    ("__main__",),
)
TORCH_FREE = (
    "assurance",
    "audit",
    "cli",
    "database",
    "errors",
    "evidence",
    "files",
    "folders",
    "identity",
    "ilcp",
    "inputs",
    "message",
    "records",
    "signing",
    "tasks",
    "tracing",
    "transport",
)
HEAVY = frozenset({"torch", "transformers"})

MODULE_LINES = 400
FUNCTION_LINES = 50

# A whole string that names the package, one of its modules, or an entry point in one; prose does not match.
CODECS_NAME = re.compile(r"ilcp_codecs([.:][\w.:]*)?")


def loaded_after(statement: str) -> set[str]:
    """The names of all modules that a fresh interpreter has loaded once it has run the statement."""
    code = f"{statement}\nimport sys\nprint(*sys.modules, sep='\\n')"
    # Isolated: neither the working folder nor PYTHONPATH may lend a module to the check.
    run = run_python("-I", "-c", code)
    assert run.returncode == 0, run.stderr
    return set(run.stdout.split())


def codecs_named(source: str) -> list[int]:
    """The lines on which the source imports ilcp_codecs, or names it in a string that an import could take."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=aliases):
                names = [alias.name for alias in aliases]
            case ast.ImportFrom(module=str(module), level=0):
                names = [module]
            case ast.Constant(value=str(text)):
                names = [text]
            case _:
                continue
        lines += [node.lineno for name in names if CODECS_NAME.fullmatch(name)]
    return lines


def long_functions(source: str) -> list[str]:
    """The names of the functions that are longer than the ceiling, docstring included, decorators not."""
    return [
        node.name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or node.lineno) - node.lineno + 1 > FUNCTION_LINES
    ]


def strays(codecs_root: Path) -> Iterator[Path]:
    """The files below a bare source root that would turn it into a package or into a test folder."""
    yield from (path for path in codecs_root.glob("*.py*") if path.is_file())
    for pattern in ("test_*.py", "*_test.py", "conftest.py"):
        yield from codecs_root.rglob(pattern)


def spec_of_codecs(folder: Path) -> str:
    """Where an import of `codecs` would find its file if the folder came first on the path."""
    # Asks the path, not sys.modules: the interpreter has loaded the standard module long before.
    code = "import importlib.machinery as m; print(m.PathFinder.find_spec('codecs').origin)"
    run = run_python("-c", code, cwd=folder)
    assert 0 == run.returncode, run.stderr
    return run.stdout.strip()


def modules() -> list[Path]:
    """Every Python file of the two packages."""
    return sorted([*CORE.rglob("*.py"), *CODECS.rglob("*.py")])


def name_of(path: Path) -> str:
    """The dotted name of a module below ``ilcp/``."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def room_of(module: str) -> str:
    """The room of a module of ilcp's: its folder, or its file where that lies in none."""
    return module.split(".")[1] if "." in module else module


def rooms_imported(source: str) -> set[str]:
    """The rooms of ilcp that a source imports, at the top, inside functions or for its types."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=aliases):
                found |= {alias.name for alias in aliases}
            case ast.ImportFrom(module="ilcp", names=aliases):
                found |= {f"ilcp.{alias.name}" if (CORE / alias.name).is_dir() else "ilcp" for alias in aliases}
            case ast.ImportFrom(module=str(module), level=0):
                found.add(module)
    return {room_of(name) for name in found if name.split(".")[0] == "ilcp"}


def arrows_upwards(room: str, imported: Iterable[str]) -> list[str]:
    """The arrows from a room to others that do not lie below it."""
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    return [f"{room} -> {other}" for other in sorted(imported) if other != room and floor[other] >= floor[room]]


def test_every_arrow_between_rooms_goes_down() -> None:
    """A room of ilcp imports rooms of lower floors only; each room has its floor."""
    sources = [(room_of(name_of(path)), path.read_text(encoding="utf-8")) for path in sorted(CORE.rglob("*.py"))]

    assert {room for room, _ in sources} <= {room for floor in FLOORS for room in floor}
    found = [arrow for room, text in sources if room != "ilcp" for arrow in arrows_upwards(room, rooms_imported(text))]
    assert [] == found


@pytest.mark.parametrize(
    ("source", "arrows"),
    [
        ("import ilcp.training.job", ["models -> training"]),
        ("from ilcp.handoff import Sender", ["models -> handoff"]),
        ("from ilcp import measure", ["models -> measure"]),
        ("from ilcp import Sender", ["models -> ilcp"]),
        ("def late():\n    import ilcp.cli, ilcp.tasks", ["models -> cli", "models -> tasks"]),
        ("from ilcp.codec import spec\nimport ilcp.models.adapter\nimport torch", []),
    ],
)
def test_the_check_of_the_floors_can_fail(source: str, arrows: list[str]) -> None:
    """Each way of importing a higher room is seen, and none of a lower one, of the same or of a package."""
    assert arrows == arrows_upwards("models", rooms_imported(source))


def test_a_neighbour_on_the_same_floor_is_refused() -> None:
    """Rooms of one floor know nothing of each other: two that did would be a circle in the making."""
    assert ["tasks -> transport"] == arrows_upwards("tasks", {"errors", "tasks", "transport"})


@pytest.mark.parametrize("room", TORCH_FREE)
def test_a_torch_free_room_stays_torch_free(room: str) -> None:
    """A gateway or an auditor can import every module of these rooms where neither torch nor transformers is loaded."""
    names = [name for path in sorted(CORE.rglob("*.py")) if room_of(name := name_of(path)) == room]
    loaded = loaded_after(f"import {', '.join(names)}")

    assert names
    assert set(names) <= loaded
    assert set() == loaded & HEAVY


def test_the_check_of_a_torch_free_room_can_fail() -> None:
    """A heavy module that comes along with a light one is seen; sqlite3 stands in for torch, to be quick."""
    assert "sqlite3" not in loaded_after("import ilcp.message")
    assert "sqlite3" in loaded_after("import ilcp.message, sqlite3")


def test_ilcp_never_names_its_codecs() -> None:
    """The arrow goes one way: no module of ilcp imports ilcp_codecs, nor holds a string to import it by."""
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in sorted(CORE.rglob("*.py"))
        for line in codecs_named(path.read_text(encoding="utf-8"))
    ]

    assert [] == found


@pytest.mark.parametrize(
    "source",
    [
        "import ilcp_codecs",
        "import ilcp_codecs.vae",
        "import json, ilcp_codecs.vae as vae",
        "from ilcp_codecs import vae",
        "from ilcp_codecs.text import plain",
        "def late():\n    from ilcp_codecs.text import plain",
        "import typing\nif typing.TYPE_CHECKING:\n    import ilcp_codecs",
        "import importlib\nimportlib.import_module('ilcp_codecs')",
        "import importlib\nimportlib.import_module('ilcp_codecs.vae')",
        "import importlib\nname = 'vae'\nimportlib.import_module(f'ilcp_codecs.{name}')",
        "ENTRY = 'ilcp_codecs.text:plain'",
    ],
)
def test_the_check_of_the_arrow_can_fail(source: str) -> None:
    """Each way of importing ilcp_codecs is caught, whether at the top, inside a function or by a string."""
    assert [len(source.splitlines())] == codecs_named(source)


@pytest.mark.parametrize(
    "source",
    [
        '"""Codecs live in ilcp_codecs."""',
        "from . import ilcp_codecs_like",
        "import ilcp_codecs_extra",
        "import codecs",
    ],
)
def test_the_check_of_the_arrow_spares_prose_and_other_names(source: str) -> None:
    """A docstring may speak of ilcp_codecs, and a name that only begins like it is another name."""
    assert [] == codecs_named(source)


def test_the_codecs_folder_is_a_bare_root() -> None:
    """codecs/ holds packages only: a file beside them would shadow the standard module, a test would replace it."""
    assert [] == list(strays(CODECS))


@pytest.mark.parametrize("name", ["__init__.py", "__init__.pyi", "vae.py", "pkg/test_vae.py", "pkg/conftest.py"])
def test_the_check_of_a_bare_root_can_fail(name: str, tmp_path: Path) -> None:
    """A module, a stub or a test that gets below codecs/ is found."""
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg" / "__init__.py").touch()
    assert [] == list(strays(tmp_path))

    (tmp_path / name).touch()

    assert [tmp_path / name] == list(strays(tmp_path))


def test_import_codecs_gives_the_standard_module() -> None:
    """With the repository first on the path, `import codecs` still finds the standard library's file."""
    assert Path(sysconfig.get_path("stdlib")) / "codecs.py" == Path(spec_of_codecs(ROOT))


def test_the_check_of_the_standard_module_can_fail(tmp_path: Path) -> None:
    """One __init__.py in a codecs/ folder is enough to take the standard module's place, and is seen."""
    (tmp_path / "codecs").mkdir()
    (tmp_path / "codecs" / "__init__.py").touch()

    assert tmp_path / "codecs" / "__init__.py" == Path(spec_of_codecs(tmp_path))


def test_modules_and_functions_stay_short() -> None:
    """A module has at most 400 lines and a function at most 50."""
    sources = {path.relative_to(ROOT): path.read_text(encoding="utf-8") for path in modules()}

    assert sources
    assert [] == [f"{path}" for path, text in sources.items() if len(text.splitlines()) > MODULE_LINES]
    assert [] == [f"{path}: {name}" for path, text in sources.items() for name in long_functions(text)]


def test_the_check_of_short_functions_can_fail() -> None:
    """A function of exactly the ceiling passes; one line more, and it is named, be it async or a method."""
    body = "\n" + "    x = 0\n" * (FUNCTION_LINES - 1)
    assert [] == long_functions(f"def fits():{body}")
    assert ["long"] == long_functions(f"def long():{body}    x = 1\n")
    assert ["late"] == long_functions(f"async def late():{body}    x = 1\n")
    assert ["inner"] == long_functions("class C:\n    def inner(self):\n" + "        x = 0\n" * FUNCTION_LINES)


# --- what prose names -----------------------------------------------------------------------------------------------

PROSE = (
    "*.md",
    "docs/**/*.md",
    *(f"{root}/**/*.py" for root in ("ilcp", "codecs", "benchmarks", "examples", "fuzz", "tests")),
)
OURS = re.compile(r"~?(ilcp(?:_codecs)?(?:\.\w+)+)(?:\(.*\))?")
MEMBER = re.compile(r"~?([A-Z]\w*)\.(\w+)(?:\(.*\))?")
FILE = re.compile(r"(?:ilcp|codecs|tests|benchmarks|examples|fuzz|docs)/[\w./-]+\.(?:py|md|toml|json)")
# A report that a script writes where nobody has kept one, and names that belong to others.
NOT_OURS = re.compile(r"benchmarks/results/.*|" + re.escape("ilcp.codecs"))


def quoted(text: str) -> list[tuple[str, str]]:
    """Each pair of backticks, single or double, outside of a fenced block: the mark, and what stands between."""
    return re.findall(r"(?<!`)(`{1,2})(?!`)([^`\n]+)\1(?!`)", re.sub(r"^```.*?^```", "", text, flags=re.S | re.M))


def classes_of() -> dict[str, list[tuple[str, ast.ClassDef]]]:
    """Every class of the two packages by name, with its module."""
    found: dict[str, list[tuple[str, ast.ClassDef]]] = {}
    for path in modules():
        module = ".".join(path.relative_to(CODECS if CODECS in path.parents else ROOT).with_suffix("").parts)
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name, []).append((module.removesuffix(".__init__"), node))
    return found


def has_member(owner: Any, name: str, node: ast.ClassDef | None = None) -> bool:
    """Whether a module or a class has the attribute, be it one that only its instances have."""
    fields = {field for kind in getattr(owner, "__mro__", ()) for field in vars(kind).get("__annotations__", ())}
    stored = (n for n in ast.walk(node or ast.Pass()) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store))
    own = {n.attr for n in stored if isinstance(n.value, ast.Name) and n.value.id == "self"}
    return hasattr(owner, name) or name in fields or name in own


def resolves(dotted: str) -> bool:
    """Whether a dotted name leads to a module of ours, or to something in one."""
    parts = dotted.split(".")
    for place in range(len(parts), 0, -1):
        try:
            owner: Any = import_module(".".join(parts[:place]))
        except ModuleNotFoundError:
            continue
        for name in parts[place:-1]:
            owner = getattr(owner, name, None)
        return place == len(parts) or has_member(owner, parts[-1])
    return False


def stale(text: str, classes: dict[str, list[tuple[str, ast.ClassDef]]]) -> list[str]:
    """The names of ours between a text's backticks that lead nowhere: modules, their names, members, files."""
    found = []
    for _, name in quoted(text):
        if NOT_OURS.fullmatch(name):
            continue
        if match := OURS.fullmatch(name):
            good = resolves(match[1])
        elif FILE.fullmatch(name):
            good = (ROOT / name).exists()
        elif (match := MEMBER.fullmatch(name)) and match[1] in classes:
            known = [(getattr(import_module(module), match[1]), node) for module, node in classes[match[1]]]
            good = any(has_member(owner, match[2], node) for owner, node in known)
        else:
            continue
        found += [] if good else [name]
    return found


def test_prose_names_nothing_that_is_gone() -> None:
    """Docstrings, comments and documents: a module, a member or a file of ours between backticks is there."""
    classes = classes_of()
    files = sorted(
        {path for pattern in PROSE for path in ROOT.glob(pattern)} - {Path(__file__).resolve(), ROOT / "CHANGELOG.md"}
    )
    found = {str(path.relative_to(ROOT)): stale(path.read_text(encoding="utf-8"), classes) for path in files}

    assert "README.md" in found
    assert {} == {path: names for path, names in found.items() if names}


@pytest.mark.parametrize(
    "name",
    ["ilcp.gone", "ilcp.message.gone", "ilcp.Sender.gone", "ilcp_codecs.gone", "Sender.gone(x)", "ilcp/gone.py"],
)
def test_the_check_of_prose_can_fail(name: str) -> None:
    """A name that leads nowhere is found in a docstring, a comment and a document."""
    classes = classes_of()
    for text in (f'"""See ``{name}``."""', f"x = 1  # as `{name}` does", f"- `{name}` and `{name}`"):
        assert {name} == set(stale(text, classes))


@pytest.mark.parametrize(
    "name",
    [
        "ilcp",
        "ilcp.message",
        "ilcp.Sender.encode",
        "ilcp.Sender(model, tokenizer, codec)",
        "ilcp.codec.spec.CodecSpec",
        "CodecSpec.payload_bytes",  # a field
        "FullError.retry_after_s",  # an attribute of the instances
        "ilcp/errors.py",
        "torch.gone",
        "Tensor.gone",
        "ilcp measure",
        "ilcp.codecs",  # the group of entry points
    ],
)
def test_the_check_of_prose_spares_what_is_there_and_what_is_not_ours(name: str) -> None:
    """Modules, lazy names, calls, fields, attributes and files of ours resolve; other packages' are not looked up."""
    assert [] == stale(f"``{name}``\n```python\n`ilcp.gone`\n```\n", classes_of())


def test_the_group_of_entry_points_is_named_rightly() -> None:
    """``ilcp.codecs``, which prose may name, is no module but the door that codecs come through."""
    assert entry_points(group="ilcp.codecs")
