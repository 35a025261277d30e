"""The benchmark at real sizes: what its file holds, what it refuses, and that it counts what it says."""

import json
import math
import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from ilcp.measure import Computed, Measured
from tests.helpers import load_script, noting, present

LENGTHS = (8, 64, 512)  # the last does not fit the test size's window of 256
TINY = ("--size", "tiny", "--device", "cpu", "--dtype", "float32")
Script = Callable[..., dict]


@pytest.fixture(scope="module")
def modules() -> SimpleNamespace:
    """The script and its steps, as modules."""
    return SimpleNamespace(scale=load_script("scale"), steps=load_script("scale_steps"))


@pytest.fixture(scope="module")
def script(modules: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Script:
    """Runs the script with options; what its file then holds."""

    def run(*options: str) -> dict:
        out = tmp_path_factory.mktemp("scale") / "scale.json"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["scale.py", *options, "--out", str(out)])
            modules.scale.main()
        return json.loads(out.read_text(encoding="utf-8"))

    return run


@pytest.fixture(scope="module")
def record(script: Script) -> dict:
    """What the test size gives."""
    return script(*TINY, "--tokens", *map(str, LENGTHS), "--repetitions", "7")


@pytest.fixture
def scale(modules: SimpleNamespace) -> ModuleType:
    """The script."""
    return modules.scale


def figures_of(run: dict) -> dict[str, Measured | Computed]:
    """The figures of one length."""
    kinds = {name: Measured if "n" in figure else Computed for name, figure in run["figures"].items()}
    return {name: kind(**run["figures"][name]) for name, kind in kinds.items()}


def test_every_step_of_every_length_is_there(record, modules) -> None:
    """Each length that fits has time, interval and peak of every step, and the bytes and tokens of every prompt."""
    assert list(LENGTHS) == [run["tokens"] for run in record["runs"]]
    for run in record["runs"][:2]:
        found = figures_of(run)
        for step in modules.steps.STEPS:
            time = found[step]
            assert isinstance(time, Measured)
            assert (7, "ms") == (time.n, time.unit)
            assert 0 < present(time.low) <= time.value <= present(time.high)
            assert (found[f"{step}, peak"].value > 0) == (not step.startswith("wire")), step
        for prompt in modules.steps.PROMPTS:
            assert f"tokens, {prompt}" in found
            assert isinstance(found[f"KV, {prompt}"], Computed)
        assert 100 == found["message on the wire"].value
        assert 3 * run["tokens"] * 32 * 4 == found["captured states"].value  # layers 0, 1, 2
        assert 16 * 32 * 4 == found["memory vectors"].value


def test_the_file_says_what_it_is_and_where_it_comes_from(record) -> None:
    """Random weights, dtype, interval, source of the peaks, models by their weights, command and commit."""
    assert "the weights are random" in record["what"]
    assert "time and memory only" in record["what"]
    assert ("cpu", "float32", 7, 7, 16) == tuple(
        record[name] for name in ("device", "dtype", "seed", "repetitions", "question_tokens")
    )
    assert "TorchDispatchMode" in record["peak"]
    assert "order statistics" in record["interval"]
    assert {"tiny"} == set(record["models"]) == set(record["provenance"]["models"])
    assert record["models"]["tiny"]["identity"] == record["provenance"]["models"]["tiny"]
    assert record["provenance"]["command"].startswith("scale.py --size tiny")


def test_figures_follow_from_the_samples_and_ratios_from_the_parts(record, modules) -> None:
    """Medians are of the samples, capture's share is of paired differences, and formulas start from those medians."""
    for run in record["runs"][:2]:
        found, samples = figures_of(run), run["samples"]
        for step in modules.steps.STEPS:
            assert np.median(samples[step]) == found[step].value
        pairs = zip(samples["sender reads and captures"], samples["sender reads"], strict=True)
        assert np.median([captured - plain for captured, plain in pairs]) == found["capture, beyond reading"].value
        for name, figure in found.items():
            if isinstance(figure, Computed):
                assert pytest.approx(eval(figure.formula, {"__builtins__": {}}, dict(figure.inputs))) == figure.value
                assert all(math.isfinite(value) for value in figure.inputs.values()), name
        value = {name: figure.value for name, figure in found.items()}
        arrives = value["wire in"] + value["codec decodes"] + value["first token, memory"]
        leaves = value["capture, beyond reading"] + value["codec encodes"] + value["wire out"]
        text, cached = value["first token, text"], value["first token, text in the prefix cache"]
        assert pytest.approx(arrives) == value["message to first token"]
        assert pytest.approx(leaves) == value["sender's extra"]
        assert pytest.approx(arrives / text) == value["message / text"]
        assert pytest.approx((arrives + leaves) / text) == value["message, sender's extra counted in / text"]
        assert pytest.approx(arrives / cached) == value["message / text in the prefix cache"]
        twin = value["first token, as many tokens"]
        assert pytest.approx(arrives / twin) == value["message / as many tokens"]


def test_keys_and_values_are_those_of_the_prompts_tokens(record) -> None:
    """Text holds its tokens, cached or not; memory one per vector; the question of 16 stands behind each."""
    for run in record["runs"][:2]:
        found = figures_of(run)
        tokens = {"text": run["tokens"], "text in the prefix cache": run["tokens"], "nothing": 0}
        for prompt, held in (tokens | {"memory": 16, "as many tokens": 16}).items():
            assert held + 16 == found[f"tokens, {prompt}"].value
            assert 2 * 2 * 2 * 8 * 4 * (held + 16) == found[f"KV, {prompt}"].value
        assert pytest.approx(32 / (run["tokens"] + 16)) == found["KV, memory / text"].value


def test_a_document_beyond_the_window_is_recorded_as_refused(record) -> None:
    """It stands among the runs with its length and the reason, and holds no figure."""
    refused = record["runs"][2]
    assert {"sender": "tiny", "receiver": "tiny", "tokens": 512} == {k: refused[k] for k in list(refused)[:3]}
    expected = "expected a document, question and answer of at most 256 tokens (the window), got 529"
    assert expected == refused["refused"]
    assert "figures" not in refused


def test_what_does_not_fit_into_memory_is_refused(script, modules, monkeypatch) -> None:
    """Too little for the weights, too little for a document, and an allocation that fails midway: each with its reason,
    and the other lengths are measured."""
    monkeypatch.setattr(modules.steps.Machine, "free_bytes", lambda self: 1e5)
    found = script(*TINY, "--tokens", "8", "64")["runs"]
    assert [8, 64] == [run["tokens"] for run in found]
    assert all(run["refused"].endswith("GB free (the weights), got 0.0 GB") for run in found)

    monkeypatch.setattr(modules.steps.Machine, "free_bytes", lambda self: 3e5)
    first, second = script(*TINY, "--tokens", "8", "128")["runs"]
    assert "figures" in first
    assert "the captured states" in second["refused"]

    monkeypatch.undo()
    measure = modules.scale.measure

    def tight(document, repetitions: int) -> dict:
        if len(document.ids) == 8:
            raise torch.OutOfMemoryError("tried to allocate 2 GiB\nof 1 GiB")
        return measure(document, repetitions)

    monkeypatch.setattr(modules.scale, "measure", tight)
    first, second = script(*TINY, "--tokens", "8", "16")["runs"]
    assert "out of memory: tried to allocate 2 GiB" == first["refused"]
    assert "figures" in second


def test_a_defect_is_not_a_refusal(script, scale, monkeypatch) -> None:
    """An error that is not about memory ends the run."""

    def broken(document, repetitions: int) -> dict:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(scale, "measure", broken)
    with pytest.raises(RuntimeError, match="shapes differ"):
        script(*TINY, "--tokens", "8")


def test_the_ends_may_differ(script, modules, monkeypatch) -> None:
    """States are the sender's, keys and values the receiver's, and both models are named."""
    monkeypatch.setitem(modules.steps.SIZES, "wide", modules.steps.Size(48, 4, 4, 4, 64, 512, tied=False, window=128))
    made = script("--sender", "tiny", "--receiver", "wide", "--device", "cpu", "--tokens", "8", "200")
    run, refused = made["runs"]
    assert ("tiny", "wide") == (run["sender"], run["receiver"])
    assert {"tiny", "wide"} == set(made["models"])
    assert 2 * 4 * 4 * 12 * 2 * 24 == run["figures"]["KV, text"]["value"]  # bfloat16
    assert 16 * 48 * 4 == run["figures"]["memory vectors"]["value"]
    assert "at most 128 tokens" in refused["refused"]


@pytest.mark.parametrize("on_gpu", [False, True])
def test_without_options_a_cpu_runs_its_smallest_and_says_so(script, modules, monkeypatch, on_gpu) -> None:
    """A GPU runs the three published sizes and all lengths; never the test size."""
    asked = []

    def runs(pair, lengths, *_):
        asked.append((pair, tuple(lengths)))
        yield {"sender": pair[0], "receiver": pair[1], "tokens": 1, "refused": "asked only"}

    monkeypatch.setattr(modules.scale, "runs", runs)
    monkeypatch.setattr(modules.steps.Machine, "on_gpu", on_gpu)
    monkeypatch.setattr(modules.steps.Machine, "name", "some")
    monkeypatch.setattr(modules.steps.Machine, "free_bytes", lambda self: 1.0)
    notes = script("--device", "cpu")["notes"]
    if on_gpu:
        assert [] == notes
        assert [((name, name), (1024, 2048, 4096, 8192, 16384, 32768)) for name in ("0.5B", "1.5B", "7B")] == asked
    else:
        assert ["no GPU: sizes 0.5B and documents of [1024] tokens only"] == notes
        assert [(("0.5B", "0.5B"), (1024,))] == asked


def test_too_few_repetitions_are_refused(script, capsys) -> None:
    """Five bound no median with 95 %."""
    with pytest.raises(SystemExit):
        script(*TINY, "--repetitions", "5")
    assert "expected at least 6 repetitions" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "parameters"), [("0.5B", 494_032_768), ("1.5B", 1_543_714_304), ("7B", 7_615_616_512)]
)
def test_the_sizes_are_the_published_ones(modules, name, parameters) -> None:
    """Each has as many weights as the model whose shape it is, and a window for the longest document."""
    size = modules.steps.SIZES[name]
    assert parameters == size.parameters()
    assert size.window > max(modules.scale.LENGTHS) + modules.steps.QUESTION_TOKENS
    assert (0, size.layers) == (size.layers_read()[0], size.layers_read()[-1])


def test_the_interval_of_a_median_holds_it_with_95_percent_and_is_no_wider(scale) -> None:
    """The chance that a median lies outside the chosen order statistics is below 5 %; one further in, it is not."""
    for n in (6, 7, 10, 20, 101):
        found = scale.median([float(value) for value in reversed(range(n))])
        cut = int(found.low)
        assert n - 1 - cut == found.high
        outside = [2 * sum(math.comb(n, k) for k in range(upto + 1)) / 2**n for upto in (cut, cut + 1)]
        assert outside[0] <= 0.05 < outside[1]


def test_the_meter_counts_what_lives_at_once(modules) -> None:
    """Two tensors at once are two, one after the other one; views and what was there before cost nothing."""
    there = torch.ones(1000)
    with modules.steps.LiveBytes() as one_by_one:
        for _ in range(3):
            torch.zeros(1000)
    with modules.steps.LiveBytes() as together:
        kept = [there + 1, there * 2]
        kept.append(kept[0].view(10, 100).t())
        there.add_(1)
        there[:10].mul_(2)
    assert (4000, 0) == (one_by_one.peak, one_by_one.live)
    assert (8000, 8000) == (together.peak, together.live)
    kept.clear()
    assert 0 == together.live


def test_reading_plainly_reads_the_very_document(modules, monkeypatch) -> None:
    """The pass that the sender makes anyway sees the tokens that capture sees, in one window."""
    machine = modules.steps.Machine(torch.device("cpu"), torch.float32)
    document = modules.steps.Document(modules.steps.Hop(("tiny", "tiny"), machine, 7), 64, 7)
    assert all(
        weight.requires_grad for weight in document.receiver.model.parameters()
    )  # as from_pretrained leaves them
    body, rows = document.sender.model.base_model, list[torch.Tensor]()
    monkeypatch.setattr(body, "forward", noting(body.forward, rows, lambda *_, input_ids, **__: input_ids))
    steps = document.steps()
    steps["sender reads and captures"]()  # the new method first hears the sentence by which the model is known
    rows.clear()
    steps["sender reads"]()
    steps["sender reads and captures"]()
    assert [(1, 64), (1, 64)] == [tuple(row.shape) for row in rows]
    assert torch.equal(*rows)
    assert 64 == document.cached.tokens
    cold, warm = (steps[f"first token, {prompt}"]() for prompt in ("text", "text in the prefix cache"))
    assert cold == warm
