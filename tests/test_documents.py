"""What the documents say is what the code does: examples run, tables equal their results."""

import contextlib
import doctest
import importlib
import importlib.util
import json
import re
import shlex
import sys
import tomllib
from itertools import takewhile
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest
import typer

import ilcp
from ilcp.cli import app
from ilcp.measure import load_report
from tests.helpers import ROOT, load_script, run_python

README = ROOT / "README.md"
PAGES = (README, *sorted((ROOT / "docs").rglob("*.md")))
SHELL = ("export", ".", "cd")  # commands of the shell itself
GROUPS = ("ilcp.codecs",)  # of entry points: neither a module nor a name in one
DOCTESTED = (
    "ilcp",
    "ilcp.audit.recorder",
    "ilcp.message.keys",
    "ilcp.message.literals",
    "ilcp.measure",
    "ilcp.codec.memory",
    "ilcp.message",
    "ilcp.tasks",
    "ilcp.transport",
    "ilcp.transport.capabilities",
)
WITHOUT_MODELS = ("audit-page", "faults", "fuzz", "load", "wire", "wire-encryption")


def name_of(page: Path) -> str:
    """A page's path in the repository."""
    return str(page.relative_to(ROOT))


def fences(page: Path) -> list[tuple[str, str, str]]:
    """The fenced blocks of a page: language, the last line before it that is not empty, and what stands in it."""
    found, before, lines = [], "", iter(page.read_text(encoding="utf-8").splitlines())
    for line in lines:
        if line.startswith("```"):
            found.append((line[3:], before, "".join(f"{each}\n" for each in takewhile("```".__ne__, lines))))
            line = "```"
        before = line or before
    return found


def check_command(words: list[str]) -> None:
    """Refuses a command line of ours that names a command, option, target, file or extra that is not there."""
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    if not words or words[0] in SHELL:
        return
    if "-m" in words and "ilcp" in words:
        words = words[words.index("ilcp") :]
    if words[0] == "ilcp":
        check_ilcp(words[1:])
    elif words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE), words
    elif words[0] == "pip":
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        for extra in re.findall(r"\[([\w,]+)\]", " ".join(words)):
            assert set(extra.split(",")) <= set(project["optional-dependencies"]), words
    else:
        assert words[0] == "python", words
        assert words[1] == "-c" or (ROOT / words[1]).is_file(), words


def check_ilcp(words: list[str]) -> None:
    """Refuses a subcommand, or an option of it, that ilcp does not have."""
    group: Any = typer.main.get_command(app)
    said = "ilcp"
    while hasattr(group, "commands"):
        assert words[0] in group.commands, f"{said} has no command {words[0]}"
        group, said, words = group.commands[words[0]], f"{said} {words[0]}", words[1:]
    known = {option for parameter in group.params for option in parameter.opts}
    asked = {word for word in words if word.startswith("--")}
    assert asked <= known, f"{said} has no {', '.join(sorted(asked - known))}"


def exists(name: str) -> bool:
    """Whether a dotted name is a module or an attribute reachable from one."""
    found: object = importlib.import_module("ilcp")
    at = "ilcp"
    for part in name.split(".")[1:]:
        at = f"{at}.{part}"
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module(at)
        if not hasattr(found, part):
            return False
        found = getattr(found, part)
    return True


@pytest.mark.parametrize("name", DOCTESTED)
def test_docstring_examples_run(name: str) -> None:
    """The examples in a module's docstring give what they say, and there is at least one."""
    found = doctest.testmod(importlib.import_module(name))
    assert 0 == found.failed
    assert found.attempted > 0


def test_the_readme_example_runs() -> None:
    """The README's first Python block runs as it stands, alone, and prints what its last comment says."""
    block = next(code for language, _, code in fences(README) if language == "python")
    done = run_python("-c", block)
    assert 0 == done.returncode, done.stderr
    assert block.rpartition("# ")[2] == done.stdout
    assert "100 Brno unknown" == done.stdout.strip()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_python_of_a_page_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A page's Python blocks run one after the other, those of the README each alone, and print what the text block
    behind each of them says. What a page hides makes files, and gives the blocks no name."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for hidden in re.findall(r"<!-- before:\n(.*?)-->", page.read_text(encoding="utf-8"), re.DOTALL):
        exec(hidden, {})
    blocks = fences(page)
    for index, (language, before, code) in enumerate(blocks):
        if language != "python":
            continue
        compile(code, f"{name_of(page)}, block {index}", "exec")
        if before.startswith("<!-- not run: ") or code.startswith("# not run by the tests: "):
            continue
        capsys.readouterr()
        exec(code, {} if page == README else names)
        said = capsys.readouterr().out
        follows = blocks[index + 1][:2] if index + 1 < len(blocks) else ("", "")
        if follows == ("text", "```"):
            assert blocks[index + 1][2] == said


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_commands_of_a_page_exist(page: Path) -> None:
    """Every command in a page's shell blocks exists, with each option that is shown, and so do files and targets."""
    for language, _, code in fences(page):
        for line in code.replace("\\\n", " ").splitlines() if language == "sh" else ():
            check_command(shlex.split(line, comments=True))


def test_a_wrong_command_is_noticed() -> None:
    """The check of commands can fail: an unknown command, option, target, file and extra are refused."""
    for line in (
        "ilcp guess FILE",
        "ilcp train --sendr A",
        "make tea",
        "ilcp audit tea",
        "ilcp audit log L --tea",
        "python examples/none.py",
        "pip install -e '.[tea]'",
        "accelerate launch -m ilcp train --recipes R",
    ):
        with pytest.raises(AssertionError):
            check_command(shlex.split(line))


def test_the_names_of_the_pages_exist() -> None:
    """Every dotted name of ilcp in a page is a module, or an attribute of one: none is stale."""
    for page in PAGES:
        for name in sorted(set(re.findall(r"`(ilcp(?:\.[A-Za-z_]\w*)+)", page.read_text(encoding="utf-8")))):
            assert exists(name) or name in GROUPS, f"{name_of(page)} names {name}, which does not exist"
    assert not exists("ilcp.measure.thin")


def test_what_pages_name_is_reachable_after_import_ilcp() -> None:
    """A dotted name of a page works as it stands behind ``import ilcp``, without an import of the room it is in."""
    named = {
        name
        for page in PAGES
        for name in re.findall(r"\b(ilcp(?:\.[A-Za-z_]\w*)+)\b", page.read_text(encoding="utf-8"))
        if name not in GROUPS and not name.endswith(".md")
    }
    code = f"import ilcp, functools\nfor n in {sorted(named)}: functools.reduce(getattr, n.split('.')[1:], ilcp)"
    done = run_python("-c", code)
    assert 0 == done.returncode, done.stderr


def test_an_old_python_is_told_before_an_environment_is_made() -> None:
    """``make demo`` under Python 3.10 says in one line which Python it takes, and how to name one."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    code = text.partition("define NEW_ENOUGH\nimport sys; ")[2].partition("\nendef")[0]
    assert 2 == text.count("@$(PYTHON) -c '$(NEW_ENOUGH)'\n\t$(PYTHON) -m venv")
    for version, said in (((3, 10, 4), "expected Python 3.11 or newer, got 3.10: make PYTHON="), ((3, 11, 0), "")):
        with pytest.raises(SystemExit) as ended:
            exec(code, {"sys": SimpleNamespace(version_info=version, exit=sys.exit)})
        assert said in str(ended.value.code or "")


def test_the_files_that_pages_name_exist() -> None:
    """Every path into examples/, benchmarks/, tests/ or docs/ that a page names leads to something, or is made."""
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    made = tuple(line.strip("/") for line in ignored if line.startswith("/"))
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for path in re.findall(r"[`(]((?:examples|benchmarks|tests|docs)/[\w./-]*)", text):
            assert path.startswith(made) or (ROOT / path).exists(), (
                f"{name_of(page)} names {path}, which does not exist"
            )


def test_the_readme_is_short_and_names_its_commands() -> None:
    """The front page has 120 to 150 lines, and says how to see a hand-off and how to run the tests."""
    text = README.read_text(encoding="utf-8")
    assert 120 <= len(text.splitlines()) <= 150
    assert "make demo " in text
    assert "make test " in text


def test_the_readme_says_of_text_what_was_measured() -> None:
    """The figures in the README's own sentences are those of the committed results, as its tables are."""
    made = json.loads((ROOT / "benchmarks/results/embedded.json").read_text(encoding="utf-8"))["figures"]
    text = " ".join(README.read_text(encoding="utf-8").split())
    cost = made["cost"]
    assert f"recovers {made['arms']['lm-80']['all']['recovery, exact']['value']:.3f} of what" in text
    assert f"takes {cost['first token, message, encode and wire / text']['value']:.2f} times as long" in text
    assert f"from about {cost['the message pays, encode and wire counted in']['value']:.0f} tokens on" in text
    coded = made["bytes"]["lm-80"]["wire"]["value"] - (made["bytes"]["message"]["wire"]["value"] - 80)
    assert f"takes about {round(coded, -1):.0f}" in text


def test_the_pages_say_of_conversations_what_was_measured() -> None:
    """Figures in the sentences of the README, of the index and of the tutorial are those of the committed results."""
    name = "benchmarks/results/conversations-smollm2-smollm2.json"
    one, four = (json.loads((ROOT / name).read_text(encoding="utf-8"))["histories"][size] for size in ("1", "4"))
    ahead = [
        found["differences"][pair]["said, all services"]["exact"]["value"]
        for found, pair in ((one, "message-20 - lm-20"), (four, "message-80 - lm-80"))
    ]
    first, sizes = one["figures"]["cost"]["first token, message, encode and wire / text"], one["figures"]["bytes"]
    wire = [f"{sizes[arm]['wire']['value']:,.0f}" for arm in ("message", "text")]
    for page in (README, ROOT / "docs/index.md"):
        text = " ".join(page.read_text(encoding="utf-8").split())
        assert f"after {first['value']:.3f} of the time" in text
        assert f"takes {wire[0]} bytes on the wire at 80 bytes of payload, and its text {wire[1]}" in text
    assert "by {:.3f} and {:.3f};".format(*ahead) in " ".join(README.read_text(encoding="utf-8").split())
    arms = {arm: kinds["all"]["exact"]["value"] for arm, kinds in one["figures"]["arms"].items()}
    told = " ".join((ROOT / "docs/tutorial.md").read_text(encoding="utf-8").split())
    assert "tells {:.3f} of all questions right".format(arms["message"]) in told
    assert "nothing ({:.3f}) and the full text ({:.3f})".format(arms["none"], arms["text"]) in told
    assert "({:.3f} against {:.3f})".format(arms["message-20"], arms["lm-20"]) in told


def script_of_docs(name: str) -> Any:
    """A Python file of docs/, which is no package, as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def test_docstrings_become_restructured_text() -> None:
    """What is indented in a docstring becomes a listing, lists stand apart, and a list's numbers come to the margin."""
    pytest.importorskip("docutils")
    conf = script_of_docs("conf")
    written = "A table:\n\n    part   bytes\n\nIt shows\n- this,\n  and\n- that.\nThen\n 9. one\n    more\n10. two"
    made = (
        "A table:\n\n.. code-block:: text\n\n    part   bytes\n\nIt shows\n\n- this,\n  and\n- that.\n\n"
        "Then\n\n9. one\n   more\n10. two\n"
    )
    app = SimpleNamespace(env=SimpleNamespace(current_document=SimpleNamespace(docname="index")))
    for text in (written, made.rstrip()):  # what is marked already stays as it is
        lines = text.split("\n")
        conf.as_restructured_text(app, "module", "ilcp.message", None, None, lines)
        assert made == "\n".join(lines)


def test_the_picture_is_what_its_script_draws() -> None:
    """The committed picture equals what docs/draw_hop.py draws from a message written now, and is well-formed."""
    script = script_of_docs("draw_hop")
    assert script.draw() == script.FILE.read_text(encoding="utf-8")
    assert "svg" in ElementTree.fromstring(script.draw()).tag
    assert 100 == sum(script.field_sizes().values())


def test_two_processes_hand_on(tmp_path: Path) -> None:
    """The two blocks of "Send messages", each in a process of its own: the receiver answers, and nothing is left."""
    page = (ROOT / "docs" / "how-to" / "transport.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(# the (?:receiver|sender)'s process\n.*?)```", page, re.DOTALL)
    receiver, sender = (block.replace("spool:///tmp/handoffs", f"spool://{tmp_path}") for block in blocks)
    said = []
    for block in (sender, receiver):
        done = run_python("-c", block)
        assert 0 == done.returncode, done.stderr
        said.append(done.stdout.strip())
    assert ["", "Brno"] == said
    with ilcp.connect(f"spool://{tmp_path}", name="planner") as c:
        assert c.receive() is None


def test_tables_equal_their_results() -> None:
    """No figure in a table differs from the committed JSON it was made from."""
    done = run_python("benchmarks/tables.py", "--check", cwd=ROOT)
    assert 0 == done.returncode, done.stderr


def test_pictures_are_drawn_from_their_results(monkeypatch) -> None:
    """What stands in the pages is what the script makes of the committed figures; another figure, another picture."""
    pictures = load_script("pictures")
    made = {name: draw() for name, draw in pictures.DRAWN.items()}
    assert {f"{name}.svg" for name in made} == {file.name for file in pictures.IMAGES.iterdir()} - {"hop.svg"}
    for name, drawn in made.items():
        assert f"{drawn}\n" == (pictures.IMAGES / f"{name}.svg").read_text(encoding="utf-8")
    monkeypatch.setattr(pictures, "EVERY", "said, new services")
    assert made["conversations"] != pictures.conversations()


@pytest.mark.parametrize("file", sorted((ROOT / "benchmarks" / "results").glob("*.json")), ids=lambda file: file.name)
def test_results_say_where_they_come_from(file: Path) -> None:
    """Every committed result names seed, commit, versions, machine, command and the models' identities."""
    record = json.loads(file.read_text(encoding="utf-8"))
    assert isinstance(record["seed"], int)
    assert record["provenance"]["models"] or file.stem in WITHOUT_MODELS
    if "verdict" in record:
        assert load_report(file).complete  # makes every figure anew, and refuses one that does not follow
    assert {"commit", "versions", "machine", "command", "models"} <= set(record["provenance"])


def test_a_changed_table_is_noticed(tmp_path: Path) -> None:
    """The check can fail: one digit changed in a table makes the page differ from its results."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        tables = importlib.import_module("tables")
    finally:
        sys.path.pop(0)
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    names = ("figures", "cost")
    assert page == tables.render(page, names)
    cell = re.search(r"\| content gain, all questions \| (\S+)", page)
    assert cell is not None
    changed = page.replace(cell.group(1), "9.999", 1)
    assert changed != tables.render(changed, names)
