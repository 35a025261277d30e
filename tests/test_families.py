"""Every family, in float32 and bfloat16: what ``make support`` writes into SUPPORT.md.

Whether memory is injected rightly is judged by memory made of real token embeddings: it has to do, to the last bit
where the shapes are alike, what the same tokens do as text.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import (
    BertConfig,
    BertLMHeadModel,
    LlamaForCausalLM,
    LlamaModel,
    MambaConfig,
    MambaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

import ilcp
from ilcp import Memory, Receiver, SoftPrompt, TextMemory
from ilcp.errors import ConfigError
from ilcp.identity import ANY
from ilcp.models.fingerprint import identify
from ilcp.models.forward import PADDING, answer_logits, block_mask, embed, embedding_norm
from ilcp.models.packing import packs
from ilcp.models.prompt import layout, text_ids
from ilcp.models.support import ENCODERS, TESTED, require_receiver, require_sender
from ilcp.training.batch import Models, Row, frozen
from ilcp.training.packed import memory_logits, text_logits
from ilcp_codecs.text import PlainCodec
from ilcp_codecs.vae import VaeCodec, VaeConfig, VaeNetwork
from tests.families import FAMILIES, SLIDING_TOKENS, build
from tests.helpers import make_model, make_tokenizer, present
from tests.support_matrix import COLUMNS, DTYPES, HEAD, families_of

DOCUMENTS = (
    "The ticket is owned by Mara. The affected region is Bergen.",
    "Nobody knows.",
    "Jonas saw it first, in Oslo, before the certificate of the gateway expired; the root cause was expiry.",
)
QUESTIONS = ("Which region is affected?", "Who?", "What was the root cause?")
TOKENIZER = make_tokenizer(300)
DECODERS = [name for name, family in FAMILIES.items() if family.receiver]
both = pytest.mark.parametrize("dtype", [getattr(torch, name) for name in DTYPES], ids=DTYPES)
every = pytest.mark.parametrize("family", FAMILIES)
decoders = pytest.mark.parametrize("family", DECODERS)


@pytest.fixture(scope="session", autouse=True)
def version(record_testsuite_property) -> None:
    """Which transformers the outcomes are of."""
    import transformers

    record_testsuite_property("transformers", transformers.__version__)


def receiver_of(family: str, dtype: torch.dtype) -> Receiver:
    """A receiver of the family, with a codec that fits every model."""
    return Receiver(build(family, len(TOKENIZER), dtype), TOKENIZER, PlainCodec(), allow_unmeasured=True)


def spelled(model: Any, text: str) -> Memory:
    """Memory made of the text's own embeddings."""
    return SoftPrompt(embed(model, TOKENIZER(text, add_special_tokens=False).input_ids))


def padded(rows: list[tuple[int, ...]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids, mask and positions, ``"rows tokens"``, padded on the left with the tokenizer's padding."""
    longest = max(map(len, rows))
    ids = torch.tensor([[TOKENIZER.pad_token_id] * (longest - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    return ids, mask, (mask.cumsum(1) - 1).clamp(min=0)


def written(model: Any, rows: list[tuple[int, ...]], tokens: int) -> list[str]:
    """What transformers itself answers greedily to prompts of token ids."""
    ids, mask, _ = padded(rows)
    out = model.generate(ids, attention_mask=mask, max_new_tokens=tokens, do_sample=False, pad_token_id=1)
    return [text.strip() for text in TOKENIZER.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)]


def continued(model: Any, row: tuple[int, ...], held: int, tokens: int) -> str:
    """What transformers itself answers to a prompt of ids whose first ``held`` lie in its cache."""
    ids = torch.tensor([row])
    with torch.no_grad():
        cache = model(input_ids=ids[:, :held], use_cache=True).past_key_values
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        past_key_values=cache,
        max_new_tokens=tokens,
        do_sample=False,
        pad_token_id=1,
    )
    return str(TOKENIZER.decode(out[0, len(row) :], skip_special_tokens=True)).strip()


@both
@every
def test_sender(family: str, dtype: torch.dtype) -> None:
    """A text, its ids and a finished forward give one message, from the states that a plain forward gives."""
    model = build(family, len(TOKENIZER), dtype)
    require_sender(model)
    torch.manual_seed(0)
    config = VaeConfig((0, 1, 2), 32, 48, slots=4, dims=16, prefixes=(2, 8), width=32, heads=4, projector_width=32)
    codec = VaeCodec.from_network(VaeNetwork(config), identify(model, TOKENIZER), ANY)
    sender = ilcp.Sender(model, TOKENIZER, codec)
    ids = torch.tensor([TOKENIZER(DOCUMENTS[2]).input_ids])
    with torch.no_grad():
        outputs = model(input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=True)
    expected = torch.stack([states[0] for states in outputs.hidden_states]).float()
    assert torch.allclose(expected, present(sender.read(DOCUMENTS[2]).states).float(), atol=1e-4)
    messages = {sender.encode(source) for source in (DOCUMENTS[2], ids, outputs)}
    assert 1 == len(messages)
    assert messages != {sender.encode(DOCUMENTS[0])}


@both
@every
def test_receiver(family: str, dtype: torch.dtype, record_property) -> None:
    """Memory of a text's own embeddings gives the text's logits to the last bit, alone and padded in a batch."""
    if not FAMILIES[family].receiver:
        with pytest.raises(ConfigError, match="an encoder can be a sender only"):
            require_receiver(build(family, len(TOKENIZER), dtype))
        record_property("cell", "refused: an encoder answers nothing")
        return
    receiver = receiver_of(family, dtype)
    model = receiver.model
    asked = list(zip(DOCUMENTS, QUESTIONS, strict=True))
    prompts = [receiver.prompt(spelled(model, document), question) for document, question in asked]
    rows = [text_ids(TOKENIZER, document, question) for document, question in asked]
    assert max(map(len, rows)) > 2 * SLIDING_TOKENS
    answers = [[7, 8, 9], [10], [11, 12]]
    with torch.no_grad():
        for prompt, row in zip(prompts, rows, strict=True):
            by_ids = model(input_ids=torch.tensor([row])).logits
            assert torch.equal(by_ids, model(inputs_embeds=prompt.unsqueeze(0)).logits)
        ids, mask, positions = padded([(*row, *answer) for row, answer in zip(rows, answers, strict=True)])
        by_ids = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits
        logits, labels = answer_logits(model, prompts, answers)
    for index, answer in enumerate(answers):
        assert answer == labels[index][labels[index] != PADDING].tolist()
        assert torch.equal(by_ids[index, -len(answer) - 1 : -1].float(), logits[index, -len(answer) :])


@both
@decoders
def test_generate(family: str, dtype: torch.dtype) -> None:
    """Greedy answers by memory are transformers' own to the same text, alone and in a batch of different memories."""
    receiver = receiver_of(family, dtype)
    asked = list(zip(DOCUMENTS, QUESTIONS, strict=True))
    rows = [text_ids(TOKENIZER, document, question) for document, question in asked]
    items = [(spelled(receiver.model, document), question) for document, question in asked]
    alone = {} if dtype == torch.float32 else {"do_sample": False}  # a packed pass rounds otherwise in half precision
    together = receiver.answers(items, max_new_tokens=8, **alone)
    assert written(receiver.model, rows, 8) == together
    assert 3 == len(set(together))
    for row, item in zip(rows, items, strict=True):
        assert written(receiver.model, [row], 8) == [receiver.generate(*item, max_new_tokens=8)]


@both
@decoders
def test_packed_training(family: str, dtype: torch.dtype) -> None:
    """Many questions behind one memory, or behind one text, in one sequence have the logits of separate prompts, in
    training's attention and in the model's own."""
    model = build(family, len(TOKENIZER), dtype)
    models = Models(make_model(300), TOKENIZER, model, TOKENIZER)
    generator = torch.Generator().manual_seed(0)
    memory = torch.randn(2, 3, 32, generator=generator) * embedding_norm(model) / 32**0.5
    asked = (*QUESTIONS, "Is it?")
    places = [layout(TOKENIZER, question) for question in asked]
    rows = [
        Row(context, place.prefix, place.suffix, answer, question)
        for context, place, answer, question in zip(
            (0, 0, 1, 0), places, ((5, 6, 7), (8,), (9, 10), (11, 12)), asked, strict=True
        )
    ]
    texts = [DOCUMENTS[row.context] for row in rows]  # of different length
    assert sum(len(row.suffix + row.answer) for row in rows if row.context == 0) > 2 * SLIDING_TOKENS

    def both_ways() -> None:
        by_memory = [
            torch.cat([embed(model, row.prefix), memory[row.context].to(dtype), embed(model, row.suffix)])
            for row in rows
        ]
        by_text = [embed(model, text_ids(TOKENIZER, text, row.question)) for text, row in zip(texts, rows, strict=True)]
        for (packed, labels), prompts in (
            (memory_logits(models, rows, memory), by_memory),
            (text_logits(models, rows, texts), by_text),
        ):
            for index, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
                alone, answer = answer_logits(model, [prompt], [row.answer])
                known = labels[index] != PADDING
                assert torch.equal(answer[0], labels[index][known])
                assert torch.allclose(alone[0], packed[index][known], atol=1e-4 if dtype == torch.float32 else 0.1)

    with torch.no_grad():
        both_ways()
        with frozen(models):
            both_ways()


@both
@decoders
def test_packed_answers(family: str, dtype: torch.dtype, monkeypatch) -> None:
    """Questions that share the reading of their memory, text or nothing get the scores and answers of separate prompts,
    whatever the lengths and the order."""
    receiver = receiver_of(family, dtype)
    memories = (spelled(receiver.model, DOCUMENTS[0]), TextMemory(DOCUMENTS[2]), None)
    asked = [(memory, question) for question in (*QUESTIONS, "Is it?") for memory in memories]
    items = [(*pair, answer) for pair, answer in zip(asked, ("Mara", "unknown", "in Oslo, of course") * 4, strict=True)]
    assert packs(receiver.model)
    packed, answers = receiver.score(items), receiver.answers(asked, max_new_tokens=8)
    monkeypatch.setattr("ilcp.handoff.receiver.packs", lambda model: False)
    for ours, alone in zip(packed, receiver.score(items), strict=True):
        assert alone.token_nats == pytest.approx(ours.token_nats, abs=1e-3 if dtype == torch.float32 else 0.3)
    if dtype == torch.float32:  # in half precision rounding decides between tokens of a random model
        assert receiver.answers(asked, max_new_tokens=8) == answers
        assert len(set(answers)) > 8


@decoders
def test_packed_answers_end_one_by_one(family: str, monkeypatch) -> None:
    """Answers of any length are those of separate prompts, while sequences whose answers have ended drop out."""
    receiver = receiver_of(family, torch.float32)
    monkeypatch.setattr(receiver.model.generation_config, "eos_token_id", list(range(1, 300, 6)))
    asked = [(TextMemory(document), question) for question in QUESTIONS for document in DOCUMENTS]
    packed = receiver.answers(asked, max_new_tokens=16)
    assert len(set(map(len, packed))) > 3
    monkeypatch.setattr("ilcp.handoff.receiver.packs", lambda model: False)
    assert receiver.answers(asked, max_new_tokens=16) == packed


@both
@decoders
def test_cache(family: str, dtype: torch.dtype) -> None:
    """One pre-filled memory serves several questions, with the answers of no cache, and stays as it was.

    In half precision a pass in two parts rounds otherwise, so that there it is held against the text's own cache.
    """
    receiver = receiver_of(family, dtype)
    memory = spelled(receiver.model, DOCUMENTS[2])
    cache = receiver.prefill(memory)
    before = [(layer.keys.clone(), layer.values.clone()) for layer in cache.layers]
    assert cache.get_seq_length() > 2 * SLIDING_TOKENS
    for question in (*QUESTIONS, QUESTIONS[0]):
        if dtype == torch.float32:
            expected = receiver.generate(memory, question, max_new_tokens=6)
        else:
            expected = continued(receiver.model, text_ids(TOKENIZER, DOCUMENTS[2], question), cache.get_seq_length(), 6)
        assert expected == receiver.generate(memory, question, max_new_tokens=6, cache=cache)
    for (keys, values), layer in zip(before, cache.layers, strict=True):
        assert torch.equal(keys, layer.keys)
        assert torch.equal(values, layer.values)


def test_the_table_of_families_is_the_tested_one() -> None:
    """``ilcp.models.support`` lets pass unchecked what these tests go through, and nothing else."""
    assert set(TESTED) == set(DECODERS)
    assert set(ENCODERS) == set(FAMILIES) - set(DECODERS)
    assert {build(family, 30).config.model_type for family in FAMILIES} == set(FAMILIES)


def test_the_support_table_has_these_families_and_columns() -> None:
    """SUPPORT.md, which ``make support`` writes, cannot silently lack a family, a column or a version."""
    text = Path("SUPPORT.md").read_text(encoding="utf-8")
    for pins in ("constraints.txt", "constraints-4.txt"):
        version = Path(pins).read_text(encoding="utf-8").partition("\ntransformers==")[2].split()[0]
        for dtype in DTYPES:
            assert list(FAMILIES) == families_of(text, version, dtype)
    for column, test in COLUMNS.items():
        assert f"| {column} |" in text
        assert callable(globals()[test])
    assert text.startswith(HEAD)
    assert "failed" not in text
    assert "not run" not in text


def test_the_mask_of_packed_prompts_lies_where_they_lie() -> None:
    """Masks of full and of sliding layers are made on the device of their arguments, whatever the default one is."""
    segment, position = torch.tensor([[-1, -1, 0, 1]]), torch.tensor([[0, 1, 2, 2]])
    here = block_mask(build("gemma2", 300), segment, position, torch.bfloat16)
    there = block_mask(build("gemma2", 300), segment.to("meta"), position.to("meta"), torch.bfloat16)
    assert isinstance(here, dict)
    assert isinstance(there, dict)
    for kind, mask in here.items():
        assert mask.device == segment.device
        assert there[kind].is_meta
        assert (mask.shape, mask.dtype) == (there[kind].shape, there[kind].dtype)


def test_what_is_not_known_to_be_packed_rightly_is_asked_one_by_one() -> None:
    """Families that are not tested, layers of other kinds, and attention that makes its own mask are not packed."""
    assert packs(build("llama", 50))
    for name, value in (
        ("model_type", "another"),
        ("layer_types", ["full_attention", "chunked_attention"]),
        ("_attn_implementation", "flash_attention_2"),
    ):
        model = build("llama", 50)
        object.__setattr__(model.config, name, value)
        assert not packs(model)


def test_a_scoring_pass_keeps_no_keys_and_values() -> None:
    """Nothing comes after the one pass that scores answers, so nothing is kept for it."""
    model, kept = build("llama", 300), []
    model.register_forward_hook(lambda _module, _args, outputs: kept.append(outputs.past_key_values))
    with torch.no_grad():
        answer_logits(model, [embed(model, [5, 6, 7])], [[8]])
    assert [None] == kept


def test_what_cannot_receive_is_refused_by_name() -> None:
    """Each refusal names the model's class, says what it lacks and what to do."""
    tiny = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, vocab_size=50)
    t5 = T5ForConditionalGeneration(T5Config(vocab_size=50, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4))
    mamba = MambaForCausalLM(MambaConfig(vocab_size=50, hidden_size=32, num_hidden_layers=1))
    refused = [
        (build("bert", 50), "BertModel, which generates nothing: an encoder can be a sender only; load a decoder"),
        (LlamaModel(build("llama", 50).config), "LlamaModel, which generates nothing.*AutoModelForCausalLM"),
        (t5, "T5ForConditionalGeneration: t5 is an encoder-decoder.*take a decoder"),
        (mamba, "MambaForCausalLM: mamba is a recurrent.*take a decoder with attention"),
        (BertLMHeadModel(BertConfig(**tiny, initializer_range=0.3)), "BertLMHeadModel .*a later token changes earlier"),
    ]
    for model, text in refused:
        with pytest.raises(ConfigError, match=text):
            Receiver(model, TOKENIZER, PlainCodec(), allow_unmeasured=True)
    with pytest.raises(ConfigError, match=r"T5ForConditionalGeneration.*pass its encoder \(model.get_encoder\(\)\)"):
        require_sender(t5)
    with pytest.raises(ConfigError, match=r"states that the model reports, got MambaForCausalLM .*layer 0 differ"):
        require_sender(mamba)


def test_offloaded_weights_are_refused_by_name() -> None:
    """A receiver whose weights lie elsewhere is refused with the first such weight, tested family or not."""
    with pytest.raises(
        ConfigError, match=r"LlamaForCausalLM with model\.embed_tokens\.weight on the meta device: it is"
    ):
        Receiver(build("llama", 300).to("meta"), TOKENIZER, PlainCodec(), allow_unmeasured=True)


class Blind(LlamaForCausalLM):
    """A decoder without a way in for embeddings."""

    def forward(self, input_ids=None, attention_mask=None):
        """Ids only."""
        return super().forward(input_ids=input_ids, attention_mask=attention_mask)


class Doubled(LlamaForCausalLM):
    """A decoder that reads more of a token than its embedding: the double."""

    def forward(self, input_ids=None, inputs_embeds=None, **rest):
        """Ids count double."""
        inputs_embeds = 2 * self.get_input_embeddings()(input_ids) if inputs_embeds is None else inputs_embeds
        return super().forward(inputs_embeds=inputs_embeds, **rest)


@both
def test_an_untested_family_has_to_pass_the_check(dtype: torch.dtype) -> None:
    """A decoder that the table lacks is admitted if embeddings count as their tokens, else refused with the difference;
    the check leaves the model's mode as it was."""
    config = build("llama", 50).config
    assert config.model_type in TESTED
    config.model_type = "novel"
    for kind, text in (
        (Blind, "forward takes inputs_embeds, got Blind"),
        (Doubled, r"got Doubled \(model type novel.*differ by \d"),
    ):
        with pytest.raises(ConfigError, match=text):
            require_receiver(kind(config).to(dtype))
    model = LlamaForCausalLM(config).to(dtype).train()
    require_receiver(model)
    require_sender(model)
    assert model.training


def test_a_model_in_peft_counts_as_what_it_wraps() -> None:
    """An adapted Llama receives as a Llama does: memory of real embeddings answers as the text does."""
    adapted = get_peft_model(build("llama", 300), LoraConfig(target_modules=["q_proj"], init_lora_weights=False)).eval()
    receiver = Receiver(adapted, TOKENIZER, PlainCodec(), allow_unmeasured=True)
    memory = spelled(adapted, DOCUMENTS[0])
    row = text_ids(TOKENIZER, DOCUMENTS[0], "Who?")
    assert written(adapted, [row], 8) == [receiver.generate(memory, "Who?", max_new_tokens=8)]
    assert receiver.generate(memory, "Who?", max_new_tokens=8) == receiver.generate(
        memory, "Who?", max_new_tokens=8, cache=receiver.prefill(memory)
    )
    (score,) = receiver.score([(memory, "Who?", "Mara")])
    assert score == receiver.score([(TextMemory(DOCUMENTS[0]), "Who?", "Mara")])[0]
    tuned = get_peft_model(build("llama", 300), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(ConfigError, match="got PeftModelForCausalLM with PromptTuningConfig: it puts virtual tokens"):
        require_receiver(tuned)
    with pytest.raises(ConfigError, match="BertModel"):
        require_receiver(get_peft_model(build("bert", 300), LoraConfig(target_modules=["query"])))


def test_norms_are_those_of_the_embedding_module() -> None:
    """Gemma 3 scales inside its embedding module: the norm that memories are held against is the scaled one."""
    model = build("gemma3_text", 300)
    raw = float(model.get_input_embeddings().weight.detach().norm(dim=-1).mean())
    assert embedding_norm(model) == pytest.approx(raw * 32**0.5, rel=1e-3)
    large = make_model(10_000)
    exact = float(large.get_input_embeddings().weight.detach().norm(dim=-1).mean())
    assert embedding_norm(large) == pytest.approx(exact, rel=0.01)


def test_a_missing_tokenizer_is_refused() -> None:
    """None in place of the tokenizer is named, with where to get it."""
    with pytest.raises(ConfigError, match=r"expected the receiver's tokenizer, got None: load it"):
        Receiver(make_model(300), None, PlainCodec(), allow_unmeasured=True)
