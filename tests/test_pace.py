"""What a run says while it runs: how far, how fast, until when, with how much memory; by a clock of the test's own."""

import random
import sys
from dataclasses import replace
from datetime import datetime
from io import StringIO
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from ilcp.nn.attention import many_shapes
from ilcp.training import StateStore, fit, precision, write_phrasebook
from ilcp.training import pace as pace_module
from ilcp.training.batch import Batcher
from ilcp.training.pace import Pace, StepPace, bytes_text, held_bytes, peak_bytes, seconds_text, voice
from ilcp.training.reader import Reader
from ilcp.training.result import Result
from tests.taught import cases, make_hyperparameters, make_network

CPU = torch.device("cpu")
NOON = datetime(2026, 1, 5, 12, 15).timestamp()


class Clock:
    """A clock that goes on when it is told to."""

    now = 0.0

    def monotonic(self) -> float:
        return 1000 + self.now

    def time(self) -> float:
        return NOON + self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    """The clock that a pace looks at."""
    found = Clock()
    monkeypatch.setattr(pace_module, "time", found)
    return found


@pytest.fixture
def talkative(monkeypatch) -> None:
    """Every line is due."""
    monkeypatch.setattr(pace_module, "FIRST_S", 0.0)
    monkeypatch.setattr(pace_module, "EVERY_S", 0.0)


def paced(clock: Clock, *, warmup: int = 0, announced: int | None = None, step: int = 0, **changes: object) -> StepPace:
    """The pace of a run that begins now."""
    wanted = make_hyperparameters(**{"steps": 3000, **changes})
    pace = StepPace(wanted, CPU, warmup=warmup, announced_bytes=announced)
    pace.begin(step, 0.0)
    return pace


def test_a_line_says_how_far_how_fast_and_until_when(clock, monkeypatch) -> None:
    """Steps, seconds a step without validation, the end with it, and the peak of memory; the loss behind them."""
    monkeypatch.setattr(pace_module, "peak_bytes", lambda _: 1_700_000_000)
    pace = paced(clock)
    for step in range(1, 41):
        clock.now += 3.5
        pace.made(step, 3.2 * step)
    expected = "step 40 of 3,000 · 3.20 s a step · ends about 15:10 (2 h 53 min) · peak 1.7 GB · loss 2.310"
    assert expected == pace.line(clock.now, "loss 2.310")
    assert pytest.approx(3.2) == pace.step_s


def test_a_resumed_run_counts_its_own_steps(clock) -> None:
    """What was made before the stop says nothing of how fast it is now."""
    pace = paced(clock, step=1000, steps=1100)
    clock.now += 20
    pace.made(1010, 20.0)
    assert pace.line(clock.now, "").startswith("step 1,010 of 1,100 · 2.00 s a step · ends about 12:18 (3 min)")


def test_a_limit_in_minutes_ends_a_run_before_its_steps(clock) -> None:
    """The line has the steps that will be made, and the minute of the limit; one beyond midnight has its day."""
    pace = paced(clock, minutes=10.0, steps=100_000)
    clock.now += 60
    pace.made(30, 60.0)
    assert pace.line(60.0, "").startswith("step 30 of about 300 · 2.00 s a step · ends about 12:25 (9 min)")
    pace = paced(clock, steps=100_000)
    clock.now += 60
    pace.made(30, 60.0)
    assert "step 30 of 100,000 · 2.00 s a step · ends about 2026-01-07 19:49 (55 h 32 min)" in pace.line(120.0, "")


def test_a_warm_up_is_a_stage_of_its_own(clock) -> None:
    """Its steps are cheap: they say when the warm-up ends, and nothing of the steps after it."""
    pace = paced(clock, warmup=100)
    for step in range(1, 101):
        clock.now += 0.5
        pace.made(step, 0.5 * step)
    assert pace.line(clock.now, "").startswith("warm-up step 100 of 100 · 500 ms a step · ends about 12:15 (0 ms)")
    clock.now += 4
    pace.made(101, 54.0)
    assert pace.line(clock.now, "").startswith("step 101 of 3,000 · 4.00 s a step · ends about 15:29 (3 h 13 min)")
    assert pace.line(clock.now, "") == pace.line(clock.now, "")


def test_more_memory_than_announced_is_said_once(clock, monkeypatch) -> None:
    """Half as much again is, less is not; and where nothing was announced, nothing can be more."""
    taken = SimpleNamespace(size=1500)
    monkeypatch.setattr(pace_module, "peak_bytes", lambda _: taken.size * 1_000_000)
    pace = paced(clock, announced=1_000_000_000)
    assert "" == pace.excess()
    taken.size = 1600
    assert "measured memory: 1.6 GB, where 1.0 GB and a step's activations were announced" in pace.excess()
    assert "" == pace.excess() == paced(clock).excess()


def test_a_line_comes_within_the_first_minute_and_then_one_a_minute(clock, capsys) -> None:
    """Where there is no terminal; steps of nine seconds make no more lines, and a long silence no more at its end."""
    console = Console(stderr=True, soft_wrap=True)
    with voice(console, "[b]training") as tell:  # brackets are no markup
        for step in range(1, 31):
            clock.now += 9
            tell(step / 30, f"{clock.now:.0f} s")
        clock.now += 1000
        tell(1.0, f"{clock.now:.0f} s")
        tell(1.0, "at once")
    said = capsys.readouterr().err.splitlines()
    assert [f"[b]training: {seconds} s" for seconds in (27, 90, 153, 216, 1270)] == said


def test_on_a_terminal_the_bar_says_the_same(clock, monkeypatch) -> None:
    """The line stands beside the bar from the first step on, and no line of its own is printed."""
    monkeypatch.setattr(sys, "stderr", SimpleNamespace(isatty=lambda: True))
    shown = StringIO()
    with voice(Console(file=shown, force_terminal=True, width=120), "training") as tell:
        tell(0.5, "step 1 of 2 · 3.20 s a step")
    assert "training" in shown.getvalue()
    assert "50 % step 1 of 2 · 3.20 s a step" in shown.getvalue()


def test_memory_is_measured_not_computed(monkeypatch, tmp_path) -> None:
    """The peak follows what a process takes and does not fall; without a record of the system's it is what is held."""
    before = peak_bytes(CPU)
    assert 0 < held_bytes(CPU) <= 1.01 * before
    taken = torch.ones(held_bytes(CPU) // 4 + (64 << 20) // 4)  # more than any test before has left free
    assert peak_bytes(CPU) > before - held_bytes(CPU) + taken.nbytes
    highest = peak_bytes(CPU)
    del taken
    assert 0.99 * highest <= peak_bytes(CPU)  # the system counts in batches of pages
    monkeypatch.setattr(pace_module, "STATUS", tmp_path / "none")
    assert 0 < peak_bytes(CPU) < highest


def test_durations_and_sizes_are_said_as_people_do() -> None:
    """Of each unit as many digits as matter."""
    durations = {0.04: "40 ms", 3.2: "3.20 s", 12.4: "12 s", 59.9: "60 s", 90.0: "2 min", 9472.0: "2 h 38 min"}
    assert durations == {seconds: seconds_text(seconds) for seconds in durations}
    assert ["620 MB", "1.7 GB"] == [bytes_text(size) for size in (6.2e8, 1.72e9)]
    assert 0 == Pace(10).each_s(0) // 1


def test_a_run_says_its_pace_and_what_bounds_it(models, tmp_path, talkative, capsys) -> None:
    """A line per step here, since all are due; at the end where a step's time went, beside the receiver's own pass."""
    wanted = make_hyperparameters(steps=3, validate_every=3)
    learner = make_network()
    before = {name: value.clone() for name, value in models.receiver.state_dict().items()}
    result = fit(learner, models, cases, cases(10_000, 8), wanted, tmp_path, announced_bytes=1)
    said = capsys.readouterr().err
    for part in ("step 1 of 3 · ", " a step · ends about ", " · peak ", " · loss ", "measured memory: "):
        assert part in said
    assert 1 == said.count("measured memory")
    assert result.bound() == said.splitlines()[-1]
    assert said.splitlines()[-1].startswith("a step took ")
    assert 0 < result.receiver_pass_s < 60
    assert 0 < result.step_s
    assert all(torch.equal(value, before[name]) for name, value in models.receiver.state_dict().items())
    again = fit(learner, models, cases, cases(10_000, 8), wanted, tmp_path, resume=True)
    assert ("", 0.0) == (again.bound(), again.receiver_pass_s)


def test_what_bounds_a_step_is_one_line() -> None:
    """The largest part first, and how much longer a step is than the receiver's pass alone."""
    shares = {"sender": 0.01, "codec": 0.05, "receiver": 0.94}
    validation: Any = None
    result = Result(3, 1.0, validation, shares, 1.0, step_s=3.2, receiver_pass_s=2.9)
    assert (
        "a step took 3.20 s: receiver 94%, codec 5%, sender 1%; the receiver's pass alone takes 2.90 s, so a step is "
        "1.10 times that"
    ) == result.bound()


def test_reading_says_its_tokens_and_its_end(models, tmp_path, talkative, capsys) -> None:
    """So does the phrasebook: whatever takes minutes before the first step."""
    texts = [case.context for case in cases(0, 6)]
    wanted = make_hyperparameters(topics=("who",))
    reader = Reader(models, (0, 2), wanted)
    StateStore(tmp_path, models, (0, 2), wanted, 1 << 30).fill(reader, texts)
    said = capsys.readouterr().err
    tokens = sum(len(models.sender_tokenizer(text).input_ids) for text in texts)
    assert said.startswith(f"the sender reads: {tokens} of {tokens} tokens · ")
    assert " tokens/s · ends about " in said
    told = [
        replace(case, questions=(replace(case.questions[0], facts=(("who", case.questions[0].answer),)),))
        for case in cases(0, 8)
    ]
    asked = [Batcher(models, wanted).batch(told, random.Random(step)) for step in range(2)]
    write_phrasebook(models, asked, wanted)
    assert "phrasebook step 2 of 2 · " in capsys.readouterr().err


@pytest.mark.parametrize(("laps", "faster"), [((2.0, 1.0), True), ((1.0, 2.0), False)])
def test_precision_is_decided_by_what_is_faster(monkeypatch, laps: tuple[float, float], faster: bool) -> None:
    """A product in float32 and one under autocast are timed; no processor's name is asked for."""
    now = SimpleNamespace(at=0.0)

    def linear(*_: torch.Tensor) -> torch.Tensor:
        now.at += laps[torch.is_autocast_enabled("cpu")]
        return torch.zeros(1)

    monkeypatch.setattr(precision, "time", SimpleNamespace(perf_counter=lambda: now.at))
    monkeypatch.setattr(precision.F, "linear", linear)
    precision.faster_in_bfloat16.cache_clear()
    assert faster == precision.faster_in_bfloat16("cpu")
    precision.faster_in_bfloat16.cache_clear()


@pytest.mark.parametrize("supported", [True, False])
def test_a_gpu_is_asked_for_bfloat16(supported: bool, monkeypatch) -> None:
    """A small product there takes what its call takes, and would say that bfloat16 is slower."""
    asked: list[dict[str, bool]] = []

    def answers(**options: bool) -> bool:
        asked.append(options)
        return supported

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", answers)
    precision.faster_in_bfloat16.cache_clear()
    assert precision.faster_in_bfloat16("cuda") == supported
    assert asked == [{"including_emulation": False}]
    precision.faster_in_bfloat16.cache_clear()


def test_attention_that_plans_every_shape_is_left_out_and_let_in_again() -> None:
    """Training and measuring give it another shape in every pass; what a caller switched off stays off."""
    switches = torch.backends.cuda
    assert switches.cudnn_sdp_enabled()
    switches.enable_flash_sdp(False)
    try:
        first, second = many_shapes(), many_shapes()  # of two threads that overlap
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert not switches.cudnn_sdp_enabled()
        assert not switches.flash_sdp_enabled()
        second.__exit__(None, None, None)
        assert switches.cudnn_sdp_enabled()
    finally:
        switches.enable_flash_sdp(True)
