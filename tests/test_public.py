"""The public names: what comes or goes is seen.

``tests/public_names.txt`` lists them. After a change that is meant: ``python -m tests.test_public``.
"""

from importlib import import_module
from pathlib import Path

import ilcp
from tests.helpers import run_python

NAMES = Path(__file__).with_name("public_names.txt")
MODULES = (
    "ilcp",
    "ilcp.assurance",
    "ilcp.audit",
    "ilcp.codec",
    "ilcp.embedded",
    "ilcp.errors",
    "ilcp.handoff",
    "ilcp.measure",
    "ilcp.message",
    "ilcp.tasks",
    "ilcp.testing",
    "ilcp.training",
    "ilcp.transport",
    "ilcp_codecs.text",
    "ilcp_codecs.vae",
)


def public_names() -> list[str]:
    """Every public name with its module, in order."""
    return sorted(f"{module}.{name}" for module in MODULES for name in import_module(module).__all__)


def test_the_public_names_are_those_listed() -> None:
    """A name that comes, goes or changes shows here, and nowhere twice."""
    listed, found = NAMES.read_text(encoding="utf-8").splitlines(), public_names()
    assert len(found) == len(set(found))
    assert {"gone": [], "new": []} == {
        "gone": sorted(set(listed) - set(found)),
        "new": sorted(set(found) - set(listed)),
    }, "if that is meant: python -m tests.test_public"
    assert listed == sorted(listed)


def test_a_shell_completes_the_public_names() -> None:
    """Also those that are loaded late."""
    assert set(ilcp.__all__) <= set(dir(ilcp))


def test_every_public_name_is_there() -> None:
    """What an ``__all__`` lists can be had, also where it is loaded late."""
    for module in MODULES:
        for name in import_module(module).__all__:
            assert getattr(import_module(module), name) is not None, f"{module}.{name}"


def test_rooms_and_names_are_reachable_after_a_plain_import() -> None:
    """``import ilcp`` is enough for each name of ``ilcp``, and for the rooms that the documentation names."""
    rooms = ["assurance", "measure", "message", "tasks", "training", "transport"]
    code = f"import ilcp\nfor name in {[*rooms, *ilcp.__all__]!r}: getattr(ilcp, name)"
    done = run_python("-c", code)
    assert 0 == done.returncode, done.stderr


if __name__ == "__main__":
    NAMES.write_text("\n".join(public_names()) + "\n", encoding="utf-8")
