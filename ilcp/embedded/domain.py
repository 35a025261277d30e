"""Tells a text outside the embedded pair's domain from one inside it.

The embedded sender has read incident dossiers and nothing else. A text of another kind surprises it: the measure is
the sender's own code length in bits per byte over the most surprising stretch of the text, and the limit is what
dossiers of the validation split reach, with a margin.
"""

import json
import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from ilcp.handoff import Sender, Verified
from ilcp.handoff.sources import is_text_or_ids, require_length
from ilcp.identity import digest
from ilcp.inputs import listed, require_text
from ilcp.models.adapter import unwrapped
from ilcp.models.prompt import layout
from ilcp.models.reading import require_ids, window_tokens
from ilcp.nn.inference import inference
from ilcp.tasks.dossier import ATTRIBUTES, CODE, JOINS

__all__ = [
    "DossierSender",
    "Familiarity",
    "OutsideWarning",
    "familiarity",
    "known_questions",
    "surprise_bits_per_byte",
]

LIMIT_FILE = Path(__file__).parent / "domain.json"
MOST_JUDGED = 1 << 16  # digests of texts that are remembered
STRETCH_TOKENS = 64  # about five sentences: one odd name puts no text outside, a paragraph of another kind does


@dataclass(frozen=True, slots=True)
class Familiarity:
    """The code length of a text's most surprising stretch, and the limit for dossiers, both in bits per byte."""

    bits_per_byte: float
    limit_bits_per_byte: float

    @property
    def outside(self) -> bool:
        """Says whether the text is of a kind that the pair does not know."""
        return self.bits_per_byte > self.limit_bits_per_byte

    def __str__(self) -> str:
        verdict = "outside" if self.outside else "inside"
        return (
            f"{verdict} what the embedded pair knows: the sender needs {self.bits_per_byte:.2f} bits per byte for its "
            f"most surprising stretch, incident dossiers need at most {self.limit_bits_per_byte:.2f}"
        )


class OutsideWarning(UserWarning):
    """A text is of a kind that the embedded pair does not know: its message says next to nothing."""


class DossierSender(Sender):
    """The embedded sender: warns of a text outside its domain, once a text, when a message is made of it.

    What was computed already is not judged: that would take the pass which it saves.
    """

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self._judged: set[bytes] = set()

    def encode(self, source: Any, **options: Any) -> bytes:
        """Returns the message for ``source``, as ``Sender.encode``.

        Raises:
            EncodeError, ConfigError: as ``Sender.encode``.
        """
        message = super().encode(source, **options)
        self._judge(source)
        return message

    def verified(self, source: Any, *args: Any, **options: Any) -> Verified:
        """Returns the message for ``source`` and what its receiver answers, as ``Sender.verified``.

        Raises:
            EncodeError, ConfigError, IdentityError: as ``Sender.verified``.
        """
        found = super().verified(source, *args, **options)
        self._judge(source)
        return found

    def encode_batch(self, sources: Iterable[Any], *args: Any, **options: Any) -> list[bytes]:
        """Returns the messages for ``sources``, as ``Sender.encode_batch``.

        Raises:
            EncodeError, ConfigError: as ``Sender.encode_batch``.
        """
        sources = listed(sources, "a list of sources", "source")
        messages = super().encode_batch(sources, *args, **options)
        for source in sources:
            self._judge(source)
        return messages

    def _judge(self, source: Any) -> None:
        text = self._prepared(source)[0] if is_text_or_ids(source) else None
        name = digest((text or "").encode("utf-8"))
        if not text or name in self._judged:
            return
        if len(self._judged) >= MOST_JUDGED:
            self._judged.clear()
        self._judged.add(name)
        found = familiarity(self, text)
        if found.outside:
            warnings.warn(f"a text of {len(text)} characters is {found}", OutsideWarning, stacklevel=3)


def familiarity(sender: Sender, text: str) -> Familiarity:
    """Measures how familiar ``text`` is to the embedded sender.

    Raises:
        EncodeError: the text is empty or too long.
    """
    limit = json.loads(LIMIT_FILE.read_text(encoding="utf-8"))["limit_bits_per_byte"]
    return Familiarity(surprise_bits_per_byte(sender, text), float(limit))


def known_questions() -> frozenset[str]:
    """Returns every form of question that the pair was trained on."""
    forms = [question for attribute in (*ATTRIBUTES, CODE) for question in attribute.questions]
    return frozenset(forms).union(*JOINS.values())


@inference(lambda sender: unwrapped(sender.model))
def surprise_bits_per_byte(sender: Sender, text: str) -> float:
    """Returns the sender's code length, in bits per byte, over the most surprising ``STRETCH_TOKENS`` of the text.

    Raises:
        EncodeError: the text is empty or too long.
    """
    text = require_length(require_text(text))
    encoded = sender.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    require_ids(sender.model, encoded.input_ids)
    ends = [0, *(end for _, end in encoded.offset_mapping)]
    sizes = [0, *(len(text[start:end].encode("utf-8")) for start, end in pairwise(ends))]
    bits = [0.0, *(nats / math.log(2) for nats in _losses_nats(sender, encoded.input_ids))]
    stretch = min(STRETCH_TOKENS, len(sizes) - 1)
    total_bits, total_bytes = torch.tensor(bits, dtype=torch.float64).cumsum(0), torch.tensor(sizes).cumsum(0)
    spent = total_bits[stretch:] - total_bits[:-stretch]
    covered = (total_bytes[stretch:] - total_bytes[:-stretch]).clamp(min=1)
    return float((spent / covered).max())


def _losses_nats(sender: Sender, ids: list[int]) -> list[float]:
    """Returns the sender's loss on each token; windows overlap by half, so that every stretch is read with its past."""
    start = list(layout(sender.tokenizer, "").prefix)
    room = window_tokens(sender.model) - len(start)
    losses: list[float] = []
    for first in range(0, max(1, len(ids) - room // 2), room // 2):
        row = torch.tensor([start + ids[first : first + room]], device=sender.model.device)
        logits = sender.model(input_ids=row).logits[0, len(start) - 1 : -1].float()
        found = torch.nn.functional.cross_entropy(logits, row[0, len(start) :], reduction="none").tolist()
        losses += found[len(losses) - first :]
    return losses
