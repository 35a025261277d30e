"""The parts of ``ilcp train``: data, self-study, states on disk, the terms of the loss, the clock."""

import json
import random
from copy import copy, deepcopy
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from transformers import BertConfig, BertModel

import ilcp
from ilcp.errors import ConfigError, StorageError
from ilcp.message.literals import line as line_of
from ilcp.models.fingerprint import identify
from ilcp.models.prompt import answer_ids
from ilcp.nn.distributed import SyncedNorm
from ilcp.tasks import Case, Question, case_files, read_jsonl
from ilcp.tasks.telling import TELL, telling
from ilcp.tasks.written import merged
from ilcp.training import Phrasebook, StateStore, fit
from ilcp.training import finish as finish_module
from ilcp.training import selfstudy as selfstudy_module
from ilcp.training.batch import Batcher
from ilcp.training.clock import Clock
from ilcp.training.data import Shuffled, split
from ilcp.training.estimate import estimate
from ilcp.training.objective import Objective, calibrate
from ilcp.training.reader import Reader
from ilcp.training.selfstudy import SelfStudy, cut, study
from ilcp_codecs.vae import VaeCodec
from tests.helpers import make_model, make_tokenizer, noting, present
from tests.taught import cases, make_hyperparameters, make_network

LAYERS = (0, 2)
network = partial(make_network, LAYERS)
hyperparameters = make_hyperparameters


# ---- data


def test_an_epoch_gives_every_case_once_in_batches_of_like_length() -> None:
    """Each case once per epoch, another order in the next, the same batch for the same number, lengths near."""
    found = cases(0, 256)
    lengths = [random.Random(number).randrange(10, 1000) for number in range(256)]
    source = Shuffled(found, lengths, seed=1)
    epochs = [[source(8 * (32 * epoch + batch), 8) for batch in range(32)] for epoch in range(2)]
    for epoch in epochs:
        assert sorted(case.id for case in found) == sorted(case.id for batch in epoch for case in batch)
    assert [c.id for c in epochs[0][0]] != [c.id for c in epochs[1][0]]
    again = Shuffled(found, lengths, seed=1)
    assert epochs[1][5] == again(8 * 37, 8)
    width = {case.id: length for case, length in zip(found, lengths, strict=True)}
    spans = [max(width[c.id] for c in batch) - min(width[c.id] for c in batch) for batch in epochs[0]]
    assert sum(spans) / len(spans) < 200  # of 990, where batches drawn at random span 770
    with pytest.raises(ConfigError, match="at least 8 cases for a batch, got 5"):
        Shuffled(found[:5], lengths[:5], 0)(0, 8)


def test_a_split_shares_no_context_and_few_cases_are_refused() -> None:
    """Lines about one context become one case, which is in one part alone."""
    lines = [Case(f"{c.id}/{k}", c.context, c.questions) for c in cases(0, 400) for k in range(2)]
    together = merged(lines)
    assert 400 == len(together)
    assert all(2 == len(case.questions) for case in together)
    parts = split(together, validation=30, test=25, seed=0)
    assert (345, 30, 25) == (len(parts.training), len(parts.validation), len(parts.test))
    contexts = [{case.context for case in part} for part in (parts.training, parts.validation, parts.test)]
    assert 400 == len(contexts[0] | contexts[1] | contexts[2])
    with pytest.raises(ConfigError, match=r"at least 160 cases with different contexts.*got 100"):
        split(together[:100], validation=10, test=10, seed=0)


def test_chat_logs_become_hand_offs(tmp_path) -> None:
    """Every message of an agent after another author's is a hand-off, or those that the line names."""
    talk = [
        {"role": "user", "content": "Find the cause."},
        {"role": "assistant", "name": "searcher", "content": "The disk is full."},
        {"role": "assistant", "name": "searcher", "content": "Since Monday."},
        {"role": "assistant", "name": "writer", "content": "Report: a full disk since Monday."},
    ]
    file = tmp_path / "logs.jsonl"
    file.write_text(json.dumps({"id": "a", "messages": talk}) + "\n" + json.dumps({"messages": talk, "handoffs": [2]}))
    first, second, third = read_jsonl(file)
    assert ("a#1", "user: Find the cause.") == (first.id, first.context)
    assert "user: Find the cause.\n\nsearcher: The disk is full.\n\nsearcher: Since Monday." == second.context
    assert (Question("", "Report: a full disk since Monday.", "continuation"),) == second.questions
    assert "Since Monday." == third.questions[0].answer
    parts: list[dict[str, Any]] = [
        {**talk[0], "content": [{"type": "text", "text": talk[0]["content"]}]},
        {"role": "tool", "content": None},
    ]
    parts[1]["tool_calls"] = [{"function": {"name": "look", "arguments": '{"at": "disk"}'}}]
    file.write_text(json.dumps({"id": "a", "messages": parts}))
    (called,) = read_jsonl(file)
    assert (first.context, 'look {"at": "disk"}') == (called.context, called.questions[0].answer)
    for wrong, said in (
        ({"messages": ["no"]}, "1: expected a list of objects in 'messages'"),
        ({"messages": [{"role": "user", "content": ""}]}, "1: message 0: expected a text in 'content', got an empty"),
        ({"messages": [{"content": "who?"}]}, "1: expected .* got message 0 without role"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "1: expected part 0 of message 0 as a text"),
        ({"messages": talk[:1]}, "expected a message of another agent"),
        ({"messages": talk, "handoffs": [9]}, r"expected numbers from 1 to 3 in 'handoffs', got \[9\]"),
    ):
        file.write_text(json.dumps(wrong))
        with pytest.raises(ConfigError, match=said):
            list(read_jsonl(file))


# ---- self-study


def test_a_text_is_cut_between_words() -> None:
    """Context and continuation are whole words of the text in a row; a text too short for both is none."""
    text = " ".join(f"word{number}" for number in range(60))
    context, continuation = present(cut(text, 100, 50))
    assert text.startswith(f"{context} {continuation} ")
    assert len(context) <= 100
    assert len(continuation) <= 50
    assert cut("too short", 100, 50) is None


def test_the_sender_writes_the_data_and_goes_on_where_it_was_stopped(models, tmp_path, monkeypatch) -> None:
    """Continuations in batches, each from its own seed: what was stopped and resumed is what was not."""
    settings = SelfStudy(
        kind="continuation", texts=12, tokens=40, context_characters=30, continuation_characters=20, batch=4
    )
    whole = study(models, settings, tmp_path / "whole.jsonl", seed=1)
    assert whole
    assert all(case.questions[0].text == "" and case.questions[0].answer for case in whole)
    write, calls = selfstudy_module._continuations, []

    def stopped(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return write(*args)

    monkeypatch.setattr(selfstudy_module, "_continuations", stopped)
    with pytest.raises(KeyboardInterrupt):
        study(models, settings, tmp_path / "cut.jsonl", seed=1)
    again = study(models, settings, tmp_path / "cut.jsonl", seed=1)
    assert [(c.context, c.questions) for c in whole] == [(c.context, c.questions) for c in again]
    assert 4 == len(calls)  # one, the one that was stopped, and the two that were left
    (tmp_path / "cut.batches").write_text("2")  # killed between the file and the number beside it
    assert whole == study(models, settings, tmp_path / "cut.jsonl", seed=1)


def test_a_chat_model_writes_texts_and_questions_and_the_receiver_answers(models, tmp_path, monkeypatch) -> None:
    """Lines that ask are questions, the receiver's answers from the full text are what is learned: no labels."""
    said = {
        "Write a report": "The disk of Mara was full.",
        "Write 6 short": "1. Whose disk was it?\nnot a question\n- What was full?",
        "Whose disk": "Mara's",
        "What was full": "the disk",
    }

    def speak(model, tokenizer, prompts, tokens, temperature):
        texts = [tokenizer.decode(prompt) for prompt in prompts]
        return [next(answer for key, answer in reversed(said.items()) if key in text) for text in texts]

    monkeypatch.setattr(selfstudy_module, "_generate", speak)
    found = study(models, SelfStudy(kind="auto", texts=1, batch=1), tmp_path / "asked.jsonl", seed=0)
    assert ["Whose disk was it?", "What was full?"] == [question.text for question in found[0].questions]
    assert ["Mara's", "the disk"] == [question.answer for question in found[0].questions]
    assert "The disk of Mara was full." == found[0].context


def test_damaged_cases_of_a_self_study_are_named(models, tmp_path) -> None:
    """What a run that was stopped left, and cannot be gone on with: the text says what to remove."""
    file, done = tmp_path / "cases.jsonl", tmp_path / "cases.batches"
    for lines, batches in (("", "x"), ("{", "1"), ("{}", "1"), ('{"id": 7}', "1"), ("[]", "1"), ('{"id": "x"}', "1")):
        file.write_text(lines)
        done.write_text(batches)
        with pytest.raises(StorageError, match=r"expected a run's own cases in .*jsonl, got: .*batches"):
            study(models, SelfStudy(texts=4), file, seed=1)


def test_an_encoder_cannot_write_its_own_data(models, tmp_path) -> None:
    """Self-study needs a sender that writes; questions need chat models."""
    bert = BertModel(BertConfig(vocab_size=300, hidden_size=32, num_hidden_layers=1, num_attention_heads=4))
    with pytest.raises(ConfigError, match="an encoder has no text of its own; give --data"):
        study(replace(models, sender=bert), SelfStudy(), tmp_path / "none.jsonl", seed=0)
    mute = replace(models, sender_tokenizer=make_tokenizer(300, template=None))
    with pytest.raises(ConfigError, match="two chat models"):
        study(mute, SelfStudy(kind="question"), tmp_path / "none.jsonl", seed=0)


# ---- the sender's states on disk


def test_states_are_computed_once_and_found_again(models, tmp_path, monkeypatch) -> None:
    """What the store gives is what the sender computes, in two bytes a number; a second store does not read again."""
    texts = [case.context for case in cases(0, 30)] + ["It was Mara. " * 100]  # the last one takes several windows
    reader = Reader(models, LAYERS, hyperparameters())
    StateStore(tmp_path, models, LAYERS, hyperparameters(), 1 << 30).fill(reader, texts)
    store = StateStore(tmp_path, models, LAYERS, hyperparameters(), 1 << 30)
    monkeypatch.setattr(Reader, "compute", lambda *_: pytest.fail("read again"))
    store.fill(reader, texts)
    kept, mask = Reader(models, LAYERS, hyperparameters(), store).states(texts)
    monkeypatch.undo()
    fresh, fresh_mask = reader.states(texts)
    assert torch.equal(fresh_mask, mask)
    assert fresh.dtype == kept.dtype
    assert torch.allclose(fresh * mask[:, None, :, None], kept * mask[:, None, :, None], rtol=2**-7, atol=1e-5)
    assert torch.equal(kept, kept.bfloat16().float())
    size = store.bytes_of(texts)
    assert 2 * 32 * len(LAYERS) * int(mask.sum()) == size
    assert size < sum(file.stat().st_size for file in store.folder.iterdir()) < 1.2 * size
    assert StateStore(tmp_path, models, (0, 1), hyperparameters(), 1 << 30).folder != store.folder
    other = replace(models, sender=make_model(len(models.sender_tokenizer), 32, seed=9))
    assert StateStore(tmp_path, other, LAYERS, hyperparameters(), 1 << 30).folder != store.folder


def test_states_in_half_precision_are_kept_as_they_are(models, tmp_path) -> None:
    """bfloat16 and float16 of a sender come back to the bit."""
    texts = sorted((case.context for case in cases(0, 5)), key=lambda t: (len(models.sender_tokenizer(t).input_ids), t))
    for dtype in (torch.bfloat16, torch.float16):
        halved = replace(models, sender=deepcopy(models.sender).to(dtype))
        store = StateStore(tmp_path, halved, LAYERS, hyperparameters(), 1 << 30)
        reader = Reader(halved, LAYERS, hyperparameters(), store)
        store.fill(reader, texts)
        fresh, mask = reader.compute(texts)
        assert dtype == fresh.dtype
        for text, states, length in zip(texts, fresh, mask.sum(1).long().tolist(), strict=True):
            assert torch.equal(states[:, :length], present(store.get(text)))


def test_the_store_is_bounded_and_does_without_what_it_lacks(models, tmp_path, monkeypatch) -> None:
    """No more bytes than the limit; what is not kept, or cannot be written, is computed when it is asked for."""
    texts = [case.context for case in cases(0, 40)]
    store = StateStore(tmp_path, models, LAYERS, hyperparameters(), 20_000)
    reader = Reader(models, LAYERS, hyperparameters(), store)
    store.fill(reader, texts)
    assert 0 < sum(file.stat().st_size for file in store.folder.iterdir()) < 24_000  # 20 kB and the names
    assert store.bytes_of(texts) > 20_000
    known = [store.get(text) is not None for text in texts]
    assert any(known)
    assert not all(known)
    mixed, mask = reader.states(texts)
    fresh, _ = Reader(models, LAYERS, hyperparameters()).states(texts)
    assert torch.allclose(fresh * mask[:, None, :, None], mixed * mask[:, None, :, None], rtol=2**-7, atol=1e-5)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ilcp.training.tensors.save_file", full)
    broken = StateStore(tmp_path / "full", models, LAYERS, hyperparameters(), 1 << 30)
    broken.fill(reader, texts)
    assert [] == list(broken.folder.iterdir())
    assert Reader(models, LAYERS, hyperparameters(), broken).states(texts)[0].shape == fresh.shape


def test_a_store_without_a_folder_or_with_a_damaged_shard_does_without(models, tmp_path) -> None:
    """Where the folder cannot be made, or a shard cannot be read back, the sender computes what is asked for."""
    texts = [case.context for case in cases(0, 4)]
    fresh, _ = Reader(models, LAYERS, hyperparameters()).states(texts)
    (tmp_path / "file").touch()
    store = StateStore(tmp_path / "file" / "states", models, LAYERS, hyperparameters(), 1 << 30)
    reader = Reader(models, LAYERS, hyperparameters(), store)
    store.fill(reader, texts)
    assert torch.equal(fresh, reader.states(texts)[0])
    store = StateStore(tmp_path, models, LAYERS, hyperparameters(), 1 << 30)
    reader = Reader(models, LAYERS, hyperparameters(), store)
    store.fill(reader, texts)
    for shard in store.folder.iterdir():
        shard.write_bytes(b"junk")
    assert torch.equal(fresh, reader.states(texts)[0])


def test_a_phrasebook_that_cannot_be_kept_or_read_is_a_storage_error(tmp_path) -> None:
    """No room, no such file, another file, words and vectors that are not as many: each text names the file."""
    book = Phrasebook({"a": 0, "b": 1}, torch.ones(2, 3), torch.ones(1, 3))
    file = tmp_path / "book"
    book.save(file)
    assert book.words == Phrasebook.load(file).words
    with pytest.raises(StorageError, match="expected room for"):
        book.save(tmp_path / "nowhere" / "book")
    save_file({"vectors": torch.ones(2, 3)}, tmp_path / "none")
    save_file({"vectors": torch.ones(2, 3), "places": torch.ones(1, 3)}, tmp_path / "more", metadata={"words": "a"})
    (tmp_path / "junk").write_bytes(b"junk")
    for name in ("nowhere", "none", "more", "junk"):
        with pytest.raises(StorageError, match=f"expected a phrasebook in .*{name}, got"):
            Phrasebook.load(tmp_path / name)


# ---- the loss and the loop


def test_the_memory_is_asked_for_its_context_early_in_the_run(models) -> None:
    """Reconstruction has its weight in the loss until its share of the run is over, and reaches the network."""
    wanted = hyperparameters(reconstruction_weight=0.5, reconstruction_share=0.3, blank_share=0.0)
    objective = Objective(models, wanted, Reader(models, LAYERS, wanted))
    batch = Batcher(models, wanted).batch(cases(0, 8), random.Random(0))
    assert 8 == len(batch.reconstruction)
    assert batch.reconstruction[0].answer == tuple(models.receiver_tokenizer(batch.texts[0]).input_ids)
    learner = network().train()
    early, late = (objective.terms(learner, batch, done=done) for done in (0.29, 0.31))
    assert "reconstruction" not in late
    parts = early["cross_entropy"] + 0.5 * early["reconstruction"]
    assert early["loss"].item() == pytest.approx(parts.item(), rel=1e-6)
    early["reconstruction"].backward()
    assert present(learner.projector.leave.weight.grad).abs().sum() > 0


def test_a_share_of_the_memories_is_trained_with_its_literals_beside_it(models) -> None:
    """Their rows are the prompt that a receiver would read; payloads of no sender, and texts without any, have none."""
    wanted = hyperparameters(literals_share=0.5, blank_share=0.25, contexts=64)
    coded = [replace(case, context=f"{case.context} Ticket INC-{1000 + n}.") for n, case in enumerate(cases(0, 60))]
    batch = Batcher(models, wanted).batch([*coded, *cases(60, 4)], random.Random(0))
    codec = VaeCodec.from_network(
        network(),
        identify(models.sender, models.sender_tokenizer),
        identify(models.receiver, models.receiver_tokenizer),
    )
    receiver = ilcp.Receiver(models.receiver, models.receiver_tokenizer, codec, allow_unmeasured=True)
    memory = ilcp.SoftPrompt(torch.zeros(4, 48))
    beside = []
    for row, text in zip(batch.rows, batch.texts, strict=True):
        literals = (f"INC-{text[-5:-1]}",)
        bare, told = (len(receiver.prompt(m, "Who?")) - 4 for m in (memory, memory.beside(literals)))
        beside.append(len(row.prefix + row.suffix) != bare)
        if beside[-1]:
            assert told == len(row.prefix + row.suffix)
            assert line_of(literals) in models.receiver_tokenizer.decode(row.suffix)
    assert not any(beside[:16])  # a quarter: nobody's payloads
    assert 12 <= sum(beside[16:60]) <= 32
    assert not any(beside[60:])


def test_a_share_of_the_contexts_is_also_asked_for_all_that_it_says(models) -> None:
    """Beside its other questions, up to tokens of its own; of a case without facts, and without a share, nothing is."""
    wanted = hyperparameters(telling_share=0.5, telling_tokens=9, answer_tokens=3, contexts=64, blank_share=0.0)
    said = [_stated(case) for case in cases(0, 60)]
    batch = Batcher(models, wanted).batch([*said, *cases(60, 4)], random.Random(0))
    asked = [row for row in batch.rows if row.question == TELL]
    assert 64 == len(batch.rows) - len(asked)
    assert 18 <= len(asked) <= 42
    assert len(asked) == len({row.context for row in asked})
    assert max(row.context for row in asked) < 60
    for row in asked:
        whole = answer_ids(models.receiver_tokenizer, present(telling(said[row.context])).answer, end=True)
        assert whole[:9] == row.answer
        before, behind = (models.receiver_tokenizer.decode(part) for part in (row.prefix, row.suffix))
        assert before.endswith("The note says:")
        assert "Say what the note says." in behind
    assert max(len(row.answer) for row in batch.rows if row.question != TELL) <= 3
    for share, count in ((0.0, 0), (1.0, 60)):
        rows = Batcher(models, replace(wanted, telling_share=share)).batch(said, random.Random(0)).rows
        assert count == sum(row.question == TELL for row in rows)


def test_literals_stand_beside_a_memory_that_is_asked_what_it_says(models) -> None:
    """The prompt is the one that a receiver would read."""
    wanted = hyperparameters(telling_share=1.0, literals_share=1.0, blank_share=0.0)
    said = _stated(replace(cases(0, 1)[0], context="Ticket INC-1234: it was Mara."))
    (row,) = (row for row in Batcher(models, wanted).batch([said], random.Random(0)).rows if row.question == TELL)
    codec = VaeCodec.from_network(
        network(),
        identify(models.sender, models.sender_tokenizer),
        identify(models.receiver, models.receiver_tokenizer),
    )
    receiver = ilcp.Receiver(models.receiver, models.receiver_tokenizer, codec, allow_unmeasured=True)
    memory = ilcp.SoftPrompt(torch.zeros(4, 48)).beside(("INC-1234",))
    assert line_of(("INC-1234",)) in models.receiver_tokenizer.decode(row.suffix)
    assert len(row.prefix) + 4 + len(row.suffix) == len(receiver.prompt(memory, TELL))


def test_what_a_case_says_is_told_in_its_agents_words_or_fact_by_fact() -> None:
    """All that it states and no remark; what is not said, or said again, is left out."""
    for dossier in case_files("test", 7, 3):
        question = present(telling(dossier))
        assert (TELL, "telling") == (question.text, question.kind)
        singles = [q.answer for q in dossier.questions if q.said and len(q.facts) == 1]
        assert singles
        assert all(answer in question.answer for answer in singles)
        rewrite = present(dossier.rewrite)
        assert rewrite.remark(0) not in question.answer
        assert question == telling(replace(dossier, questions=dossier.questions[::-1]))
        assert question.answer == question.answer.strip()
    who, where, when = ("who", "Mara"), ("where", "Bergen"), ("when", "not said")
    asked = (
        Question("Who?", "Mara", facts=(who,)),
        Question("Who was it?", "Mara", facts=(who,)),
        Question("Who is where?", "Mara, Bergen", "join", facts=(who, where)),
        Question("When?", "not said", "absent", facts=(when,)),
    )
    assert "who: Mara. where: Bergen." == present(telling(Case("x", "It.", asked))).answer
    assert telling(Case("x", "It.", asked[3:])) is None
    assert telling(Case("x", "It.", (Question("Who?", "Mara"),))) is None


def _stated(case: Case) -> Case:
    """Returns a one-fact document with that fact."""
    answer = case.questions[0].answer
    return replace(case, questions=(Question("Who?", answer, facts=(("who", answer),)),))


def test_rate_is_paid_above_what_is_free(models) -> None:
    """Free bits cost nothing; the allowance moves in a straight line over the run."""
    wanted = hyperparameters(rate_weight=0.01, free_bits=(10.0, 30.0), blank_share=0.0)
    objective = Objective(models, wanted, Reader(models, LAYERS, wanted))
    batch = Batcher(models, wanted).batch(cases(0, 8), random.Random(0))
    learner = network().train()
    for done, free in ((0.0, 10.0), (0.5, 20.0), (1.0, 30.0)):
        terms = objective.terms(learner, batch, done=done)
        assert terms["paid_bits"].item() == pytest.approx(max(0.0, terms["rate_bits"].item() - free), rel=1e-5)
        paid = terms["cross_entropy"] + 0.01 * terms["paid_bits"]
        assert terms["loss"].item() == pytest.approx(paid.item(), rel=1e-5)
    generous = replace(wanted, free_bits=(1e6, 1e6))
    assert 0 == Objective(models, generous, Reader(models, LAYERS, generous)).terms(learner, batch)["paid_bits"].item()


def test_the_clock_gives_every_part_its_time(models, tmp_path) -> None:
    """Shares add up to one, TensorBoard and the curve are written, and a clock that is not on counts nothing."""
    store = StateStore(tmp_path / "states", models, LAYERS, hyperparameters(), 1 << 30)
    wanted = hyperparameters(validate_every=2)
    result = fit(network(), models, cases, cases(10_000, 8), wanted, tmp_path, store=store, tensorboard=True)
    assert {"sender", "receiver", "codec"} == result.shares.keys()
    assert sum(result.shares.values()) == pytest.approx(1)
    assert all(share > 0.01 for share in result.shares.values())
    assert result.tokens_per_s > 0
    assert [file for file in (tmp_path / "tensorboard").iterdir() if file.stat().st_size > 500]
    picture = (tmp_path / "curve.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    clock = Clock()
    with clock("sender"):
        pass
    assert {"sender": 1.0} == clock.shares()


def test_a_need_beyond_the_machine_is_refused_before_the_start(models, tmp_path, monkeypatch) -> None:
    """The estimate counts the states and the checkpoints; with less room or memory than that nothing begins."""
    texts = [case.context for case in cases(0, 20)]
    store = StateStore(tmp_path, models, LAYERS, hyperparameters(), 1 << 30)
    found = estimate(models, network(), store, texts, tmp_path, hyperparameters())
    tokens = sum(len(models.sender_tokenizer(text).input_ids) for text in texts)
    assert tokens * len(LAYERS) * 32 * 2 == found.states_bytes
    trained = sum(4 * parameter.numel() for parameter in network().parameters())
    kept = sum(buffer.numel() * buffer.element_size() for buffer in network().buffers())
    assert (9 * trained + 3 * kept, 4 * trained + kept) == (found.checkpoint_bytes, found.training_bytes)
    assert found.program_bytes > 50e6  # Python and torch
    assert found.models_bytes + found.training_bytes + found.program_bytes == found.memory_bytes
    assert f"memory {found.memory_bytes / 1e6:,.0f} MB (both models" in str(found)
    usage = type("Usage", (), {"free": found.checkpoint_bytes})
    monkeypatch.setattr("ilcp.training.estimate.shutil.disk_usage", lambda _: usage)
    with pytest.raises(StorageError, match=r"MB of disk free at .*, got"):
        estimate(models, network(), store, texts, tmp_path, hyperparameters())
    monkeypatch.undo()
    memory = type("Memory", (), {"available": found.training_bytes - 1})
    monkeypatch.setattr("ilcp.training.estimate.psutil.virtual_memory", lambda: memory)
    with pytest.raises(ConfigError, match=r"MB of memory free for the codec in training, got .*smaller codec"):
        estimate(models, network(), store, texts, tmp_path, hyperparameters())


def test_a_norm_of_one_process_is_torchs_own() -> None:
    """Without others, the synchronised norm computes what BatchNorm1d does, in training and after."""
    torch.manual_seed(0)
    ours, theirs = SyncedNorm(6, affine=False), torch.nn.BatchNorm1d(6, affine=False)
    for _ in range(3):
        x = torch.randn(8, 6)
        assert torch.equal(theirs(x), ours(x))
    assert torch.equal(theirs.eval()(x), ours.eval()(x))


def test_a_network_for_any_two_models_reads_a_few_layers_far_apart(models) -> None:
    """Up to six layers from the embedding to the last; the widths are those of the models."""
    deep = make_model(len(models.sender_tokenizer), 32, layers=12)
    config = VaeCodec.untrained(deep, models.receiver, {}).config
    assert (0, 2, 5, 7, 10, 12) == config.sender_layers
    assert (32, 48, 80) == (config.sender_hidden, config.receiver_hidden, config.payload_bytes)
    with pytest.raises(ConfigError, match=r"sender_layers from 0 to 2 \(the last state\), got \(0, 3\)"):
        VaeCodec.untrained(models.sender, models.receiver, {"sender_layers": (0, 3)})


def test_lines_that_json_alone_would_not_refuse_are_refused(tmp_path) -> None:
    """Half a surrogate pair, a number of thousands of digits, brackets without end; but any line break in a string."""
    file = tmp_path / "cases.jsonl"
    for line, said in (
        (
            r'{"context": "\ud800", "question": "?", "answer": "a"}',
            "1: expected a text in 'context' of whole characters, got half",
        ),
        ('{"context": ' + "9" * 5000 + "}", "1: expected one JSON object per line"),
        ("[" * 200_000, "1: expected one JSON object per line"),
    ):
        file.write_text(line)
        with pytest.raises(ConfigError, match=said):
            list(read_jsonl(file))
    file.write_bytes('\ufeff{"context": "a\u2028b", "question": "?", "answer": "c"}\r\n'.encode())
    assert ["a\u2028b"] == [case.context for case in read_jsonl(file)]


def test_saving_leaves_other_folders_alone(tmp_path, small) -> None:
    """A folder that happens to be called like a draft keeps what is in it."""
    mine = tmp_path / "codec.draft" / "thesis.txt"
    mine.parent.mkdir()
    mine.write_text("all of it")
    ilcp.save(small.codec, tmp_path / "codec", card="# Mine")
    assert "all of it" == mine.read_text()
    assert small.codec.trained == ilcp.load(tmp_path / "codec").trained
    assert {"codec", "codec.draft"} == {folder.name for folder in tmp_path.iterdir()}


def test_a_disk_that_fills_up_as_a_codec_is_finished_is_a_storage_error(small, tmp_path, monkeypatch) -> None:
    """What comes beside weights and card, the log and the adapter, needs room too."""
    work = tmp_path / "work"
    work.mkdir()
    (work / "log.jsonl").touch()
    result: Any = SimpleNamespace(steps=1, minutes=1.0, tokens_per_s=1.0, shares={}, step_s=1.0, receiver_pass_s=1.0)
    job: Any = SimpleNamespace(
        config=SimpleNamespace(work=work, out=tmp_path / "codec", seed=1, to_dict=dict),
        hyperparameters=SimpleNamespace(to_dict=dict),
        cases=SimpleNamespace(training=(), validation=(), test=()),
        models=SimpleNamespace(adapter="an adapter"),
        made_by={},
    )
    monkeypatch.setattr(finish_module, "write_card", lambda *_: "# A card")

    def full(error: Exception):
        def write(*_):
            raise error

        return write

    room = OSError(28, "No space left on device")
    for owner, name, error in (
        (finish_module, "save_adapter", SafetensorError("I/O error: No space left on device")),
        (finish_module, "save_adapter", room),
        (finish_module.shutil, "copyfile", room),
    ):
        monkeypatch.setattr(owner, name, full(error))
        with pytest.raises(
            StorageError, match=r"expected room for the codec in .*, got: .*No space left.*; free space"
        ):
            finish_module.finish(job, copy(small.codec), result)
    assert not (tmp_path / "codec").exists()


def test_calibration_looks_at_a_bounded_sample(models, monkeypatch) -> None:
    """Of the contexts as many as the limit allows, of the receiver's vocabulary as many rows: large models fit."""
    seen: list[tuple[int, int]] = []
    learner = network()
    note = noting(lambda *_: None, seen, lambda states, mask, memory: (int(mask.sum()), len(memory)))
    monkeypatch.setattr(learner, "calibrate", note)
    monkeypatch.setattr("ilcp.training.objective.CALIBRATION_TOKENS", 100)
    calibrate(learner, models, cases(0, 40), hyperparameters())
    tokens, rows = seen[0]
    assert 50 < tokens <= 100
    assert 50 < rows <= 100
