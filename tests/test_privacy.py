"""What a codec is to forget, and the attacks by which a benchmark measures what a message gives away."""

import json
import random
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import ilcp
from ilcp.errors import ConfigError
from ilcp.tasks import Case, Question, case_files
from ilcp.training import fit
from ilcp.training.batch import Batcher
from ilcp.training.facts import facts_of_case
from ilcp.training.forget import (
    Adversary,
    adversary_of,
    forgetting,
    remembered,
    secrets,
    values_of,
    watched,
    with_values,
)
from ilcp.training.log import read_log
from ilcp.training.objective import Objective
from ilcp.training.reader import Reader
from ilcp.training.tuning import reading_stage
from ilcp.training.validation import Validator
from tests.helpers import ROOT, committed_result, load_script, present, vectors_of
from tests.taught import WORDS, cases, make_hyperparameters, make_network, save_models

ANSWER = "unknown"
forgetful = partial(make_hyperparameters, forget=("who",), forget_answer=ANSWER, forget_values={"who": WORDS})


def named(start: int, n: int) -> list[Case]:
    """One-fact documents whose question has a topic, beside one that has none."""
    return [
        replace(case, questions=(replace(q, facts=(("who", q.answer),)), Question("What?", "a note")))
        for case in cases(start, n)
        for q in case.questions
    ]


@pytest.fixture(scope="module")
def scripts() -> SimpleNamespace:
    """The benchmark's modules."""
    names = ("data", "probes", "attacks", "kv", "forget")
    return SimpleNamespace(**{name: load_script(f"privacy_{name}") for name in names})


# ---- the option


def test_what_gives_the_text_back_is_refused_beside_forgetting() -> None:
    """Reconstruction and literals would teach what is to be forgotten; and an answer has to be there."""
    for name, value in (("reconstruction_weight", 0.5), ("literals_share", 0.1)):
        with pytest.raises(ConfigError, match=r"expected neither .* beside forget, got .*0\.[15]"):
            forgetful(**{name: value})
    with pytest.raises(ConfigError, match="expected forget_answer"):
        forgetful(forget_answer="")


def test_a_topic_without_a_closed_set_of_values_is_refused() -> None:
    """An unknown topic names those that there are; a value for each case is no set that an adversary can learn."""
    found = named(0, 100)
    assert {"who": tuple(sorted(WORDS))} == values_of(found, ["who"])
    with pytest.raises(ConfigError, match=r"got 0 cases and 0 values of 'phone': name a topic.*\(here who\)"):
        values_of(found, ["phone"])
    each = [replace(c, questions=(Question("Id?", c.id, facts=(("id", c.id),)),)) for c in found]
    with pytest.raises(ConfigError, match=r"'id' to have a closed set.*got 100 values in 100 cases.*delete"):
        values_of(each, ["id"])


def test_another_answer_than_that_of_the_data_is_refused() -> None:
    """Where the data say otherwise that a text does not say something, a second such answer would tell."""
    found = [replace(c, questions=(*c.questions, Question("Why?", ANSWER, "absent"))) for c in named(0, 100)]
    assert {"who"} == with_values(forgetful(forget_values={}), found).forget_values.keys()
    with pytest.raises(ConfigError, match="such as 'unknown', got 'not said'"):
        with_values(forgetful(forget_answer="not said"), found)
    assert make_hyperparameters() == with_values(make_hyperparameters(), found)


def test_a_codec_without_a_latent_and_unknown_values_are_refused() -> None:
    """The adversary needs numbers to look at and values to look for; nothing is left on the network."""
    with (
        pytest.raises(ConfigError, match="expected a codec with a latent to forget who"),
        watched(nn.Identity(), forgetful()),
    ):
        pass
    network = make_network()
    unknown = forgetful(forget_values={})
    with pytest.raises(ConfigError, match="forget_values to name two values or more of who"), watched(network, unknown):
        pass
    with watched(network, make_hyperparameters()):
        assert adversary_of(network) is None
    with watched(network, forgetful()):
        assert adversary_of(network) is not None
    assert adversary_of(network) is None


def test_a_forgotten_topic_is_neither_taught_nor_asked_of_a_validation(models) -> None:
    """Every question that says the topic, a join among them, gets the answer of what is not said; others stay."""
    case = next(case_files("test", 0, 1))
    topic = next(q.facts[0][0] for q in case.questions if q.kind == "join")
    taught = forgetting(case, [topic], ANSWER)
    assert topic in facts_of_case(case)
    assert topic not in facts_of_case(taught)
    changed = [(a, b) for a, b in zip(case.questions, taught.questions, strict=True) if a != b]
    assert {"lookup", "join"} == {a.kind for a, _ in changed}
    assert {(ANSWER, "absent")} == {(b.answer, b.kind) for _, b in changed}
    assert len(case.questions) - 2 == len(remembered(case, [topic]).questions)
    rows = Batcher(models, forgetful(questions=2)).batch(named(0, 4), random.Random(0)).rows
    assert {("Who?", True), ("What?", False)} == {(row.question, row.forgotten) for row in rows}
    validator = Validator(models, named(0, 4), forgetful(questions=2), Reader(models, (0,), forgetful()))
    assert {"What?"} == {row.question for row in validator.batch.rows}
    assert () == reading_stage(forgetful()).forget


def test_the_batch_holds_the_numbers_of_what_is_hidden(models) -> None:
    """The adversary is taught the text's own values, though the questions no longer say them."""
    found = named(0, 8)
    batch = Batcher(models, forgetful()).batch(found, random.Random(0))
    assert batch.secrets == tuple((WORDS.index(case.questions[0].answer) + 1,) for case in found)
    assert (0,) == secrets(replace(found[0], questions=()), {"who": WORDS})


# ---- the objective


def test_each_of_the_two_moves_its_own_weights_only() -> None:
    """What the adversary learns leaves the latent alone, and what the codec learns leaves the adversary alone."""
    adversary = Adversary(8, {"who": WORDS})
    latent = torch.randn(16, 8, requires_grad=True)
    terms = adversary.terms(latent, torch.arange(16)[:, None] % 5)
    (terms["adversary"] + terms["guess"]).backward(retain_graph=True)
    assert latent.grad is None
    assert all(weight.grad is not None for weight in adversary.parameters())
    adversary.zero_grad()
    terms["forgetting"].backward()
    assert latent.grad is not None
    assert float(latent.grad.abs().sum()) > 0
    assert all(weight.grad is None for weight in adversary.parameters())


def test_forgetting_changes_the_objective(models) -> None:
    """The loss holds the adversary's terms, and the codec's gradient is another with a weight than without."""
    gradients = []
    for weight in (0.0, 5.0):
        network, wanted = make_network(), forgetful(forget_weight=weight, warmup_steps=0)
        with watched(network, wanted):
            batch = Batcher(models, wanted).batch(named(0, 8), random.Random(0))
            torch.manual_seed(0)
            terms = Objective(models, wanted, Reader(models, network.layers, wanted)).terms(network, batch)
            terms["loss"].backward()
        assert {"adversary", "guess", "forgetting"} < terms.keys()
        gradients.append(present(network.pooler.queries.grad).clone())
    assert not torch.equal(*gradients)


def test_a_run_drives_its_adversary_to_a_guess_and_keeps_none_of_it(models, tmp_path) -> None:
    """Without the codec's part the adversary finds the name; with it, it knows no more than how often each is said.
    The log says both, the network ends as it was made, and the checkpoint, which holds the adversary, is taken up."""
    ends = []
    for weight in (0.0, 10.0):
        network = make_network()
        wanted = forgetful(
            steps=80, contexts=16, learning_rate=3e-3, warmup_steps=10, forget_weight=weight, validate_every=20,
            collapse_after=1.0, teacher_floor=0.0, questions=2,
        )  # fmt: skip
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Validator, "require_teacher", lambda self: None)
            fit(network, models, named, named(10_000, 8), wanted, tmp_path / str(weight))
        assert make_network().state_dict().keys() == network.state_dict().keys()
        again = make_network()
        fit(again, models, named, named(10_000, 8), wanted, tmp_path / str(weight), resume=True)
        assert all(torch.equal(value, again.state_dict()[name]) for name, value in network.state_dict().items())
        ends.append(read_log(tmp_path / str(weight) / "log.jsonl")[-1])
    found, driven = (end["guess"] - end["adversary"] for end in ends)
    assert found > driven + 0.05
    assert driven < 0.1


def test_ilcp_train_finds_the_values_and_refuses_a_codec_of_facts(models, tmp_path) -> None:
    """A recipe's ``forget`` takes names alone; a codec of facts, chosen by the data's topics, is refused at once."""
    sender, receiver = save_models(models, tmp_path)
    lines = [
        json.dumps({"context": c.context, "question": "Who?", "answer": c.questions[0].answer, "topic": "who"})
        for c in cases(0, 200)
    ]
    (tmp_path / "cases.jsonl").write_text("\n".join(lines))
    given: dict[str, Any] = dict(
        sender=sender, receiver=receiver, data=tmp_path / "cases.jsonl", out=tmp_path / "codec"
    )
    with pytest.raises(ConfigError, match="expected a codec with a latent to forget who"):
        ilcp.train(**given, training={"forget": ("who",), "steps": 2}, test_cases=20)
    with pytest.raises(ConfigError, match="name a topic that questions have"):
        ilcp.train(
            **given | {"out": tmp_path / "b"}, training={"forget": ("phone",), "steps": 2}, codec={"name": "vae"}
        )


# ---- the attacks


def test_a_probe_reads_what_is_in_the_bits_and_nothing_else(scripts) -> None:
    """On bits that spell the facts a probe reads many of them, on random bits hardly any: no label leaks in."""
    documents = list(case_files("train", 1, 600))
    said = np.array(list(map(scripts.data.labels, documents)))
    code = np.eye(41, dtype=np.uint8)[said[:, :8]].reshape(600, -1)  # a bit for each value of eight attributes
    noise = np.random.default_rng(0).integers(0, 2, code.shape).astype(np.uint8)
    shares = []
    for bits in (code, noise):
        own, attacked = (scripts.data.Messages(bits[part], said[part]) for part in (slice(0, 500), slice(500, 600)))
        size = bits.shape[1] // 8
        probe = scripts.probes.learned(own, size, seed=0, most=100)
        made = scripts.probes.report(own, attacked, scripts.probes.read(probe, attacked, size), size)
        shares.append(made["share of facts"]["value"])
    assert shares[0] > 0.1
    assert shares[1] < 0.05


def test_labels_are_what_the_text_says(scripts) -> None:
    """Each number is a value that stands in the text, 0 for a fact that does not, and a wording for each stated one."""
    for case in case_files("test", 3, 5):
        numbers, said = scripts.data.labels(case), scripts.data.facts_of(case)
        by_name = dict(zip([field.name for field in scripts.data.FIELDS], numbers, strict=True))
        assert all(
            (by_name[a] > 0) == (a in said) == (by_name[f"wording of {a}"] >= 0) for a in ("reporter", "minutes")
        )
        assert 17 == sum(number > 0 for number in numbers[:20])
        assert all(value in case.context for name, value in said.items())
        assert all(scripts.attacks.written_facts(case, case.context)[at] for at in range(20) if numbers[at])
        assert not any(scripts.attacks.written_facts(case, "nothing"))


def test_a_case_retold_keeps_what_it_is_to_keep(scripts) -> None:
    """Another text of the same facts says them all; one that keeps the people says little else."""
    one = list(case_files("test", 3, 4))
    whole = scripts.attacks.retellings(one, [f.name for f in scripts.data.FIELDS[:20]] + ["offices", "code"], 0)
    people = scripts.attacks.retellings(one, ["reporter", "owner", "approver", "escalation", "offices"], 0)
    for case, same, other in zip(one, whole, people, strict=True):
        facts = sum(scripts.attacks.written_facts(case, case.context))
        assert same != case.context
        assert facts == sum(scripts.attacks.written_facts(case, same))
        assert sum(scripts.attacks.written_facts(case, other)) < facts - 8


def test_redaction_leaves_no_word_of_the_fields(scripts) -> None:
    """A dossier without the sentences of three fields says neither person nor minutes, and all else as before."""
    for case in case_files("test", 3, 20):
        said, cut = scripts.data.facts_of(case), scripts.forget.all_cut(case)
        told = dict(
            zip([f.name for f in scripts.data.FIELDS[:24]], scripts.attacks.written_facts(case, cut), strict=False)
        )
        assert not any(told[name] for name in scripts.forget.FORGET)
        assert all(told[name] for name in ("region", "accounts", "cause") if name in said)


def test_payloads_are_those_of_the_codec(scripts) -> None:
    """What is attacked are the bytes that a sender sends."""
    pair = ilcp.load_pair()
    texts = [case.context for case in case_files("test", 3, 2)]
    bits = scripts.data.encoded(scripts.data.embedded_network(pair), scripts.data.models(pair), texts)
    payloads = [ilcp.Message.from_bytes(pair.sender.encode(text)).payload for text in texts]
    assert payloads == [np.packbits(each).tobytes() for each in bits]
    memory = scripts.attacks.memory_of(scripts.data.embedded_network(pair), bits[:, :80])
    torch.testing.assert_close(memory[0], vectors_of(pair.sender.codec.decode(payloads[0][:10])))


def test_a_cache_gives_its_text_back(scripts) -> None:
    """Word by word, from the first layer's keys and values, rounded to four bits or not."""
    pair = ilcp.load_pair()
    reader = scripts.kv.Reader(pair.receiver.model, pair.receiver.tokenizer)
    made = scripts.kv.caches(reader, list(case_files("test", 3, 1)), compact=False)
    assert {"kv-exact", "kv-int8", "kv-int4"} == made.keys()
    assert all(row["tokens read back"]["value"] == 1.0 for row in made.values())


def test_auroc_counts_pairs(scripts) -> None:
    """All above is 1, all below 0, ties half."""
    assert (1.0, 0.0, 0.5) == tuple(
        scripts.attacks.auroc(np.array(p), np.array(n)) for p, n in (([2, 3], [0, 1]), ([0], [1]), ([1, 1], [1]))
    )


# ---- what the page says


def test_the_page_says_what_was_measured() -> None:
    """The figures in the sentences of the page on privacy are those of the committed results, and so are its verdicts:
    a probe reads more than the receiver tells, and noise is worse than a shorter prefix."""
    made = {
        part: committed_result(f"privacy-{part}")["result"]
        for part in ("asked", "probes", "noise", "searched", "rebuilt")
    }
    told = {row["payload_bytes"]: row["share of facts"]["value"] for row in made["asked"]["rows"]}
    read = {row["payload_bytes"]: row["share of facts"]["value"] for row in made["probes"]["rows"][:4]}
    page = " ".join((ROOT / "docs" / "security-privacy.md").read_text(encoding="utf-8").split())
    assert f"it reads {read[80]:.3f} of the facts of 80 bytes, where the receiver itself tells {told[80]:.3f}" in page
    assert all(read[size] > told[size] for size in told)
    assert 1.0 == made["asked"]["literals"]["code in clear"]["value"]
    assert f"All {made['asked']['literals']['code in clear']['n']} codes" in page
    assert f"writes {made['rebuilt']['facts in one order']['share of facts']['value']:.3f} of them" in page
    assert 20 < made["searched"]["seconds a message"]["value"] < 45
    noise = {(row["flipped"], row["payload_bytes"]): row for row in made["noise"]["rows"]}
    flipped, shorter = noise[0.1, 80], noise[0.0, 20]
    assert shorter["probe"]["share of facts"]["value"] < flipped["probe"]["share of facts"]["value"]
    assert shorter["receiver"]["share of facts"]["value"] > flipped["receiver"]["share of facts"]["value"]


def test_the_page_says_what_was_left_behind_the_defences() -> None:
    """Not asking leaves the fields in the message, an adversary a rest of them, deleted sentences nothing."""
    made = committed_result("privacy-forget")["result"]
    page = " ".join((ROOT / "docs" / "security-privacy.md").read_text(encoding="utf-8").split())
    quiet, watched_arm = (made["arms"][name] for name in ("not asked for", "not asked for, and an adversary"))
    last = watched_arm["training"][-1]
    assert "at chance ({adversary:.2f} nats against {guess:.2f} for".format(**last) in page
    assert max(quiet["receiver tells, of the forgotten"].values()) < 0.02
    assert min(each["exact"]["value"] for each in quiet["forgotten"].values()) > 0.9
    above = [each["exact"]["low"] > each["chance"] for each in watched_arm["forgotten"].values()]
    assert 2 == sum(above)
    assert 11 == round(1 / watched_arm["forgotten"]["minutes"]["exact"]["value"])
    cut = made["arms"]["sentences deleted, the office's too"]
    assert all(each["exact"]["low"] <= each["chance"] for each in cut["forgotten"].values())
    rest = [
        made["arms"][name]["receiver, all else"]["value"] for name in ("as it is", "not asked for, and an adversary")
    ]
    assert 17 == round(rest[0])
    assert 1 == round(rest[0] - rest[1])
