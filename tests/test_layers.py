"""The layers: what may import what, where files may lie, how long a module and a function may be.

Each proof stands beside a test that the proof can fail.
"""

import ast
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CORE = ROOT / "ilcp"
CODECS = ROOT / "codecs"

TORCH_FREE = (
    "ilcp",
    "ilcp.cli",
    "ilcp.errors",
    "ilcp.message.keys",
    "ilcp.message.literals",
    "ilcp.message",
    "ilcp.message.replay",
    "ilcp.tasks",
    "ilcp.transport",
)
HEAVY = frozenset({"torch", "transformers"})

MODULE_LINES = 400
FUNCTION_LINES = 60

# A whole string that names the package, one of its modules, or an entry point in one; prose does not match.
CODECS_NAME = re.compile(r"ilcp_codecs([.:][\w.:]*)?")


def loaded_after(statement: str) -> set[str]:
    """The names of all modules that a fresh interpreter has loaded once it has run the statement."""
    code = f"{statement}\nimport sys\nprint(*sys.modules, sep='\\n')"
    # Isolated: neither the working folder nor PYTHONPATH may lend a module to the proof.
    run = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=False, timeout=120)
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
    run = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    return run.stdout.strip()


def modules() -> list[Path]:
    """Every Python file of the two packages."""
    return sorted([*CORE.rglob("*.py"), *CODECS.rglob("*.py")])


@pytest.mark.parametrize("name", TORCH_FREE)
def test_a_torch_free_room_stays_torch_free(name: str) -> None:
    """A gateway or an auditor can import these modules where neither torch nor transformers is loaded."""
    loaded = loaded_after(f"import {name}")

    assert name in loaded
    assert set() == loaded & HEAVY


def test_the_proof_of_a_torch_free_room_can_fail() -> None:
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
def test_the_proof_of_the_arrow_can_fail(source: str) -> None:
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
def test_the_proof_of_the_arrow_spares_prose_and_other_names(source: str) -> None:
    """A docstring may speak of ilcp_codecs, and a name that only begins like it is another name."""
    assert [] == codecs_named(source)


def test_the_codecs_folder_is_a_bare_root() -> None:
    """codecs/ holds packages only: a file beside them would shadow the standard module, a test would replace it."""
    assert [] == list(strays(CODECS))


@pytest.mark.parametrize("name", ["__init__.py", "__init__.pyi", "vae.py", "pkg/test_vae.py", "pkg/conftest.py"])
def test_the_proof_of_a_bare_root_can_fail(name: str, tmp_path: Path) -> None:
    """A module, a stub or a test that gets below codecs/ is found."""
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg" / "__init__.py").touch()
    assert [] == list(strays(tmp_path))

    (tmp_path / name).touch()

    assert [tmp_path / name] == list(strays(tmp_path))


def test_import_codecs_gives_the_standard_module() -> None:
    """With the repository first on the path, `import codecs` still finds the standard library's file."""
    assert Path(sysconfig.get_path("stdlib")) / "codecs.py" == Path(spec_of_codecs(ROOT))


def test_the_proof_of_the_standard_module_can_fail(tmp_path: Path) -> None:
    """One __init__.py in a codecs/ folder is enough to take the standard module's place, and is seen."""
    (tmp_path / "codecs").mkdir()
    (tmp_path / "codecs" / "__init__.py").touch()

    assert tmp_path / "codecs" / "__init__.py" == Path(spec_of_codecs(tmp_path))


def test_modules_and_functions_stay_short() -> None:
    """A module has at most 400 lines and a function at most 60."""
    sources = {path.relative_to(ROOT): path.read_text(encoding="utf-8") for path in modules()}

    assert sources
    assert [] == [f"{path}" for path, text in sources.items() if len(text.splitlines()) > MODULE_LINES]
    assert [] == [f"{path}: {name}" for path, text in sources.items() for name in long_functions(text)]


def test_the_proof_of_short_functions_can_fail() -> None:
    """A function of exactly the ceiling passes; one line more, and it is named, be it async or a method."""
    body = "\n" + "    x = 0\n" * (FUNCTION_LINES - 1)
    assert [] == long_functions(f"def fits():{body}")
    assert ["long"] == long_functions(f"def long():{body}    x = 1\n")
    assert ["late"] == long_functions(f"async def late():{body}    x = 1\n")
    assert ["inner"] == long_functions("class C:\n    def inner(self):\n" + "        x = 0\n" * FUNCTION_LINES)
