"""Models as people prepare them (``tests.prepared``): what they send, receive, and are known by, each left in training
mode. ``make support`` writes the outcomes below those of the families."""

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import pytest
import torch

from ilcp import Receiver, TextMemory
from ilcp.errors import ConfigError, IdentityError
from ilcp.models.fingerprint import identify
from ilcp.models.prompt import text_ids
from ilcp_codecs.text import PlainCodec
from tests.helpers import ROOT, make_tokenizer, present, sender_of
from tests.prepared import PREPARED, VOCABULARY, Prepared
from tests.support_matrix import PREPARED_COLUMNS
from tests.test_families import spelled, written

TEXT = "The ticket is owned by Mara. The affected region is Bergen."
QUESTION = "Which region is affected?"
TOKENIZER = make_tokenizer(VOCABULARY)

T = TypeVar("T")
pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning"),
]
every = pytest.mark.parametrize("kind", PREPARED)


def prepare(kind: str, record_property: Callable[[str, object], None]) -> Prepared:
    """The model of that kind; skips the test where its package is not installed."""
    try:
        return PREPARED[kind]()
    except ModuleNotFoundError as error:
        record_property("cell", "not installed")
        pytest.skip(str(error))


def together(threads: int, call: Callable[[], T]) -> list[T]:
    """What several threads get of a call that they make at a time."""
    with ThreadPoolExecutor(threads) as pool:
        return [future.result() for future in [pool.submit(call) for _ in range(threads)]]


@every
def test_prepared_sender(kind: str, record_property: Any) -> None:
    """The states are those of a plain forward in evaluation mode; the message is one; the mode stays as it was."""
    prepared = prepare(kind, record_property)
    with torch.no_grad():
        ids = torch.tensor([TOKENIZER(TEXT).input_ids])
        outputs = prepared.reference(input_ids=ids, output_hidden_states=True)
    expected = torch.stack([states[0] for states in outputs.hidden_states])
    sender = sender_of(prepared.model, TOKENIZER, hidden=64)
    sender.model.train()
    assert torch.allclose(expected, present(sender.read(TEXT).states), atol=1e-4)
    assert 1 == len(set(together(prepared.threads, lambda: sender.encode(TEXT)) + [sender.encode(TEXT)]))
    assert sender.model.training


@every
def test_prepared_receiver(kind: str, record_property: Any) -> None:
    """Memory of a text's own embeddings is answered as transformers answers the text in evaluation mode, and scored as
    the text is; the mode stays as it was."""
    prepared = prepare(kind, record_property)
    receiver = Receiver(prepared.model, TOKENIZER, PlainCodec(), allow_unmeasured=True)
    memory = spelled(prepared.reference, TEXT)
    expected = written(prepared.reference, [text_ids(TOKENIZER, TEXT, QUESTION)], 8)
    receiver.model.train()
    assert set(expected) == set(
        together(prepared.threads, lambda: receiver.generate(memory, QUESTION, max_new_tokens=8))
    )
    (scored,) = receiver.score([(TextMemory(TEXT), QUESTION, "Oslo")])
    for (score,) in together(prepared.threads, lambda: receiver.score([(memory, QUESTION, "Oslo")])):
        assert scored.token_nats == pytest.approx(score.token_nats, abs=1e-4)
    assert receiver.model.training


@every
def test_prepared_identity(kind: str, record_property: Any) -> None:
    """Prepared alike, a model is known again; once something that decides what it computes has changed, it is refused
    at its next use."""
    prepared, again = prepare(kind, record_property), prepare(kind, record_property)
    sender = sender_of(prepared.model, TOKENIZER, hidden=64)
    assert identify(prepared.model, TOKENIZER) == identify(again.model, TOKENIZER)
    before = together(prepared.threads, lambda: sender.encode(TEXT))[0]
    prepared.change()
    with pytest.raises(IdentityError, match="differs in"):
        sender.encode(TEXT)
    assert before == sender_of(again.model, TOKENIZER, hidden=64).encode(TEXT)


def test_four_bits_that_change_with_their_first_use_are_refused(record_property: Any) -> None:
    """Where bitsandbytes packs weights anew on a processor and loses digits, there is nothing to know them by."""
    model = prepare("nf4: bitsandbytes", record_property).model
    for layer in model.model.layers:
        layer.self_attn.q_proj.support_avx512bf16_for_cpu = True
    with pytest.raises(ConfigError, match=r"got model\.layers\.0\.self_attn\.q_proj, which bitsandbytes packs anew"):
        identify(model, TOKENIZER)


def test_the_support_table_has_these_models_and_columns() -> None:
    """SUPPORT.md cannot silently lack a way to prepare a model, nor hold one whose test failed."""
    text = (ROOT / "SUPPORT.md").read_text(encoding="utf-8").partition("prepared models\n")[2].partition("\n## ")[0]
    assert f"| model | {' | '.join(PREPARED_COLUMNS)} |" in text
    assert list(PREPARED) == re.findall(r"^\| (.+?) \| (?:passed|not installed) \|", text, re.MULTILINE)
    assert all(callable(globals()[test]) for test in PREPARED_COLUMNS.values())
