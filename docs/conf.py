"""How Sphinx builds these pages: ``make docs`` writes them to build/docs, offline, and every warning is an error."""

import importlib.util
import re
from importlib import metadata
from itertools import takewhile
from typing import Any

from docutils import nodes

project = "ilcp"
author = "the ilcp authors"
release = version = metadata.version("ilcp")
language = "en"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3  # [text](page.md#a-heading) is checked

html_theme = "furo"
html_title = f"ilcp {release}"
html_copy_source = False
html_show_copyright = False

# The docstrings are written as Google's: "Args:", "Raises:". A single backtick is code, as in Markdown.
napoleon_numpy_docstring = False
napoleon_use_rtype = False
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
maximum_signature_line_length = 88
autodoc_default_options = {"members": True, "exclude-members": "__init__, __new__"}

# The specification is one page, and the reference another: the docstring of ilcp.message stands on the first only.
SPECIFIED = "ilcp.message"

LISTING = ".. code-block:: text"  # a bare "::" would be coloured as Python
LIST = re.compile(r"(-|\d+\.) ")
UNBROKEN = re.compile(r"\[-?[\d.]+, -?[\d.]+\]|n = \d+|\d B\b")  # in a cell of a table
NUMBER = re.compile(r" \d\. ")


def setup(app: Any) -> None:
    """Registers what makes docstrings written for a terminal readable as reStructuredText; it runs before napoleon."""
    app.connect("autodoc-process-docstring", as_restructured_text, priority=400)
    app.connect("source-read", without_what_is_not_installed)
    app.connect("doctree-read", with_intervals_whole)


def without_what_is_not_installed(app: Any, page: str, source: list[str]) -> None:
    """Empties the page of ``ilcp.testing`` where Hypothesis, which it needs, is not installed."""
    if page == "reference/testing" and not importlib.util.find_spec("ilcp.testing"):
        source[0] = source[0].partition("```")[0] + "Not installed here: `pip install -e '.[testing]'`.\n"


def with_intervals_whole(app: Any, doctree: nodes.document) -> None:
    """Keeps an interval in a table's cell on one line: ``0.938 [0.920, 0.955]`` breaks before its bracket only."""
    for entry in doctree.findall(nodes.entry):
        for text in list(entry.findall(nodes.Text)):
            text.parent.replace(text, nodes.Text(UNBROKEN.sub(lambda found: found[0].replace(" ", "\N{NBSP}"), text)))


def as_restructured_text(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Marks what a reader sees and a parser does not: indented blocks are listings, and lists stand by themselves."""
    if name == SPECIFIED and app.env.current_document.docname.startswith("reference"):
        lines[:] = ["The wire format: :doc:`/specification`.", ""]
    elif lines and lines[0].startswith("Alias for field number"):  # what Python says of a NamedTuple's fields
        lines.clear()
    else:
        lines[:] = with_lists_apart(with_listings_marked(with_numbers_aligned(lines)))


def with_numbers_aligned(lines: list[str]) -> list[str]:
    """Moves a list whose numbers are set flush right (`` 1.`` over ``10.``) to the margin."""
    made, flush = [], None
    for line in lines:
        flush = NUMBER.match(line) or (flush and line.startswith("    "))
        made.append(line[1:] if flush else line)
    return made


def with_listings_marked(lines: list[str]) -> list[str]:
    """Makes a literal block of what is indented behind an empty line, unless it is a doctest or of a list."""
    made: list[str] = []
    for line in lines:
        said = [each for each in made if each.strip()]
        if made and not made[-1].strip() and line.strip() and said and _indent(line) > _indent(said[-1]):
            within = _in_list([*takewhile(str.strip, made[::-1][1:])][::-1])
            if not (said[-1] == LISTING or said[-1].endswith("::") or line.lstrip().startswith(">>>") or within):
                made += [LISTING, ""]
        made.append(LISTING if line == "::" else line)
    return made


def with_lists_apart(lines: list[str]) -> list[str]:
    """Puts an empty line before a list that follows a sentence at once, and one behind it."""
    made: list[str] = []
    for line in lines:
        if line.strip() and not _indent(line) and made and made[-1].strip() and _in_list(made) != _is_list(line):
            made.append("")
        made.append(line)
    return [*made, ""]


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _is_list(line: str) -> bool:
    return LIST.match(line) is not None


def _in_list(lines: list[str]) -> bool:
    """Whether the last paragraph of ``lines`` has an item of a list in it."""
    return any(map(_is_list, takewhile(str.strip, reversed(lines))))
