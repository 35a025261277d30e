"""What people see of a report: its plots, its page, its tables."""

import io
import math
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from typing import Any, ClassVar

import numpy as np
import pytest
from markupsafe import escape
from PIL import Image
from rich.console import Console

from ilcp.cli import main
from ilcp.cli.measure import _show
from ilcp.errors import MissingExtraError, StorageError
from ilcp.measure.compare import compare
from ilcp.measure.cost import CACHED, POINT_STEPS, PROMPTS, STEPS, Cost, Point
from ilcp.measure.drawing import sheet
from ilcp.measure.figures import Citation, Computed, Measured
from ilcp.measure.files import save_report
from ilcp.measure.items import Arm, Items
from ilcp.measure.page import page
from ilcp.measure.plots import plots, save_plots
from ilcp.measure.report import Report
from ilcp.measure.table import show, show_comparison, shown
from tests.helpers import present

KINDS = ("lookup", "join", "absent", "code")
DOCUMENTS, QUESTIONS = 12, 8
LENGTHS = (80, 40, 20, 10)
OVERHEAD = 20  # bytes of an envelope


def make_items(kinds: tuple[str, ...] = KINDS) -> Items:
    """Eight questions about each of twelve documents, the kinds in turn."""
    n = DOCUMENTS * QUESTIONS
    return Items(
        cases=tuple(f"case {number}" for number in range(DOCUMENTS)),
        entropy_bits=(140.0,) * DOCUMENTS,
        documents=tuple(number // QUESTIONS for number in range(n)),
        kinds=tuple(kinds[number % len(kinds)] for number in range(n)),
        questions=tuple(f"question {number}?" for number in range(n)),
        golds=tuple(f"gold {number}" for number in range(n)),
        worth_bits=(5.0,) * n,
        stands_for=(1.0,) * n,
    )


def make_arm(
    name: str, family: str, skill: float, payload: int = 0, *, answers_end: bool = True, rival: str | None = None
):
    """An arm that answers a share of about ``skill`` of the questions."""
    rng = np.random.default_rng([*name.encode()])
    right = rng.random(DOCUMENTS * QUESTIONS) < skill
    nats = np.round(-3.5 * (1 - skill) * rng.random(len(right)) - 0.1 * rng.random(len(right)), 4).tolist()
    sizes = (rng.integers(payload - payload // 20, payload + 1, DOCUMENTS)).tolist() if payload else []
    return Arm(
        name=name,
        family=family,
        answers=tuple(None if found else "gold or not" for found in right) if answers_end else (),
        nats=tuple(nats),
        new_nats=tuple(nats),
        payload_bytes=tuple(sizes),
        wire_bytes=tuple(size + OVERHEAD for size in sizes),
        rival_of=rival,
    )


def make_arms(answers_end: bool, hops: int, only: tuple[str, ...] = ()) -> dict[str, Arm]:
    """Every arm of a run, or those named, as good as in a run of the embedded pair."""
    told: list[tuple[str, str, float, int, str | None]] = [("text", "text", 0.93, 1100, None)]
    told.append(("none", "control", 0.12, 0, None))
    for length, skill in zip(LENGTHS, (0.78, 0.6, 0.42, 0.3), strict=True):
        name = "message" if length == LENGTHS[0] else f"message-{length}"
        told.append((name, "message", skill, length, None))
        for text, worth in {"head": 0.24, "tail": 0.2, "zstd": 0.26, "lm": 0.4}.items():
            told.append((f"{text}-{length}", "text of equal bytes", worth * skill + 0.1, length, name))
        told.append((f"oracle-{length}", "limit", min(1.0, 0.2 + length / 40), length, None))
    told += [(name, "control", 0.12, LENGTHS[0], None) for name in ("mismatched", "zero", "random")]
    told += [("continuous", "limit", 0.83, 0, None), ("index", "limit", 0.95, 1, None)]
    for hop in range(1, hops + 1):
        told += [
            (f"forwarded-{hop}", "hops", 0.78, 80, None),
            (f"reencoded-{hop}", "hops", 0.85 - 0.15 * hop, 80, None),
        ]
        told += [(f"{text}-hops-{hop}", "hops", 0.36 - 0.05 * hop, 80, None) for text in ("head", "tail", "zstd", "lm")]
    return {
        name: make_arm(name, family, skill, payload, answers_end=answers_end, rival=rival)
        for name, family, skill, payload, rival in told
        if not only or name in only
    }


def make_cost() -> Cost:
    """Times as of two small models."""
    rng = np.random.default_rng(5)

    def samples(steps: dict[str, float], n: int) -> dict[str, tuple[float, ...]]:
        return {step: tuple((median * rng.gamma(40, 1 / 40, n)).tolist()) for step, median in sorted(steps.items())}

    lengths = (32, 64, 128, 256, 512)
    per_point = [
        {"text": 4 + 0.03 * tokens, "message": 6.5, "encode": 2 + 0.002 * tokens, "wire out": 0.02}
        for tokens in lengths
    ]
    assert POINT_STEPS == set(per_point[0])
    return Cost(
        question="Who reported it?",
        threads=1,
        processor_share=0.99,
        reads="states",
        samples=samples({step: 9.0 if "text" in step else 5.0 for step in STEPS}, 60),
        tokens={prompt: (300 if prompt == "text" else 40,) * 60 for prompt in PROMPTS},
        points=tuple(Point(tokens, samples(steps, 20)) for tokens, steps in zip(lengths, per_point, strict=True)),
        sizes={"weights": 1_000_000, "layers": 4, "width": 128, "head": 200_000},
        flops={
            "text": 600_000_000,
            "message": 90_000_000,
            "codec encodes": 40_000_000,
            "codec decodes": 8_000_000,
            "text tokens": 300,
            "message tokens": 40,
        },
        parts={"payload": 80, "codec id": 8, "envelope": 8, "check": 4},
        kv_token=Computed(
            4096, "B", "2 * layers * kv_heads * head_dim * 4", {"layers": 4, "kv_heads": 4, "head_dim": 32}
        ),
        skipped={CACHED: "expected past_key_values, got none"},
    )


def make_report(*, answers_end: bool = True, hops: int = 3, with_cost: bool = True, **changed) -> Report:
    """A finished report; ``changed`` fields stand in the place of its own."""
    fields: dict[str, Any] = dict(
        task="dossier test",
        seed=11,
        answers_end=answers_end,
        codec={"codec_id": "7e393733c843e2b8", "name": "vae", "payload_bytes": 80, "prefixes": [10, 20, 40, 80]},
        items=make_items(),
        arms=make_arms(answers_end, hops),
        provenance={
            "commit": "0123456789ab+",
            "versions": {"ilcp": "0.1.0", "torch": "2.13.0"},
            "python": "3.11.9",
            "machine": "Linux x86_64, 2 x Some Processor",
            "command": "ilcp bench --html page.html",
            "models": {"sender": {"name": "small sender", "weights": "ab" * 8}, "receiver": {"name": "small receiver"}},
        },
        cost=make_cost() if with_cost else None,
        notes=("other-80: not measured, the codec refuses it (expected more)",),
        footnotes=(Citation("Prompts of 500 tokens fit into one vector.", "arXiv:2502.13063", "Llama-3.1-8B"),),
    )
    return Report(**(fields | changed))


def names_of(text: str) -> list[str]:
    """The tags of a page; it fails where one is not answers_end in its turn."""
    parser = Tags()
    parser.feed(text)
    parser.close()
    assert [] == parser.still_open
    return parser.names


class Tags(HTMLParser):
    """Reads tags, and compares each end with what is open."""

    VOID: ClassVar = {"meta", "br", "img"}

    def __init__(self) -> None:
        super().__init__()
        self.still_open: list[str] = []
        self.names: list[str] = []
        self.values: list[tuple[str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.values += [(name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self.still_open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.values += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.still_open.pop() == tag


@pytest.fixture(scope="module")
def report() -> Report:
    """A finished report with everything in it."""
    return make_report()


@pytest.fixture(scope="module")
def shown_page(report) -> str:
    """Its page."""
    return page(report)


def drawn_by(figure) -> dict[str, tuple[list[float], list[float]]]:
    """The points of each line of a plot by the line's label."""
    (axes,) = figure.axes
    points = {line.get_label(): line.get_data() for line in axes.lines}
    return {label: (list(x), list(y)) for label, (x, y) in points.items()}


def test_a_page_needs_nothing_but_itself(shown_page) -> None:
    """No address, no script, no link: what a page shows is in it; its tags close and its ids are unique."""
    tags = Tags()
    tags.feed(shown_page)
    assert [] == tags.still_open
    assert not {"script", "link", "img", "iframe", "object", "embed"} & set(tags.names)
    assert "http" not in shown_page
    assert "@import" not in shown_page
    references = [value for name, value in tags.values if name in ("src", "href", "xlink:href")]
    assert all(value.startswith("#") for value in references)
    ids = [value for name, value in tags.values if name == "id"]
    assert len(set(ids)) == len(ids)
    assert {value[1:] for value in references} <= set(ids)
    assert set(re.findall(r"url\(#([^)]*)\)", shown_page)) <= set(ids)


def test_a_page_begins_with_the_verdict_and_ends_with_the_provenance(report, shown_page) -> None:
    """The verdict comes before any other figure; every arm, every value of the provenance and the codec is there."""
    text = unescape(shown_page)
    assert text.index(report.verdict()) < text.index("<h2>")
    order = ["Key figures", "Plots", "Every arm", "Delivered", "Bytes", "Times", "Notes", "Footnotes", "Provenance"]
    places = [text.index(f"<h2>{heading}") for heading in order]
    assert sorted(places) == places
    for name in (*report.arms, *report.kinds):
        assert f">{name}<" in text
    tail = text[places[-1] :]
    for value in ("0123456789ab+", "0.1.0", "2.13.0", "3.11.9", "Some Processor", "ilcp bench --html", "ab" * 8):
        assert value in tail
    for value in ("small receiver", "7e393733c843e2b8", "dossier test", "10, 20, 40, 80", ">12<", ">96<", ">11<"):
        assert value in tail
    for note in (*report.notes, *report.cost.notes(), report.footnotes[0].source, report.footnotes[0].setting):
        assert note in text


def test_joint_is_shown_where_cases_have_several_questions(report, shown_page) -> None:
    """The page has a table of it and its content gain, the terminal a column that goes with one question each."""
    text = unescape(shown_page)
    assert "<summary>joint exact match</summary>" in text
    assert f"<td>{shown(report.content_gain(of='joint'))[0]}<small>" in text

    def printed_of(one: Report) -> str:
        drawn = io.StringIO()
        show(one, Console(file=drawn, width=100))
        return drawn.getvalue()

    printed = printed_of(report)
    head = next(line for line in printed.splitlines() if "wire" in line)
    assert "joint" in head.split()
    assert f"{report.mean('text', of='joint').value:.3f}" in printed
    alone = replace(
        report.items,
        cases=tuple(map(str, range(len(report.items)))),
        entropy_bits=(None,) * len(report.items),
        documents=tuple(range(len(report.items))),
    )
    arms = {name: replace(arm, payload_bytes=(), wire_bytes=()) for name, arm in report.arms.items()}
    assert "joint" not in printed_of(replace(report, items=alone, arms=arms))


def test_every_figure_of_a_page_says_what_it_is(report, shown_page) -> None:
    """Value, interval, unit and origin stand beside each other, measured or computed."""
    text = unescape(shown_page)
    gain = report.content_gain()
    value, interval = shown(gain)
    assert f"{value} <small>95 %: {interval}; measured, n=96</small>" in text
    recovery = report.recovery("message-40", "join")
    value, interval = shown(recovery)
    assert f"<td>{value}<small>{interval}</small></td>" in text
    assert "lookup<small>measured, n=24</small>" in text
    for name, figure in report.cost.figures().items():
        assert shown(figure)[0] in text, name
        if isinstance(figure, Computed):
            assert f"computed: {figure.formula} (" in text, name
    assert "99th percentile<small>ms; measured, n=60</small>" in text


@pytest.mark.parametrize("with_cost", [True, False])
@pytest.mark.parametrize("answers_end", [True, False])
def test_reports_without_some_parts_are_shown(answers_end, with_cost) -> None:
    """What a report has no data for is left out, and answers that go on have no exact match."""
    few = make_arms(answers_end, 0, ("text", "none", "message", "mismatched"))
    report = make_report(
        answers_end=answers_end, with_cost=with_cost, arms=few, items=make_items(("only",)), notes=(), footnotes=()
    )
    text = page(report)
    names_of(text)
    assert with_cost == ("Times and operations" in text)
    assert answers_end == ("<summary>exact match</summary>" in text)
    assert {"recovery", "kinds", *(["first token"] if with_cost else [])} == set(plots(report))
    assert report.verdict() == lines_of(report)[0]


@pytest.mark.parametrize("arms", [(), ("text",), ("text", "none"), ("text", "none", "message")])
def test_what_an_interrupted_run_left_is_shown_as_incomplete(arms) -> None:
    """INCOMPLETE comes first, whatever is there already."""
    found = make_arms(True, 0, arms) if arms else {}
    report = make_report(arms=found, with_cost=False, complete=False)
    text = page(report)
    names_of(text)
    assert '<p class="verdict warn">INCOMPLETE' in text
    assert lines_of(report)[0].startswith("INCOMPLETE")
    assert all(f">{name}<" in text for name in arms)


def test_no_recovery_is_shown_where_there_is_none() -> None:
    """Where the full text is no better than nothing, no plot of recovery is drawn, and a note says why."""
    found = make_arms(True, 2, ("none", "message", "mismatched", "head-80", "forwarded-1"))
    report = make_report(arms=found | {"text": replace(found["none"], name="text", family="text")})
    assert {"kinds", "first token"} == set(plots(report))
    assert "recovery: not given, because the full text is not surely better than nothing" in page(report)
    assert "recovery" not in "\n".join(lines_of(report))


def test_hostile_names_are_text() -> None:
    """Markup in a kind, an arm, a note, a task or a model's name is shown as text, by page, plots and tables."""
    hostile = "<img src=x onerror=1>[red]$\\frac$--></style><script>&\"'"
    arms = make_arms(True, 1, ("text", "none", "message", "mismatched", "forwarded-1"))
    arms[f"{hostile}-80"] = make_arm(f"{hostile}-80", "text of equal bytes", 0.9, 80, rival="message")
    report = make_report(
        arms=arms,
        items=make_items((hostile, "lookup")),
        task=hostile,
        notes=(hostile,),
        footnotes=(Citation(hostile, hostile, hostile),),
        provenance={"commit": hostile, hostile: {hostile: [hostile]}},
        codec={"codec_id": hostile},
    )
    text = page(report)
    tags = names_of(text)
    assert {"img", "script"}.isdisjoint(tags)
    assert 1 == tags.count("style") - text.count('<style type="text/css">')
    assert str(escape(hostile)) in text
    said = "\n".join(lines_of(report))
    assert hostile in said.replace("\n", "")


def bracketed(name: str) -> Report:
    """A report in which whatever may have a name has one with brackets, and one with a control character."""
    arms = make_arms(True, 1, ("text", "none", "message", "mismatched"))
    told = {"[b]text-80": "text of equal bytes", "[b]message": "message", "[b]hops-1": "hops", name: "control"}
    arms |= {each: make_arm(each, family, 0.99, 80, rival="message") for each, family in told.items()}
    made = make_report(arms=arms, items=make_items(("[b]kind", "lookup")), notes=("[b]note",), with_cost=False)
    return replace(made, provenance={**made.provenance, "machine": name})


def test_brackets_in_names_are_no_markup() -> None:
    """The verdict and the tables of a report, and those of two that are compared, show names as they are."""
    report = bracketed("[b]one")
    lines = lines_of(report, width=1000)
    assert "of as many bytes ([b]" in lines[0]
    for told in ("[b]text-80 ", "[b]hops ", " [b]kind", "note: [b]note"):
        assert any(told in line for line in lines)
    assert sum("[b]message " in line for line in lines) == 2  # every arm, and what was delivered
    compared = io.StringIO()
    show_comparison(compare(report, bracketed("other")), Console(file=compared, width=1000, color_system=None))
    for each in ("[b]text-80 ", " [b]kind ", "only before: [b]one", "machine: [b]one -> other"):
        assert each in compared.getvalue()


def test_a_strangers_report_does_not_steer_the_terminal(tmp_path, monkeypatch, capsys) -> None:
    """Control characters in the name of an arm are written out by ``ilcp compare`` and ``ilcp measure``."""
    report = bracketed("\x1b")
    save_report(report, tmp_path / "report.json")
    monkeypatch.setattr(sys, "argv", ["ilcp", "compare", *[str(tmp_path / "report.json")] * 2])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    compared = capsys.readouterr().out
    _show(report)
    for said in (compared, capsys.readouterr().out):
        assert "\\x1b" in said
        assert "\x1b" not in said


def test_a_page_is_the_same_every_time() -> None:
    """No date and no random name: the same report makes the same bytes."""
    first, second = (
        make_report(arms=make_arms(True, 1, ("text", "none", "message", "mismatched", "forwarded-1"))) for _ in range(2)
    )
    assert page(first) == page(second)


@pytest.mark.parametrize("answers_end", [True, False])
def test_recovery_is_drawn_at_the_bytes_that_crossed(answers_end) -> None:
    """Each curve's points are its arms' mean wire bytes and their recovery; the intervals are the report's."""
    report = make_report(answers_end=answers_end, hops=0, with_cost=False)
    figure: Any = plots(report)["recovery"]
    drawn = drawn_by(figure)
    told = {"message": [f"message-{n}" for n in (10, 20, 40)] + ["message"]}
    told |= {name: [f"{name}-{n}" for n in (10, 20, 40, 80)] for name in ("head", "tail", "zstd", "lm", "oracle")}
    told |= {name: [name] for name in ("text", "mismatched", "zero", "random", "index")}
    assert {*told, "none", "continuous"} == set(drawn)
    for name, arms in told.items():
        assert [report.arms[arm].sizes()["wire"].value for arm in arms] == drawn[name][0]
        assert [present(report.recovery(arm)).value for arm in arms] == drawn[name][1]
    for name in ("none", "continuous"):
        assert {present(report.recovery(name)).value} == set(drawn[name][1])
    bars = {tuple(map(tuple, segment)) for bars in figure.axes[0].collections for segment in bars.get_segments()}
    for arm in ("message", "lm-20", "mismatched"):
        x, found = report.arms[arm].sizes()["wire"].value, present(report.recovery(arm))
        assert ((x, found.low), (x, found.high)) in bars


def test_hops_are_drawn_by_their_number(report) -> None:
    """Each way's points are the hops and the recovery after them."""
    drawn = drawn_by(plots(report)["hops"])
    ways = ("forwarded", "reencoded", "head-hops", "tail-hops", "zstd-hops", "lm-hops")
    assert {*ways, "none"} == set(drawn)
    for way in ways:
        assert [1, 2, 3] == drawn[way][0]
        assert [report.recovery(f"{way}-{hop}").value for hop in (1, 2, 3)] == drawn[way][1]


def test_kinds_are_drawn_with_the_best_text_of_as_many_bytes(report) -> None:
    """Each arm's points are its means over all questions and by kind; of the texts, the strongest is shown."""
    drawn = {name: xs for name, (xs, ys) in drawn_by(plots(report)["kinds"]).items() if not name.startswith("_")}
    assert {"text", "message", "lm-80", "mismatched", "none"} == set(drawn)
    for name, means in drawn.items():
        assert [report.mean(name, kind).value for kind in ("all", *report.kinds)] == means


def test_times_are_drawn_by_document_length(report) -> None:
    """The points are medians; the third line adds what the sender and the wire take."""
    drawn = drawn_by(plots(report)["first token"])
    points = report.cost.points
    assert [point.tokens for point in points] == drawn["text"][0]
    for step in ("text", "message"):
        assert [point.median(step) for point in points] == drawn[step][1]
    added = [sum(point.median(step) for step in ("message", "encode", "wire out")) for point in points]
    assert pytest.approx(added) == drawn["sent"][1]


def test_plots_are_saved_as_pictures(report, tmp_path) -> None:
    """One PNG per plot, the same bytes every time, with no name of the program and no date in it."""
    paths = save_plots(report, tmp_path / "new" / "folder")
    assert ["recovery.png", "hops.png", "kinds.png", "first-token.png"] == [path.name for path in paths]
    again = save_plots(report, tmp_path)
    for first, second in zip(paths, again, strict=True):
        assert first.read_bytes() == second.read_bytes()
        with Image.open(first) as picture:
            assert {"dpi"} == set(picture.info)


@pytest.mark.parametrize("package", ["matplotlib", "jinja2"])
def test_without_a_package_the_error_says_how_to_get_it(report, monkeypatch, tmp_path, package) -> None:
    """The plots and the page name the extra; no folder is made."""
    monkeypatch.setitem(sys.modules, package, None)
    drawing = (plots, lambda report: save_plots(report, tmp_path / "none")) if package == "matplotlib" else ()
    for draw in (page, *drawing):
        with pytest.raises(MissingExtraError, match=rf"expected {package} .*: pip install 'ilcp\[plots\]'"):
            draw(report)
    assert not (tmp_path / "none").exists()


def test_plots_that_cannot_be_written_are_a_storage_error(report, tmp_path) -> None:
    """A file in the place of the folder, or a folder in the place of a plot, is named."""
    (tmp_path / "file").write_text("")
    (tmp_path / "recovery.png").mkdir()
    for folder in (tmp_path / "file", tmp_path):
        with pytest.raises(StorageError, match="choose another place"):
            save_plots(report, folder)


@pytest.mark.parametrize("name", ["recovery", "hops", "kinds", "first token"])
def test_a_plots_legend_names_every_series(report, name) -> None:
    """Each series that is drawn has one entry in the legend, and no two entries read alike."""
    figure = plots(report)[name]
    (legend,) = figure.legends
    labels = [text.get_text() for text in legend.get_texts()]
    assert len([one for one in drawn_by(figure) if not one.startswith("_")]) == len(labels) == len(set(labels))


def test_what_stands_below_a_plots_title_is_inside_the_picture() -> None:
    """A long note is folded: none of it ends outside the picture, and the axes keep their width."""
    figure, axes = sheet("A title", "of log-likelihood (nats); n=300 questions about 300 documents; " * 3, 4.0, named=2)
    figure.draw_without_rendering()
    (note,) = axes.texts
    assert note.get_window_extent().x1 <= figure.bbox.x1
    assert axes.bbox.x1 > 0.95 * figure.bbox.x1


def test_what_lies_outside_a_plot_is_named_with_its_value(report) -> None:
    """A recovery beyond the axis stands in the legend with its value and the side that it is on."""
    right = {"text": lambda n: n % 4, "none": lambda n: n % 2, "head-80": lambda _: False}
    arms = {
        name: replace(report.arms[name], answers=tuple(None if ok(n) else "no" for n in range(len(report.items))))
        for name, ok in right.items()
    }
    changed = replace(report, arms=report.arms | arms)
    assert changed.recovery("head-80").value < -0.6
    labels = [text.get_text() for text in plots(changed)["recovery"].legends[0].get_texts()]
    assert f"text: beginning: {changed.recovery('head-80').value:.2f} ↓" in labels


def lines_of(report: Report, width: int = 100) -> list[str]:
    """What the terminal shows."""
    shown = io.StringIO()
    show(report, Console(file=shown, width=width, color_system=None))
    return shown.getvalue().splitlines()


def test_the_terminal_shows_the_verdict_first_and_fits_100_columns(report) -> None:
    """The first line is the verdict; no table is wider than the terminal; every arm and every note is there."""
    lines = lines_of(report)
    assert report.verdict() == lines[0]
    assert 100 >= max(len(line) for line in lines[1:] if not line.startswith("note: "))
    said = "\n".join(lines)
    for name, arm in report.arms.items():
        assert (name.rpartition("-")[0] if arm.family == "hops" else name) in said
    for note in (*report.notes, *report.cost.notes()):
        assert f"note: {note}" in lines
    row = next(line.split() for line in lines if line.startswith("message "))
    assert f"{report.mean('message').value:.3f}" == row[2]
    assert " ".join(shown(report.recovery("message"))) in " ".join(row)


@pytest.mark.parametrize(
    ("figure", "expected"),
    [
        (Measured(0.0, "", 3), ("0", "")),
        (Measured(0.0, "", 3, 0.0, 0.0), ("0.000", "[0.000, 0.000]")),
        (Measured(0.8123, "", 3, 0.7, 0.9), ("0.812", "[0.700, 0.900]")),
        (Measured(-0.004, "", 3, -0.01, 0.002), ("-0.0040", "[-0.0100, 0.0020]")),
        (Measured(97.84, "B", 3), ("97.8", "")),
        (Measured(1089.9, "B", 3), ("1,090", "")),
        (Computed(600_000_000, "FLOP", "a", {}), ("600,000,000", "")),
        (Computed(1.2345e12, "FLOP", "a", {}), ("1.234e12", "")),
        (Computed(math.inf, "", "a / b", {}), ("inf", "")),
    ],
)
def test_values_and_bounds_have_as_many_places(figure, expected) -> None:
    """Three figures at least, and the bounds as exact as the value."""
    assert expected == shown(figure)


@pytest.mark.browser
def test_a_browser_opens_the_page_without_a_complaint(shown_page, tmp_path) -> None:
    """Chromium draws the page on a phone's width, and neither refuses nor reports anything."""
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("needs chromium, which is not installed")
    (tmp_path / "page.html").write_text(shown_page, encoding="utf-8")
    picture = tmp_path / "page.png"
    quiet = ("gpu", "quic", "component-update", "sync")
    done = subprocess.run(
        [
            browser,
            "--headless",
            "--no-sandbox",
            "--no-first-run",
            "--disable-background-networking",
            *(f"--disable-{part}" for part in quiet),
            "--hide-scrollbars",
            "--enable-logging=stderr",
            "--v=0",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--window-size=400,3000",
            f"--screenshot={picture}",
            (tmp_path / "page.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert 0 == done.returncode, done.stderr
    assert [] == [line for line in done.stderr.splitlines() if "CONSOLE" in line or "Refused" in line]
    with Image.open(picture) as opened:
        pixels = np.asarray(opened.convert("L"), dtype=int)
    assert (3000, 400) == pixels.shape
    for part in np.split(pixels, 6):  # no part of it is blank
        assert np.ptp(part) > 100
