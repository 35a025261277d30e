"""What a sender takes and refuses: models of other families, and sources of every kind."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model

from ilcp import Sender
from ilcp.errors import ConfigError, EncodeError
from ilcp.handoff import sources as module
from ilcp.models.reading import capture_batch, read_ids, window_tokens
from ilcp.models.support import require_sender
from ilcp_codecs.text import PlainCodec
from tests.helpers import make_model, make_tokenizer, noting, present, sender_of

TINY = dict(
    vocab_size=300, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, pad_token_id=1
)
TOKENIZER = make_tokenizer(300)


@pytest.fixture(scope="module")
def sender() -> Sender:
    """A sender of states."""
    return sender_of(make_model(300), TOKENIZER)


@pytest.mark.parametrize("limit", [-1, 0])
def test_a_limit_that_is_none_counts_as_unstated(limit: int) -> None:
    """XLNet states -1: the window is the one of a model that states nothing."""
    model = make_model(300)
    model.config.max_position_embeddings = limit
    assert 2048 == window_tokens(model)


def test_positions_behind_the_paddings_are_counted() -> None:
    """RoBERTa reads two tokens fewer than it has positions, and has the same states padded on either side."""
    model = transformers.RobertaModel(transformers.RobertaConfig(**TINY, max_position_embeddings=34)).eval()
    require_sender(model)
    assert 32 == window_tokens(model)
    alone, _ = read_ids(model, [5, 6, 7], (0, 1, 2))
    for ids, mask, place in (([0, 5, 6, 7], [0, 1, 1, 1], 1), ([5, 6, 7, 0], [1, 1, 1, 0], 0)):
        states = capture_batch(model, torch.tensor([ids]), torch.tensor([mask]), (0, 1, 2))[0]
        assert torch.allclose(alone, states[:, place : place + 3], atol=1e-4)
    assert 40 == read_ids(model, list(range(5, 45)), (0, 1))[0].shape[1]


def test_an_adapter_around_the_positions_does_not_hide_where_they_begin() -> None:
    """RoBERTa's positions count on from its padding's with a LoRA on their table as well."""
    model = transformers.RobertaModel(transformers.RobertaConfig(**TINY, max_position_embeddings=34)).eval()
    adapted = get_peft_model(model, LoraConfig(target_modules=["position_embeddings", "word_embeddings"]))
    assert 32 == window_tokens(adapted)
    assert 40 == read_ids(adapted, list(range(5, 45)), (0, 1))[0].shape[1]


def test_a_family_whose_blocks_are_not_seen_is_refused() -> None:
    """Shared blocks and projected states do not fit the capture: refused at once, by name."""
    albert = transformers.AlbertModel(transformers.AlbertConfig(**TINY, embedding_size=16))
    config = dict(vocab_size=300, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=64)
    opt = transformers.OPTForCausalLM(transformers.OPTConfig(**config, word_embed_proj_dim=16))
    for model in (albert, opt):
        with pytest.raises(ConfigError, match=f"captured one by one, got {type(model).__name__}"):
            require_sender(model)


def test_a_model_with_eyes_is_read_by_its_language_model() -> None:
    """Gemma 3 with a vision tower has the states that it reports; a generate is captured with its text."""
    text = TINY | dict(num_key_value_heads=2, head_dim=8, max_position_embeddings=256)
    vision = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64)
    config = transformers.Gemma3Config(
        text_config=text, vision_config=vision | dict(image_size=28, patch_size=14), mm_tokens_per_image=4
    )
    sender = sender_of(transformers.Gemma3ForConditionalGeneration(config).eval(), TOKENIZER)
    ids = torch.tensor([[5, 6, 7]])
    with sender.capture() as capture:
        out = sender.model.generate(ids, max_new_tokens=3, min_new_tokens=3, do_sample=False)
    context = sender.read(capture)
    assert TOKENIZER.decode(out[0, :-1], skip_special_tokens=True) == context.text
    expected, _ = read_ids(sender.model, out[0, :-1].tolist(), (0, 1, 2))
    assert torch.allclose(expected, present(context.states), atol=1e-4)


def test_wrong_objects_are_refused_in_a_sentence(sender: Sender) -> None:
    """A path for a model, a name for a codec, weights that are elsewhere, and sources of the wrong shape."""
    with pytest.raises(ConfigError, match="loaded transformers model as sender, got str"):
        Sender("path", TOKENIZER, PlainCodec())
    wrong: tuple[Any, ...] = ("my-codec", None)
    for codec in wrong:
        with pytest.raises(ConfigError, match=r"expected a codec, got .*ilcp\.load"):
            Sender(sender.model, TOKENIZER, codec)
    with pytest.raises(ConfigError, match="offloaded"):
        Sender(make_model(300).to("meta"), TOKENIZER, PlainCodec())
    for source, text in ((["a", "b"], "encode_batch"), ({"role": "user", "content": "x"}, "put it into a list")):
        with pytest.raises(EncodeError, match=text):
            sender.encode(source)


def test_ids_in_other_containers_are_ids(sender: Sender) -> None:
    """What a tokenizer returns for one text, padded or not, and a numpy row."""
    expected = sender.encode([5, 6, 7])
    encoding = transformers.BatchEncoding({"input_ids": [[5, 6, 7, 1]], "attention_mask": [[1, 1, 1, 0]]})
    for source in (encoding, np.array([5, 6, 7]), transformers.BatchEncoding({"input_ids": [5, 6, 7]})):
        assert expected == sender.encode(source) == sender.encode_batch([source])[0]


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "find"}}]},
        {"role": "user", "content": [{"type": "text", "text": "x"}]},
    ],
)
def test_the_template_decides_what_a_message_holds(message: Mapping[str, Any]) -> None:
    """Tool calls and parts are rendered as the template says; an empty rendering is refused."""
    told = make_tokenizer(300, template="{% for m in messages %}{{ m.tool_calls or m.content }}{% endfor %}")
    assert sender_of(make_model(300), told).read([message]).tokens
    silent = make_tokenizer(300, template="{{ '' }}")
    with pytest.raises(EncodeError, match="an empty one from it"):
        sender_of(make_model(300), silent).read([message])


def test_a_pass_is_bounded_by_tokens_and_sources_are_read_lazily(sender: Sender, monkeypatch) -> None:
    """Long texts share no pass; contexts come one at a time."""
    monkeypatch.setattr(module, "PASS_TOKENS", 8)
    assert [[0, 1], [2], [3]] == list(module.passes(range(4), [2, 4, 5, 9], 8))
    sources = [sender.model(torch.tensor([[5, 6]]), output_hidden_states=True) for _ in range(3)]
    read: list[Any] = []
    monkeypatch.setattr(sender, "read", noting(sender.read, read, lambda source: source))
    next(iter(sender._contexts(sources, 8)))
    assert 1 == len(read)
