"""The instruments, on hand-offs whose worth is known."""

import json
from dataclasses import asdict

import numpy as np
import pytest

from ilcp.errors import DecodeError, EncodeError
from ilcp.measure import Computed, Measured, payload, provenance, quality
from ilcp.measure.figures import bootstrap
from ilcp.measure.quality import thin
from ilcp.tasks import case_files
from ilcp_codecs.text import HeadCodec

CASES = [
    thin(case, {"lookup": 3, "join": 1, "absent": 1, "code": 1}, i)
    for i, case in enumerate(case_files("validation", 5, 6))
]


@pytest.fixture(scope="module")
def scores(pair):
    """The embedded pair's scores on a few validation documents."""
    return quality(pair.sender, pair.receiver, CASES, text_codecs={"head": HeadCodec()}, seed=1)


def test_every_arm_scores_every_item(scores) -> None:
    """All arms hold one value per question, and the arms the issue asks for are there."""
    assert {"text", "message", "none", "other", "zero", "message-40", "head-80"} <= set(scores.exact)
    assert {len(scores.kinds)} == {len(values) for values in scores.exact.values()}
    assert sum(len(case.questions) for case in CASES) == len(scores.kinds)


def test_text_recovers_one_and_nothing_recovers_zero(scores) -> None:
    """Recovery is 1 for the full text and 0 for nothing, by definition and in fact."""
    assert 1.0 == scores.recovery("text", of="nats").value
    assert 0.0 == scores.recovery("none", of="nats").value
    assert 0.0 == scores.difference("none", "none").value


def test_a_perfect_and_a_useless_message(scores) -> None:
    """A message that carries the text scores as the text; another case's shows in the content gain."""
    swapped = type(scores)(
        scores.kinds,
        scores.documents,
        scores.exact | {"message": scores.exact["text"], "other": scores.exact["none"]},
        scores.nats | {"message": scores.nats["other"]},
        scores.wire_bytes,
        scores.seed,
    )
    assert 1.0 == swapped.recovery("message").value
    assert swapped.content_gain().value > 0
    assert 0.0 == swapped.content_gain(of="nats").value


def test_the_embedded_message_carries_the_facts(scores) -> None:
    """The receiver answers look-ups from the message, not from another case's, and better than from text as long."""
    assert scores.mean("text", "lookup").value > 0.8
    assert scores.recovery("message", "lookup").value > 0.6
    assert scores.content_gain("lookup").low > 0.4
    assert scores.difference("message", "head-80", "lookup").low > 0.3


def test_wire_bytes_are_those_of_whole_messages(scores) -> None:
    """Sizes count the envelope: 100 bytes for the message, 20 over the payload for short text."""
    assert 100 == scores.wire_bytes["message"]
    assert 60 == scores.wire_bytes["message-40"]
    assert 95 < scores.wire_bytes["head-80"] <= 100
    assert "none" not in scores.wire_bytes


def test_the_report_is_json_and_bad_names_are_refused(scores, pair) -> None:
    """Figures serialise; an unknown kind or score, or a single case, is an EncodeError."""
    assert set(json.loads(json.dumps(scores.to_dict()))) == set(scores.kinds)
    with pytest.raises(EncodeError, match="one of the kinds"):
        scores.mean("text", "riddle")
    with pytest.raises(EncodeError, match="'exact' or 'nats', got 'f1'"):
        scores.mean("text", of="f1")
    with pytest.raises(EncodeError, match="at least two cases"):
        quality(pair.sender, pair.receiver, CASES[:1])


def test_bootstrap_intervals_cover() -> None:
    """Over 120 synthetic samples of grouped data, the 95 % interval holds the true mean about 95 % of the time."""
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(120):
        values = (rng.normal(size=(60, 1)) + 0.3 * rng.normal(size=(60, 3))).ravel()
        groups = np.repeat(np.arange(60), 3).tolist()
        figure = bootstrap(lambda items, values=values: float(values[items].mean()), groups, seed=trial)
        covered += figure.low <= 0 <= figure.high
    assert 0.87 <= covered / 120 <= 1.0


def test_payload_accounts_for_every_byte(pair) -> None:
    """The parts sum to the message, and what it stands for is measured or computed by a formula that holds."""
    text = next(iter(case_files("validation", 5, 1))).context
    message = pair.sender.encode(text)
    found = payload(message, text=text, sender=pair.sender, receiver=pair.receiver)
    assert 100 == found.message.value == sum(part.value for part in found.parts.values())
    assert len(text.encode()) == found.replaces["text, UTF-8"].value
    cache = found.replaces["receiver's KV cache, float32"]
    config = pair.receiver.model.config
    width = config.hidden_size // config.num_attention_heads * config.num_key_value_heads
    tokens = found.replaces["receiver's tokens"].value
    assert isinstance(cache, Computed)
    assert 2 * config.num_hidden_layers * tokens * width * 4 == cache.value
    assert "computed: 2 * layers" in str(found)
    with pytest.raises(DecodeError):
        payload(message[:-1])
    with pytest.raises(EncodeError, match="a text beside"):
        payload(message, sender=pair.sender)


def test_kv_bytes_equal_a_real_cache(pair) -> None:
    """The KV formula is the size of a cache that the receiver really builds."""
    import torch

    text = "The affected region is Bergen."
    ids = torch.tensor([pair.receiver.tokenizer(text, add_special_tokens=False).input_ids])
    with torch.no_grad():
        cache = pair.receiver.model(input_ids=ids, use_cache=True).past_key_values
    real = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    found = payload(pair.sender.encode(text), text=text, receiver=pair.receiver)
    assert real == found.replaces["receiver's KV cache, float32"].value


def test_figures_say_where_they_come_from() -> None:
    """A measured figure prints n and interval, a computed one its formula, and provenance names versions."""
    assert "0.5 nats [0.400, 0.600] (measured, n=9)" == str(Measured(0.5, "nats", 9, 0.4, 0.6))
    assert "(computed: a / b; a=1, b=2)" in str(Computed(0.5, "", "a / b", {"a": 1, "b": 2}))
    where = provenance(sender=asdict(Measured(1, "", 1)))
    assert {"commit", "versions", "python", "machine", "command", "models"} == set(where)


def test_thin_keeps_at_most_so_many_of_a_kind() -> None:
    """Thinning chooses different questions for different numbers, and never more than asked."""
    case = next(iter(case_files("validation", 5, 1)))
    first, second = (thin(case, {"lookup": 2, "absent": 0}, number) for number in (0, 5))
    assert 2 == sum(question.kind == "lookup" for question in first.questions)
    assert not any(question.kind == "absent" for question in first.questions)
    assert first.questions != second.questions
