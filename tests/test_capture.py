"""What a sender takes in: every family and kind of source, live calls of its model, and the memory that this takes."""

import asyncio
import runpy
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from threading import Event, Thread, get_ident
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import (
    StoppingCriteria,
    StoppingCriteriaList,
    T5Config,
    T5ForConditionalGeneration,
    TextIteratorStreamer,
)

from ilcp import Sender
from ilcp.codec.context import Context
from ilcp.errors import ConfigError, EncodeError
from ilcp.models.capture import STEP
from ilcp.models.reading import _blocks, backbone, capture_batch, read_ids, read_outputs, window_tokens
from ilcp.tasks import case_files
from ilcp_codecs.text import PlainCodec
from tests.families import FAMILIES, SLIDING_TOKENS, build
from tests.helpers import EXAMPLES, make_model, make_tokenizer, present, sender_of

CASES = list(case_files("validation", 5, 4, facts=2))
TEXTS = [CASES[0].context, CASES[1].context[:40], CASES[2].context[:90], CASES[3].context[:41]]
MESSAGES = [{"role": "user", "content": TEXTS[2]}, {"role": "assistant", "content": "Noted."}]
LAYERS = (0, 1, 2)
DTYPES = (torch.float32, torch.bfloat16)
GENERATORS = [family for family, known in FAMILIES.items() if known.receiver]


@pytest.fixture(scope="module")
def tokenizer():
    """One tokenizer for all families; tests that pad on the left take a copy."""
    return make_tokenizer(300)


@pytest.fixture(scope="module")
def of_family(tokenizer) -> Callable[..., Sender]:
    """Senders by family and dtype; each is made once."""
    made: dict[Any, Sender] = {}

    def get(family: str, dtype: torch.dtype = torch.float32) -> Sender:
        if (family, dtype) not in made:
            made[family, dtype] = sender_of(build(family, len(tokenizer), dtype), tokenizer)
        return made[family, dtype]

    return get


@pytest.fixture
def llama(of_family) -> Sender:
    """The family that most tests of a mechanism need no other than."""
    return of_family("llama")


def rows_of(sender: Sender, texts: list[str], side: str) -> SimpleNamespace:
    """The texts as one padded batch, and the ids of each alone."""
    alone = [sender.tokenizer(text).input_ids for text in texts]
    longest = max(map(len, alone))
    pads = [[1] * (longest - len(ids)) for ids in alone]
    ids = [pad + row if side == "left" else row + pad for row, pad in zip(alone, pads, strict=True)]
    ones = [[0] * len(pad) + [1] * len(row) for row, pad in zip(alone, pads, strict=True)]
    mask = ones if side == "left" else [row[::-1] for row in ones]
    return SimpleNamespace(ids=torch.tensor(ids), mask=torch.tensor(mask), alone=alone)


def hooks_of(model: torch.nn.Module) -> int:
    """Counts the hooks of ilcp on all modules of a model, and its replaced methods; transformers' own hooks stay."""
    modules = list(model.modules())
    hooks = [hook for m in modules for hook in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())]
    replaced = sum(name in vars(module) for module in modules for name in ("generate", STEP))
    return replaced + sum("transformers" not in getattr(hook, "func", hook).__module__ for hook in hooks)


def close(expected: torch.Tensor, actual: torch.Tensor, atol: float = 1e-4) -> bool:
    """Equal in shape and, but for rounding, in value."""
    return expected.shape == actual.shape and torch.allclose(expected, actual, atol=atol)


# --- states ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_layers_are_transformers_hidden_states(of_family, family: str, dtype: torch.dtype) -> None:
    """Layer k is ``hidden_states[k]`` to the bit, the last one ``last_hidden_state``, in the model's own dtype."""
    sender = of_family(family, dtype)
    batch = rows_of(sender, TEXTS[:2], "right")
    with torch.no_grad():
        outputs = backbone(sender.model)(batch.ids, attention_mask=batch.mask, output_hidden_states=True)
    states = capture_batch(sender.model, batch.ids, batch.mask, (2, 0, 1))
    assert len(TEXTS[0]) > SLIDING_TOKENS
    assert dtype == states.dtype
    assert not states.requires_grad
    assert torch.equal(torch.stack([outputs.hidden_states[layer] for layer in (2, 0, 1)], dim=1), states)
    assert torch.equal(outputs.last_hidden_state, states[:, 0])


def blocks_run(model: torch.nn.Module) -> list[int]:
    """A list that the number of each block joins when it has run."""
    ran: list[int] = []
    for number, block in enumerate(_blocks(backbone(model))):
        block.register_forward_hook(lambda *_, number=number: ran.append(number))
    return ran


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pass_ends_with_the_uppermost_layer_that_is_read(tokenizer, family: str) -> None:
    """The blocks above it are never run, in no window; what is read has the very bits of a whole pass."""
    sender = sender_of(build(family, len(tokenizer), layers=4), tokenizer)
    ran = blocks_run(sender.model)
    batch = rows_of(sender, TEXTS[:2], "right")
    with torch.no_grad():
        outputs = backbone(sender.model)(batch.ids, attention_mask=batch.mask, output_hidden_states=True)
    for layers, blocks in (((2, 0), [0, 1]), ((0,), []), ((3, 3), [0, 1, 2]), ((1, 4), [0, 1, 2, 3])):
        ran.clear()
        states = capture_batch(sender.model, batch.ids, batch.mask, layers)
        assert torch.equal(torch.stack([outputs.hidden_states[layer] for layer in layers], dim=1), states)
        assert blocks == ran
    ran.clear()
    _, windows = read_ids(sender.model, [5, 6, 7] * 200, (0, 2))
    assert windows > 1
    assert [0, 1] * windows == ran


def test_who_waits_for_the_end_of_a_pass_gets_it(tokenizer) -> None:
    """Somebody's hook and a configuration that reports are why a pass runs to its end; no hook remains."""
    sender = sender_of(build("llama", len(tokenizer), layers=4), tokenizer)
    ran, before = blocks_run(sender.model), hooks_of(sender.model)
    heard = []
    handle = backbone(sender.model).register_forward_hook(lambda *_: heard.append(1))
    sender.read(TEXTS[0])  # the new hook first hears the sentence by which the model is known
    heard.clear()
    sender.read(TEXTS[0])
    handle.remove()
    assert [1] == heard
    sender.model.set_attn_implementation("eager")  # which a model needs that reports its attention
    for name in ("output_hidden_states", "output_attentions"):
        setattr(sender.model.config, name, True)
        for _ in range(2):  # what reports hooks itself in, at its first pass
            sender.read(TEXTS[0])
        ran.clear()
        sender.read(TEXTS[0])
        setattr(sender.model.config, name, False)
        assert [0, 1, 2, 3] == ran
    sender.read(TEXTS[0])
    ran.clear()
    sender.read(TEXTS[0])
    assert [0, 1] == ran
    assert before == hooks_of(sender.model)


def test_another_threads_call_is_neither_cut_short_nor_read(tokenizer) -> None:
    """While one thread reads with a model, another's pass of it runs to its end and leaves nothing in what is read."""
    sender = sender_of(build("llama", len(tokenizer), layers=4), tokenizer)
    model, mine, answers = sender.model, get_ident(), []
    ids = torch.tensor([[9, 8, 7]])
    expected, alone = model(ids).logits, present(sender.read(TEXTS[0]).states)

    def meanwhile(*_: Any) -> None:
        if get_ident() == mine:
            thread = Thread(target=lambda: answers.append(model(ids).logits))
            thread.start()
            thread.join()

    handle = _blocks(backbone(model))[1].register_forward_hook(meanwhile)
    sender.read(TEXTS[1])  # the new hook first hears the sentence by which the model is known
    answers.clear()
    assert torch.equal(alone, present(sender.read(TEXTS[0]).states))
    handle.remove()
    assert 1 == len(answers)
    assert torch.equal(expected, answers[0])


@pytest.mark.parametrize("attention", ["default", "eager"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_padding_does_not_change_states(of_family, family: str, side: str, attention: str, monkeypatch) -> None:
    """Read together, padded on either side, every text has the states that it has alone, in the order given."""
    sender = of_family(family)
    sources = [*TEXTS, sender.tokenizer(TEXTS[2]).input_ids[3:], MESSAGES]
    before = sender.model.config._attn_implementation
    sender.tokenizer.padding_side = side
    sender.model.set_attn_implementation(before if attention == "default" else attention)
    monkeypatch.setattr(sender._known, "require", lambda *_: None)  # a kernel without soft-capping is another function
    try:
        alone = [sender.read(source) for source in sources]
        together = sender.read_batch(sources, batch=4)
    finally:
        sender.tokenizer.padding_side = "right"
        sender.model.set_attn_implementation(before)
    assert [context.text for context in alone] == [context.text for context in together]
    assert all(close(a.states, b.states) for a, b in zip(alone, together, strict=True))


def test_a_batch_of_messages_is_that_of_each_source(llama, monkeypatch) -> None:
    """``encode_batch`` gives each source's message; sources of like length share a pass, a long one is read alone."""
    sources = [*TEXTS, " ".join(TEXTS) * 2, TEXTS[0]]
    expected = [llama.encode(source, payload_bytes=4) for source in sources]
    shapes = []
    run = llama.model.model.forward

    @wraps(run)
    def counted(*args: Any, **kwargs: Any) -> Any:
        shapes.append(tuple(kwargs["input_ids"].shape))
        return run(*args, **kwargs)

    monkeypatch.setattr(llama.model.model, "forward", counted)
    llama.read(TEXTS[0])  # the new method first hears the sentence by which the model is known
    shapes.clear()
    assert expected == llama.encode_batch(sources, batch=2, payload_bytes=4)
    lengths = sorted(len(llama.tokenizer(source).input_ids) for source in sources)
    window = window_tokens(llama.model)
    assert lengths[-1] > window
    assert [(2, lengths[1]), (2, lengths[3]), (1, lengths[4])] == shapes[:3]
    windows = [rows for rows, _ in shapes[3:]]
    assert len(windows) > 1
    assert [1] * llama.read(sources[4]).windows == windows


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_is_padded_on_the_right(llama, side: str, monkeypatch) -> None:
    """The shorter text's padding stands behind it, whatever the tokenizer does."""
    masks = []
    monkeypatch.setattr(llama.tokenizer, "padding_side", side)
    handle = llama.model.model.register_forward_pre_hook(
        lambda _, __, kwargs: masks.append(kwargs["attention_mask"]), with_kwargs=True
    )
    llama.read([5])
    masks.clear()
    llama.read_batch([[5, 6, 7], [8]])
    handle.remove()
    assert [[[1, 0, 0], [1, 1, 1]]] == [mask.tolist() for mask in masks]


def test_a_batch_names_what_is_wrong_with_it(llama) -> None:
    """One source in place of a list, an impossible size, and each bad source by its index."""
    for single in ("a text", torch.tensor([5, 6]), MESSAGES[0]):
        with pytest.raises(EncodeError, match=r"expected a list of sources.*put one source into a list"):
            llama.encode_batch(single)
    with pytest.raises(ConfigError, match="at least 1 source, got 0"):
        llama.read_batch(TEXTS, batch=0)
    for bad, fragment in (
        (" ", "empty"),
        ([99_999], "does not belong"),
        ([{"role": "user"}], "message 0 without content"),
    ):
        with pytest.raises(EncodeError, match=f"source 1: .*{fragment}"):
            llama.encode_batch([TEXTS[0], bad])
    assert [] == llama.encode_batch([])


def test_windows_are_stitched_where_the_documentation_says(llama) -> None:
    """Of each overlap the earlier window keeps the first half and the later one the second."""
    ids = (llama.tokenizer(" ".join(TEXTS)).input_ids * 9)[: 256 + 192 + 100]
    states, windows = read_ids(llama.model, ids, LAYERS)
    pieces = []
    for start, first, last in ((0, 0, 224), (192, 32, 224), (384, 32, 164)):
        row = torch.tensor([ids[start : start + 256]])
        pieces.append(capture_batch(llama.model, row, torch.ones_like(row), LAYERS)[0, :, first:last])
    assert 3 == windows
    assert len(ids) == states.shape[1]
    assert torch.equal(torch.cat(pieces, dim=1), states)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_window_is_the_configurations(of_family, family: str) -> None:
    """Every family's configuration says how much it reads at once, whatever it calls that."""
    assert 256 == window_tokens(of_family(family).model)


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_a_codec_takes_states_in_half_precision(of_family, family: str) -> None:
    """bfloat16 states are handed to the codec as they are, and give the message of the same states in float32."""
    sender = of_family(family, torch.bfloat16)
    context = sender.read(TEXTS[0])
    assert torch.bfloat16 == context.states.dtype
    assert sender.codec.encode(context) == sender.codec.encode(Context(states=context.states.float()))
    assert sender.encode(context) == sender.encode(TEXTS[0])


def test_layers_that_the_model_has_not_are_refused(llama) -> None:
    """A layer beyond the last is named, and so is a model whose blocks are not one stack."""
    row = torch.tensor([[5, 6, 7]])
    with pytest.raises(ConfigError, match="expected layers from 0 to 2 of LlamaModel, got 1 to 3"):
        capture_batch(llama.model, row, torch.ones_like(row), (1, 3))
    two = T5ForConditionalGeneration(T5Config(vocab_size=300, d_model=8, d_kv=4, d_ff=8, num_layers=2, num_heads=2))
    with pytest.raises(ConfigError, match=r"one stack of 2 blocks in T5\w+, got 2"):
        capture_batch(two, row, torch.ones_like(row), (1,))
    assert 0 == hooks_of(llama.model) == hooks_of(two)


# --- messages -------------------------------------------------------------------------------------------------------


def test_messages_are_read_as_the_template_writes_them(llama) -> None:
    """Messages have the ids and the states of the rendered template, without the beginning of an answer."""
    rendered = f"<|user|>{TEXTS[2]}<|user|>Noted."
    ids = llama.tokenizer(rendered, add_special_tokens=False).input_ids
    context = llama.read(MESSAGES)
    marking = make_tokenizer(300)
    begin = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    marking.backend_tokenizer.post_processor = begin
    assert [0, *ids] == marking(rendered).input_ids
    assert len(ids) == sender_of(llama.model, marking).read(MESSAGES).tokens
    assert rendered == context.text
    assert torch.equal(read_ids(llama.model, ids, LAYERS)[0], context.states)
    assert llama.encode(MESSAGES) == llama.encode(tuple(MESSAGES)) == llama.encode(ids)


def test_a_text_codec_gets_the_words_of_messages(llama) -> None:
    """Where the codec reads text, messages are paragraphs: another model's control tokens would be noise."""
    sender = Sender(llama.model, llama.tokenizer, PlainCodec(4000))
    assert Context(text=f"user: {TEXTS[2]}\n\nassistant: Noted.") == sender.read(MESSAGES)


@pytest.mark.parametrize(
    ("bad", "fragment"),
    [
        ({"content": "x"}, "got message 1 without role"),
        ("x", "got str as message 1"),
    ],
)
def test_malformed_messages_are_refused_by_index(llama, bad: Any, fragment: str) -> None:
    """The error says which message lacks what."""
    with pytest.raises(EncodeError, match=fragment):
        llama.encode([MESSAGES[0], bad])


def test_messages_that_no_template_takes_are_refused(llama) -> None:
    """Empty messages, a tokenizer without a template, and a template that refuses: each says what to do."""
    with pytest.raises(EncodeError, match="empty ones"):
        llama.encode([{"role": "user", "content": " "}])
    plain = make_tokenizer(300, template=None)
    with pytest.raises(EncodeError, match="chat template for messages, got one without: pass a text"):
        sender_of(llama.model, plain).encode(MESSAGES)
    strict = make_tokenizer(300, template="{{ raise_exception('roles must alternate') }}")
    with pytest.raises(EncodeError, match=r"template takes, got roles .*roles must alternate"):
        sender_of(llama.model, strict).encode(MESSAGES)


# --- live capture ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sampling", [False, True], ids=["greedy", "sampled"])
@pytest.mark.parametrize("family", GENERATORS)
def test_a_generation_is_captured_as_it_ran(of_family, family: str, sampling: bool, dtype: torch.dtype) -> None:
    """The capture holds, to the bit, the states that ``generate`` itself can report, and the text that it fed."""
    sender = of_family(family, dtype)
    prompt = torch.tensor([sender.tokenizer(TEXTS[0]).input_ids])
    torch.manual_seed(0)
    with sender.capture() as capture:
        outputs = sender.model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=sampling,
            max_new_tokens=SLIDING_TOKENS + 4,
            min_new_tokens=SLIDING_TOKENS + 4,
            output_hidden_states=True,
            return_dict_in_generate=True,
        )
    context = sender.read(capture)
    fed = outputs.sequences[0, :-1].tolist()
    assert len(fed) == context.tokens
    assert sender.tokenizer.decode(fed, skip_special_tokens=True) == context.text
    assert torch.equal(read_outputs(outputs, LAYERS), context.states)
    if dtype == torch.float32:
        assert close(read_ids(sender.model, fed, LAYERS)[0], context.states)
    assert sender.encode(capture) == sender.encode(outputs)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_padded_forward_is_captured_row_by_row(of_family, family: str, side: str) -> None:
    """Each row of a plain forward has the states of its own tokens and no padding, on whichever side that was."""
    sender = of_family(family)
    batch = rows_of(sender, TEXTS[:3], side)
    positions = (batch.mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad(), sender.capture() as capture:
        sender.model(batch.ids, attention_mask=batch.mask, position_ids=positions)
    assert 3 == len(capture) == len(capture.rows)
    for ids, text, context in zip(batch.alone, TEXTS, capture.rows, strict=False):
        assert text == context.text
        assert close(read_ids(sender.model, ids, LAYERS)[0], context.states)


def first_to_end(sender: Sender, texts: list[str], tokens: int) -> int:
    """A token that the first text's greedy continuation says before its last, and the second one's never does."""
    said = []
    for text in texts:
        ids = torch.tensor([sender.tokenizer(text).input_ids])
        out = sender.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, eos_token_id=299)
        said.append(out[0, ids.shape[1] :].tolist())
    return next(token for token in said[0][2 : tokens - 3] if token not in said[1] and token not in said[0][:2])


@pytest.mark.parametrize("pad", [1, None], ids=["padded", "padded with the end"])
def test_rows_that_end_early_are_as_if_generated_alone(llama, pad: int | None) -> None:
    """What ``generate`` goes on feeding to a row after its end is not part of it."""
    texts = [TEXTS[1], TEXTS[2]]
    end = first_to_end(llama, texts, 12)
    settings = dict(
        max_new_tokens=12, do_sample=False, eos_token_id=[end, 298], pad_token_id=end if pad is None else pad
    )
    alone = []
    for text in texts:
        ids = torch.tensor([llama.tokenizer(text).input_ids])
        with llama.capture() as capture:
            llama.model.generate(ids, attention_mask=torch.ones_like(ids), **settings)
        alone.append(llama.read(capture))
    batch = rows_of(llama, texts, "left")
    with llama.capture() as capture:
        llama.model.generate(batch.ids, attention_mask=batch.mask, **settings)
    assert len(batch.alone[0]) + 2 <= alone[0].tokens < len(batch.alone[0]) + 9
    assert len(batch.alone[1]) + 11 == alone[1].tokens
    assert [context.text for context in alone] == [context.text for context in capture.rows]
    assert all(close(a.states, b.states) for a, b in zip(alone, capture.rows, strict=True))


class EndsFirst(StoppingCriteria):
    """Ends the first row when it is so long."""

    def __init__(self, length: int):
        self.length = length

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> torch.Tensor:
        done = torch.zeros(len(input_ids), dtype=torch.bool)
        done[0] = input_ids.shape[1] >= self.length
        return done


def test_rows_that_a_criterion_ended_are_cut_at_their_padding(llama) -> None:
    """Where no end token was said, the padding that ``generate`` feeds from then on is left out all the same."""
    batch = rows_of(llama, [TEXTS[1], TEXTS[2]], "left")
    criteria = StoppingCriteriaList([EndsFirst(batch.ids.shape[1] + 3)])
    with llama.capture() as capture:
        llama.model.generate(
            batch.ids,
            attention_mask=batch.mask,
            max_new_tokens=9,
            eos_token_id=299,
            pad_token_id=298,
            stopping_criteria=criteria,
        )
    assert [len(ids) + new for ids, new in zip(batch.alone, (3, 8), strict=True)] == [c.tokens for c in capture.rows]


@pytest.mark.parametrize("chunk", [None, 2], ids=["whole", "in chunks"])
def test_an_end_token_inside_a_prompt_ends_nothing(llama, chunk: int | None) -> None:
    """Only what was generated can end a row: a chat's earlier turns hold end tokens too."""
    settings = {} if chunk is None else {"prefill_chunk_size": chunk}
    ids = torch.tensor([[5, 6, 1, 7, 1, 1], [5, 6, 1, 8, 1, 1]])
    with llama.capture() as capture:
        llama.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, min_new_tokens=3, **settings)
    assert [8, 8] == [context.tokens for context in capture.rows]


def test_several_calls_are_appended(llama) -> None:
    """A generation, its continuation from the KV cache and a plain forward are one context, in their order."""
    ids = llama.tokenizer(TEXTS[0]).input_ids[:40]
    settings = dict(max_new_tokens=4, min_new_tokens=4, do_sample=False, return_dict_in_generate=True)
    with llama.capture() as capture:
        first = llama.model.generate(torch.tensor([ids]), attention_mask=torch.ones(1, 40).long(), **settings)
        longer = torch.cat([first.sequences, torch.tensor([[9, 8]])], dim=1)
        mask = torch.ones_like(longer)
        cache = first.past_key_values
        second = llama.model.generate(longer, attention_mask=mask, past_key_values=cache, **settings)
        llama.model(torch.tensor([[5, 6, 7]]))
    context = llama.read(capture)
    fed = second.sequences[0, :-1].tolist()
    states = [read_ids(llama.model, row, LAYERS)[0] for row in (fed, [5, 6, 7])]
    assert close(torch.cat(states, dim=1), context.states)


@pytest.mark.parametrize(
    "settings",
    [{"use_cache": False}, {"prefill_chunk_size": 7}, {"cache_implementation": "static"}],
    ids=lambda settings: next(iter(settings)),
)
def test_other_ways_to_feed_a_generation_give_the_same_capture(llama, settings: dict[str, Any]) -> None:
    """Without a KV cache, with a prompt in chunks, with a static cache: every token is captured once."""
    ids = torch.tensor([llama.tokenizer(TEXTS[0]).input_ids[:40]])
    with llama.capture() as capture:
        out = llama.model.generate(ids, max_new_tokens=5, min_new_tokens=5, do_sample=False, **settings)
    assert close(read_ids(llama.model, out[0, :-1].tolist(), LAYERS)[0], llama.read(capture).states)


def test_outputs_without_a_cache_are_read_once(llama) -> None:
    """A ``generate`` that read everything again at each step reports it again; its context holds it once."""
    ids = torch.tensor([llama.tokenizer(TEXTS[0]).input_ids[:40]])
    reported = dict(output_hidden_states=True, return_dict_in_generate=True, use_cache=False)
    outputs = llama.model.generate(ids, max_new_tokens=4, min_new_tokens=4, do_sample=False, **reported)
    expected = read_ids(llama.model, outputs.sequences[0, :-1].tolist(), LAYERS)[0]
    assert close(expected, llama.read(outputs).states)


def test_a_streamed_generation_is_captured(llama) -> None:
    """A ``generate`` in a thread of its own, read from its streamer, is captured like any other."""
    ids = torch.tensor([llama.tokenizer(TEXTS[1]).input_ids])
    streamer = TextIteratorStreamer(llama.tokenizer)
    settings = dict(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, min_new_tokens=6)
    with llama.capture() as capture:
        thread = Thread(target=llama.model.generate, kwargs=settings | {"streamer": streamer})
        thread.start()
        said = "".join(streamer)
        thread.join()
    assert ids.shape[1] + 5 == llama.read(capture).tokens
    assert said.startswith(llama.read(capture).text)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"num_beams": 2}, "beam search"),
        ({"num_beams": 2, "do_sample": True}, "beam search"),
        ({"prompt_lookup_num_tokens": 2}, "prompt lookup"),
        ({"guidance_scale": 1.5}, "classifier-free guidance"),
    ],
)
def test_generation_that_reorders_or_takes_back_is_refused_by_name(llama, settings: dict[str, Any], name: str) -> None:
    """Beam search and its like are refused before they run, whether asked for in the call or in a configuration."""
    ids = torch.tensor([[5, 6, 7]])
    config = type(llama.model.generation_config)(**settings)
    for asked in (settings, {"generation_config": config}):
        with pytest.raises(EncodeError, match=f"got {name}"), llama.capture():
            llama.model.generate(ids, max_new_tokens=2, **asked)
    before = llama.model.generation_config
    llama.model.generation_config = config
    try:
        with pytest.raises(EncodeError, match=f"got {name}"), llama.capture():
            llama.model.generate(ids, max_new_tokens=2)
    finally:
        llama.model.generation_config = before
    assert 0 == hooks_of(llama.model)
    assert 5 == llama.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=2, num_beams=2).shape[1]


def test_a_capture_leaves_no_trace_on_the_model(llama) -> None:
    """After the ``with`` no module has a hook and no method is replaced, whether it ended well or in an exception."""
    ids = torch.tensor([[5, 6, 7]])
    with llama.capture() as capture:
        llama.model(ids)
        assert 7 == hooks_of(llama.model)
    llama.model(ids)
    assert 3 == llama.read(capture).tokens
    assert 0 == hooks_of(llama.model)

    def fail() -> None:
        with llama.capture():
            llama.model(ids)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert 0 == hooks_of(llama.model)


def test_a_generate_of_ones_own_is_put_back(llama, monkeypatch) -> None:
    """A model whose ``generate`` somebody else had replaced has that one afterwards, and it was called inside."""
    generate, calls = llama.model.generate, []

    def own(*args: Any, **kwargs: Any) -> Any:
        calls.append(kwargs)
        return generate(*args, **kwargs)

    monkeypatch.setattr(llama.model, "generate", own)
    with llama.capture() as capture:
        llama.model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=2, min_new_tokens=2)
    assert llama.model.generate is own
    assert 1 == len(calls)
    assert 4 == llama.read(capture).tokens


def test_a_generate_of_a_bystander_runs_on(llama) -> None:
    """A thread that ran before the ``with`` generates as ever, before, in and behind it; nothing of it is captured."""
    inside, going, answers = Event(), Event(), []

    class Waits(StoppingCriteria):
        def __call__(self, input_ids: Any, scores: Any, **_: Any) -> torch.Tensor:
            going.set()
            inside.wait(60)
            return torch.zeros(len(input_ids), dtype=torch.bool)

    def generate(**options: Any) -> Any:
        return llama.model.generate(torch.tensor([[5, 6]]), max_new_tokens=3, min_new_tokens=3, **options)

    def other() -> None:
        answers.append(generate(stopping_criteria=StoppingCriteriaList([Waits()])))
        answers.append(generate())

    expected, thread = generate(), Thread(target=other)
    thread.start()
    assert going.wait(60)
    with llama.capture() as capture:
        inside.set()
        llama.model(torch.tensor([[7, 8, 9]]))
        thread.join()
    assert [True, True] == [torch.equal(expected, answer) for answer in answers]
    assert 3 == llama.read(capture).tokens


def test_a_worker_with_a_copy_of_the_context_is_captured(llama) -> None:
    """What ``asyncio.to_thread`` does in a worker that ran before the ``with`` is the capture's, as in a new one."""

    async def both() -> int:
        await asyncio.to_thread(int)  # starts the worker
        with llama.capture() as capture:
            await asyncio.to_thread(llama.model, torch.tensor([[5, 6, 7]]))
        return int(llama.read(capture).tokens)

    assert 3 == asyncio.run(both())


def test_a_sender_reads_beside_its_capture(llama) -> None:
    """A text that is encoded inside the ``with`` has its own message, and is no part of the capture."""
    expected = llama.encode(TEXTS[0])
    with llama.capture() as capture:
        llama.model(torch.tensor([[5, 6, 7]]))
        assert expected == llama.encode(TEXTS[0])
    assert 3 == llama.read(capture).tokens


def test_a_call_in_training_mode_is_refused(llama) -> None:
    """Dropout would give one text many messages, so a capture takes no call of a model that is being trained."""
    llama.model.train()
    try:
        with pytest.raises(EncodeError, match=r"got one in training mode.*call model\.eval"), llama.capture():
            llama.model(torch.tensor([[5, 6, 7]]))
    finally:
        llama.model.eval()


def test_the_inputs_of_a_step_are_the_models_own(llama, monkeypatch) -> None:
    """A ``prepare_inputs_for_generation`` that somebody had replaced is asked inside the ``with``, and put back."""
    prepare, asked = getattr(llama.model, STEP), []

    @wraps(prepare)
    def own(*args: Any, **kwargs: Any) -> Any:
        asked.append(args)
        return prepare(*args, **kwargs)

    monkeypatch.setattr(llama.model, STEP, own)
    with llama.capture() as capture:
        llama.model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=2, min_new_tokens=2)
    assert getattr(llama.model, STEP) is own
    assert 2 == len(asked)
    assert 4 == llama.read(capture).tokens


def test_a_call_that_fails_is_not_captured(llama) -> None:
    """States of a pass that raised are no part of the context; those of the passes around it are."""
    with llama.capture() as capture:
        llama.model(torch.tensor([[5, 6, 7]]))
        with pytest.raises(IndexError):
            llama.model(torch.tensor([[99_999]]))
        with pytest.raises(ValueError, match="nonsense"):
            llama.model.generate(torch.tensor([[5]]), nonsense=True)
        llama.model(torch.tensor([[8, 9]]))
    assert 5 == llama.read(capture).tokens


def test_captures_inside_each_other_see_the_same(llama) -> None:
    """Two senders of one model record side by side, each the layers of its own codec."""
    other = sender_of(llama.model, llama.tokenizer, layers=(1, 2))
    ids = torch.tensor([[5, 6, 7]])
    with llama.capture() as outer, other.capture() as inner:
        llama.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, min_new_tokens=3)
    assert torch.equal(present(llama.read(outer).states)[1:], present(other.read(inner).states))
    for sender, mismatched in ((llama, inner), (other, outer)):
        with pytest.raises(EncodeError, match="got another's"):
            sender.encode(mismatched)
    assert 0 == hooks_of(llama.model)


def test_captures_end_in_any_order(llama) -> None:
    """Captures that overlap each record their part, and leave no trace."""
    first, second = llama.capture(), llama.capture()
    one = first.__enter__()
    llama.model.generate(torch.tensor([[5, 6]]), max_new_tokens=2, min_new_tokens=2)
    two = second.__enter__()
    llama.model.generate(torch.tensor([[7, 8]]), max_new_tokens=2, min_new_tokens=2)
    first.__exit__(None, None, None)
    llama.model.generate(torch.tensor([[9, 8]]), max_new_tokens=2, min_new_tokens=2)
    second.__exit__(None, None, None)
    assert [6, 6] == [llama.read(one).tokens, llama.read(two).tokens]
    assert 0 == hooks_of(llama.model)


def test_a_capture_that_ends_meanwhile_hides_no_other(llama) -> None:
    """A generate tells every open capture of its own thread, also where another thread's ends while it looks."""
    with llama.capture() as capture:
        watch = vars(llama.model)["generate"]

        class Ending:
            def _is_own(self) -> bool:
                watch.captures.remove(self)
                return False

            def _check_step(self) -> None:
                """Stands in for a capture of another thread."""

        watch.captures.insert(0, Ending())
        llama.model.generate(torch.tensor([[5, 6]]), max_new_tokens=2, min_new_tokens=2)
    assert 3 == llama.read(capture).tokens


def test_a_pass_that_was_interrupted_takes_nothing_in(llama) -> None:
    """After a Ctrl-C inside the model the sender reads other texts, inside the same capture."""
    interrupted = [True]

    def interrupt(*_: Any) -> None:
        if interrupted.pop():
            raise KeyboardInterrupt
        interrupted.append(False)

    alone = llama.read([5, 6, 7, 8, 9]).states
    with llama.capture():
        handle = _blocks(backbone(llama.model))[1].register_forward_pre_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            llama.model(torch.tensor([[5, 6]]))
        handle.remove()
        assert torch.equal(alone, llama.read([5, 6, 7, 8, 9]).states)


def test_a_second_call_meanwhile_is_refused(llama) -> None:
    """A call from another thread while one is running is refused there, and the first one's capture is its own."""
    errors: list[Exception] = []

    def other() -> None:
        try:
            llama.model(torch.tensor([[9, 9, 9]]))
        except EncodeError as error:
            errors.append(error)

    class Meanwhile(StoppingCriteria):
        def __call__(self, input_ids: Any, scores: Any, **_: Any) -> torch.Tensor:
            thread = Thread(target=other)
            thread.start()
            thread.join()
            return torch.zeros(len(input_ids), dtype=torch.bool)

    with llama.capture() as capture:
        criteria = StoppingCriteriaList([Meanwhile()])
        llama.model.generate(torch.tensor([[5, 6]]), max_new_tokens=3, min_new_tokens=3, stopping_criteria=criteria)
    assert 3 == len(errors)
    assert "must not serve others" in str(errors[0])
    assert 4 == llama.read(capture).tokens


def test_a_generate_of_ones_own_called_by_position_is_captured_whole(llama, monkeypatch) -> None:
    """The prompt's length comes from what was read: an end token in a prompt ends nothing, whatever the arguments."""
    generate = llama.model.generate
    monkeypatch.setattr(llama.model, "generate", lambda *a, **k: generate(*a, **k), raising=False)
    ids = torch.tensor([[5, 1, 7, 8, 9, 6]])
    with llama.capture() as capture:
        llama.model.generate(ids, max_new_tokens=3, min_new_tokens=3)
    assert 8 == llama.read(capture).tokens
    with pytest.raises(EncodeError, match="beam search"), llama.capture():
        llama.model.generate(ids, max_new_tokens=3, num_beams=2)


def test_calls_that_would_be_captured_wrongly_are_refused(llama) -> None:
    """A generate taken before, a cache from before, and a pass that reads all again."""
    generate, ids = llama.model.generate, torch.tensor([[5, 6, 7]])
    with pytest.raises(EncodeError, match=r"taken from it before: call model\.generate"), llama.capture():
        generate(ids, max_new_tokens=3, use_cache=False)
    with llama.capture() as capture:
        with pytest.raises(EncodeError, match="taken from it before"):
            generate(ids.repeat(2, 1), attention_mask=torch.ones(2, 3).long(), max_new_tokens=3)  # rows end, unseen
        with pytest.raises(EncodeError, match="taken from it before"):
            generate(ids, max_new_tokens=3, num_beams=2)
        llama.model(ids)
    assert 3 == llama.read(capture).tokens
    cache = llama.model(ids, use_cache=True).past_key_values
    with pytest.raises(EncodeError, match="a cache of 3 tokens, of which 0 were captured"), llama.capture():
        llama.model(ids[:, :1], past_key_values=cache)
    with llama.capture() as capture:
        llama.model(ids)
        with pytest.raises(EncodeError, match="reads again all"):
            llama.model(torch.tensor([[5, 6, 7, 8]]))
    assert 3 == llama.read(capture).tokens
    assert 0 == hooks_of(llama.model)


def test_captures_that_are_no_context_are_refused(llama) -> None:
    """Nothing captured, one that still records, several rows, another batch, only padding, another sender's capture."""
    with llama.capture() as capture:
        pass
    with pytest.raises(EncodeError, match="at least one call of the sender's model, got none"):
        llama.encode(capture)
    with llama.capture() as capture:
        llama.model(torch.tensor([[5, 6], [7, 8]]))
        with pytest.raises(EncodeError, match="got one that is recording"):
            llama.encode(capture)
        with pytest.raises(EncodeError, match="expected 2 rows, as in the calls before, got 1"):
            llama.model(torch.tensor([[5, 6]]))
    with pytest.raises(EncodeError, match=r"one row, got 2: .*capture\.rows\[0\]"):
        llama.encode(capture)
    assert [llama.encode(context) for context in capture.rows] == llama.encode_batch(capture.rows)
    with pytest.raises(EncodeError, match="got another's"):
        sender_of(make_model(300, seed=9), llama.tokenizer).encode(capture)
    with llama.capture() as capture:
        llama.model(torch.tensor([[5, 6]]), attention_mask=torch.zeros(1, 2).long())
    with pytest.raises(EncodeError, match="none in row 0: all of it is padding"):
        llama.encode(capture)


def test_a_batch_without_a_mask_of_its_tokens_is_refused(llama) -> None:
    """Which tokens of several rows are padding cannot be told from a mask of another shape."""
    with pytest.raises(EncodeError, match=r"for a batch of 2 rows, got shape \(2, 1, 2, 2\)"), llama.capture():
        llama.model(torch.tensor([[5, 6], [7, 8]]), attention_mask=torch.zeros(2, 1, 2, 2))


def test_a_text_codec_gets_what_was_read_and_said(llama) -> None:
    """Where the codec reads text, a capture is its text and no state is kept; embeddings have no text."""
    sender = Sender(llama.model, llama.tokenizer, PlainCodec(4000))
    ids = torch.tensor([llama.tokenizer(TEXTS[1]).input_ids])
    with sender.capture() as capture:
        out = llama.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, min_new_tokens=5)
    assert Context(text=llama.tokenizer.decode(out[0, :-1], skip_special_tokens=True)) == sender.read(capture)
    embeds = llama.model.get_input_embeddings()(ids)
    with sender.capture() as capture:
        llama.model(inputs_embeds=embeds)
    with pytest.raises(EncodeError, match="expected calls with input_ids"):
        sender.encode(capture)
    with llama.capture() as capture:
        llama.model.generate(inputs_embeds=embeds, max_new_tokens=5, min_new_tokens=5, do_sample=False)
    assert close(read_ids(llama.model, out[0, :-1].tolist(), LAYERS)[0], llama.read(capture).states)


# --- encoders and adapters ------------------------------------------------------------------------------------------


def test_an_encoder_sends(of_family) -> None:
    """Text, ids, a batch and a captured forward of an encoder give one message."""
    sender = of_family("bert")
    ids = sender.tokenizer(TEXTS[0]).input_ids
    expected = sender.encode(TEXTS[0])
    with sender.capture() as capture:
        sender.model(torch.tensor([ids]))
    assert backbone(sender.model) is sender.model
    assert [expected] * 3 == [sender.encode(source) for source in (ids, capture, capture.rows[0])]
    assert expected == sender.encode_batch([TEXTS[1], TEXTS[0]])[1]


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_an_adapted_model_is_read_with_its_adapter(tokenizer, family: str) -> None:
    """A peft model's states are those of its LoRA layers, read and captured, and its backbone has no wrapper."""
    peft = pytest.importorskip("peft")
    plain = build(family, len(tokenizer))
    ids = tokenizer(TEXTS[0]).input_ids
    before, _ = read_ids(plain, ids, LAYERS)
    modules = {"llama": ["q_proj"], "gpt2": ["c_attn"], "bert": ["query"]}[family]
    config = peft.LoraConfig(r=4, target_modules=modules, init_lora_weights=False, fan_in_fan_out=family == "gpt2")
    model = peft.get_peft_model(plain, config)
    sender = sender_of(model, tokenizer)
    with torch.no_grad():
        outputs = model(torch.tensor([ids]), output_hidden_states=True)
    states = present(sender.read(TEXTS[0]).states)
    with sender.capture() as capture:
        if family == "bert":
            model(input_ids=torch.tensor([ids]))
        else:
            model.generate(input_ids=torch.tensor([ids]), max_new_tokens=1)
    assert backbone(model) is plain.base_model
    assert torch.equal(torch.stack([outputs.hidden_states[layer][0] for layer in LAYERS]), states)
    assert close(states, present(sender.read(capture).states))
    assert not close(before, states)
    assert 0 == hooks_of(model)


def test_a_learned_prompt_is_refused(tokenizer) -> None:
    """An adapter that lives outside the layers would be left out of the states: refused by name."""
    peft = pytest.importorskip("peft")
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    with pytest.raises(ConfigError, match="such as LoRA, got PromptTuningConfig"):
        backbone(peft.get_peft_model(build("llama", len(tokenizer)), config))


# --- memory ---------------------------------------------------------------------------------------------------------

SLACK_BYTES = 8 << 10  # ids, masks and positions, in whole blocks


class Meter(TorchDispatchMode):
    """The bytes of all tensors made inside the ``with`` that are alive, and the most there were at once."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        given = {tensor.untyped_storage()._cdata for tensor in tree_leaves((args, kwargs)) if torch.is_tensor(tensor)}
        for tensor in tree_leaves(result):
            if torch.is_tensor(tensor) and tensor.untyped_storage()._cdata not in given:  # a view is no new memory
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._seen:
            self._seen.add(key)
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._release, key, size)

    def _release(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.live -= size


@contextmanager
def metered() -> Iterator[Meter]:
    with torch.no_grad(), Meter() as meter:
        yield meter


@pytest.mark.parametrize("layers", [(0,), (2, 5), (8,)], ids=str)
def test_a_capture_takes_the_memory_of_its_result(layers: tuple[int, ...]) -> None:
    """Beyond the same pass without capture, the peak grows by the result at most; keeping every layer takes more."""
    model = make_model(5000, hidden=64, layers=8).bfloat16()  # words enough for logits to show
    ids = torch.arange(200).repeat(2, 1)
    mask = torch.ones_like(ids)
    with metered() as bare:
        model.model(input_ids=ids, attention_mask=mask, use_cache=False)
    with metered() as captured:
        states = capture_batch(model, ids, mask, layers)
    with metered() as everything:
        model.model(input_ids=ids, attention_mask=mask, use_cache=False, output_hidden_states=True)
    allowed = bare.peak + states.nbytes + SLACK_BYTES
    assert bare.peak > 10 * SLACK_BYTES
    assert captured.peak <= allowed
    assert captured.live <= states.nbytes + SLACK_BYTES
    assert everything.peak > allowed


def test_windows_are_written_into_one_result() -> None:
    """A text of many windows takes its result and the pass of one window; joining pieces would take it twice."""
    model = make_model(300, hidden=64, layers=8, window=64)
    ids = torch.arange(64).repeat(20).tolist()
    row = torch.tensor([ids[:64]])
    with metered() as bare:
        model.model(input_ids=row, attention_mask=torch.ones_like(row), use_cache=False)
    with metered() as captured:
        states, windows = read_ids(model, ids, (2, 5))
    with metered() as joined:
        pieces = [states[:, start : start + 64].clone() for start in range(0, len(ids), 64)]
        torch.cat(pieces, dim=1)
    masks = 2 * 8 * len(ids)
    allowed = bare.peak + states.nbytes + masks + SLACK_BYTES
    assert windows > 20
    assert captured.peak <= allowed
    assert joined.peak > allowed


def test_outputs_are_copied_once(llama) -> None:
    """The states of a finished call are written into their result; no second copy is made on the way."""
    with torch.no_grad():
        outputs = llama.model(torch.arange(200)[None], output_hidden_states=True)
    with metered() as meter:
        states = read_outputs(outputs, LAYERS)
    assert meter.peak <= states.nbytes + SLACK_BYTES


# --- the example ----------------------------------------------------------------------------------------------------


def test_the_example_runs(capsys) -> None:
    """``examples/capture_generate.py`` runs offline, and the receiver answers what it says it answers."""
    runpy.run_path(str(EXAMPLES / "capture_generate.py"), run_name="__main__")
    assert "100 bytes" in capsys.readouterr().out
