"""Long texts: memory in proportion to the text, not to its square, and the same latent in stretches as at once."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ilcp.embedded import domain
from ilcp.embedded.domain import surprise_bits_per_byte
from ilcp_codecs.facts.config import FactsConfig
from ilcp_codecs.facts.extractor import Extractor
from ilcp_codecs.vae import VaeNetwork, pooler

TOKENS, TABLE = 600, 6000  # a table of all tokens by all has 60 times as many entries
MASK = torch.ones(1, TOKENS)


class Largest(TorchDispatchMode):
    """Notes how many entries the largest tensor has that is made."""

    entries = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the operation."""
        made = func(*args, **(kwargs or {}))
        for each in made if isinstance(made, tuple | list) else (made,):
            self.entries = max(self.entries, each.numel() if isinstance(each, torch.Tensor) else 0)
        return made


def read_twice(part: Any, states: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any, int, int]:
    """What a part makes of the states at once and in stretches, and the entries of the largest tensor of each."""
    found = []
    for table in (pooler.TABLE, TABLE):
        monkeypatch.setattr(pooler, "TABLE", table)
        with torch.no_grad(), Largest() as largest:
            found.append((part(states, MASK), largest.entries))
    (whole, before), (parts, after) = found
    return whole, parts, before, after


def test_a_pooler_reads_a_long_text_in_stretches(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """No tensor is as large as tokens by tokens, and the slots are what they are at once, but for rounding."""
    torch.manual_seed(0)
    network = VaeNetwork(replace(small.codec.config, same_token_attention=True)).eval()
    torch.nn.init.eye_(network.pooler.echo.out.weight)  # type: ignore[union-attr]
    states = torch.randn(1, 3, TOKENS, 32)
    whole, parts, before, after = read_twice(network.pooler, states, monkeypatch)
    torch.testing.assert_close(whole, parts, atol=1e-5, rtol=1e-4)
    assert before >= TOKENS**2
    assert after <= max(2 * TABLE, 2 * states.numel())


def test_an_extractor_reads_a_long_text_in_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the facts codec too, whose tokens attend to each other in every head."""
    torch.manual_seed(0)
    config = FactsConfig(
        (0, 1), 32, 48, words=9, width=32, heads=4, blocks=1, topics=("a", "b"), questions=("a?", "b?")
    )
    states = torch.randn(1, 2, TOKENS, 32)
    whole, parts, before, after = read_twice(Extractor(config).eval(), states, monkeypatch)
    torch.testing.assert_close(whole.x, parts.x, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(whole.said, parts.said, atol=1e-5, rtol=1e-4)
    assert before >= config.heads * TOKENS**2
    assert after <= max(2 * TABLE, 2 * states.numel())


def test_texts_of_ordinary_length_are_one_stretch() -> None:
    """What codecs were trained on is computed as it was: messages keep their bytes."""
    assert [slice(0, pooler.TABLE // 2500)] == pooler.stretches(2500, 2500)
    assert [range(0, 5), range(5, 10), range(10, 11)] == [
        range(11)[some] for some in pooler.stretches(11, pooler.TABLE // 5)
    ]
    assert 7 == len(pooler.stretches(7, 2 * pooler.TABLE))


def test_the_surprise_of_a_text_counts_its_bytes_token_by_token(pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Characters of several bytes count as such, and a long text takes time in proportion to its length."""
    text = "Ünïcode 文字 and plain words, " * 40
    encoded = pair.sender.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    n = len(encoded.input_ids)
    monkeypatch.setattr(domain, "_losses_nats", lambda sender, ids: [1.0] * len(ids))
    ends = [0, *(len(text[:end].encode()) for _, end in encoded.offset_mapping)]
    stretch = domain.STRETCH_TOKENS
    fewest = min(ends[at + stretch] - ends[at] for at in range(n - stretch + 1))
    expected = stretch / domain.math.log(2) / max(1, fewest)
    assert expected == pytest.approx(surprise_bits_per_byte(pair.sender, text))
