"""Fewer tokens in place of fewer bits: of each head those that the receiver's questions will look at.

::

    KeysValues, attention to it --the most attended of each head--> KeysValues of fewer tokens --eight bits--> container

The sender answers the questions of the receiver's role by itself, with the whole cache, and keeps of each head the
tokens that were looked at most, at any word of any question or answer: the choice by peak attention of Attention
Matching (arXiv 2602.16284). The biases and values that it fits besides brought nothing here (``benchmarks/README.md``).
Keys are turned so that they stand as far from what follows as they stood before. In a layer with a sliding window they
are seen as long as the tokens kept fill no window, and so longer than those of the whole cache.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from ilcp.codec.context import Context
from ilcp.codec.keys_values import KeysValues, held_tokens, turned
from ilcp.codec.spec import CodecSpec, Trained
from ilcp.errors import ConfigError, EncodeError, IdentityError, IlcpError, StorageError
from ilcp.identity import ModelIdentity, digest_all
from ilcp.inputs import listed, require_text
from ilcp.models.fingerprint import identify
from ilcp.models.prompt import MEMORY_HERE
from ilcp_codecs.kv.codecs import Int8Codec, own_shape, shape_of
from ilcp_codecs.kv.container import Shape

__all__ = ["CompactCodec"]

MOST_QUESTIONS, MOST_CHARACTERS = 256, 2000  # they are asked of every text, and attention to each is looked at whole
TIGHTER = 0.98  # than the ratio of what is allowed to what came out, where fewer tokens are tried


class CompactCodec(Int8Codec):
    """A share of the tokens of each head, chosen by what the questions look at; ``of`` makes one.

    A budget of ``for_model`` is the share of the tokens, such as ``5%``; a tenth is the usual.

    Args:
        questions: such as the receiver will ask; its sender answers them for every text.
        share: of the tokens, above 0 and up to 1; a caller's ``payload_bytes`` may leave fewer.

    Raises:
        ConfigError: there are no questions, one is no text, or the share is none; or the model's keys cannot be turned.
    """

    name: ClassVar[str] = "kv-compact"

    def __init__(self, model: ModelIdentity, shape: Shape, questions: Iterable[str], share: Any):
        super().__init__(model, shape)
        if not all(shape.ropes):
            raise ConfigError("expected a model whose keys can be turned (RoPE), got another: its tokens stay in place")
        asked = listed(questions, "questions in a list", "question", error=ConfigError)
        if not 1 <= len(asked) <= MOST_QUESTIONS:
            raise ConfigError(f"expected 1 to {MOST_QUESTIONS} questions, got {len(asked)}")
        self.questions = tuple(dict.fromkeys(_question(one, number) for number, one in enumerate(asked)))
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
            raise ConfigError(f"expected a share above 0 and up to 1, got {share!r}")
        self.share = float(share)
        # What is kept is what the codec is worth: evidence for one choice is none for another.
        self.trained = Trained(model, model, digest_all([repr((self.share, self.questions)).encode()]).hex())

    @classmethod
    def of(
        cls,
        model: Any,
        tokenizer: Any,
        *,
        tokens: int | None = None,
        questions: Iterable[str] = (),
        share: float = 0.1,
    ) -> Self:
        """Returns the codec of a loaded model.

        Args:
            tokens: the most that a cache may stand for before it is compacted; None for the model's window.
            questions, share: as above.

        Raises:
            ConfigError: as above, or as ``KvCodec.of``.
        """
        return cls(identify(model, tokenizer), shape_of(model, tokens), questions, share)

    @classmethod
    def _within(cls, model: Any, tokenizer: Any, budget: str, texts: Iterable[str], questions: Iterable[str]) -> Self:
        """Returns the codec that keeps ``budget`` of the tokens, chosen by the first of ``questions``."""
        asked = islice((question for question in questions if question), MOST_QUESTIONS)
        return cls.of(model, tokenizer, questions=list(asked), share=int((budget or "10%")[:-1]) / 100)

    @classmethod
    def require_budget(cls, budget: str) -> None:
        """Refuses what is no share in percent.

        Raises:
            ConfigError: with what it may be.
        """
        if budget and budget not in {f"{share}%" for share in range(1, 101)}:
            raise ConfigError(f"expected a share of the tokens, 1% to 100%, behind {cls.name}:, got {budget[:40]!r}")

    def encode(self, context: Context, payload_bytes: int | None = None) -> bytes:
        """Returns the container of the tokens kept, as many as the share and ``payload_bytes`` allow.

        Raises:
            EncodeError: the context has no keys and values, or nobody asked the questions; or not one token fits.
            ConfigError: as ``KvCodec.encode``.
        """
        limit, kv = self.spec.length(payload_bytes), self.own(context)
        if context.attended is None:
            raise EncodeError("expected a context that tells what was looked at, got one without: let a Sender read it")
        most = max(1, round(self.share * kv.tokens))
        while True:
            payload = self.container(compacted(kv, context.attended, most))
            if len(payload) <= limit:
                return payload
            if most == 1:
                raise EncodeError(f"expected room for one token, {len(payload)} bytes, got {limit}: allow more")
            most = max(1, min(most - 1, math.floor(TIGHTER * most * limit / len(payload))))

    def save_files(self, folder: Path) -> dict[str, Any]:
        """Writes nothing; returns shape, questions and share."""
        return super().save_files(folder) | {"questions": list(self.questions), "share": self.share}

    @classmethod
    def load_files(cls, folder: Path, spec: CodecSpec, trained: Trained, settings: Mapping[str, Any]) -> Self:
        """Returns the codec with those settings.

        Raises:
            StorageError: the settings are not those of such a codec, or there are two models.
            IdentityError: they are not those that the codec was saved with.
        """
        left: dict[str, Any] = dict(settings)
        questions, share = left.pop("questions", None), left.pop("share", None)
        shape = own_shape(folder, trained, left)
        try:
            codec = cls(trained.sender, shape, questions, share)
        except IlcpError as error:
            raise StorageError(f"expected a codec's settings in {folder}, got: {error}") from error
        if codec.trained.weights != trained.weights:
            raise IdentityError(
                f"expected the questions and share {trained.weights}, got others: fetch the codec again"
            )
        return codec


def _question(one: Any, number: int) -> str:
    try:
        text = require_text(one, f"question {number}")
    except EncodeError as error:
        raise ConfigError(str(error)) from error
    if len(text) > MOST_CHARACTERS or MEMORY_HERE in text:
        got = "one with ilcp.MEMORY_HERE" if MEMORY_HERE in text else f"{len(text)} characters"
        raise ConfigError(f"expected question {number} as a text of at most {MOST_CHARACTERS} characters, got {got}")
    return text


def compacted(kv: KeysValues, attended: tuple[Tensor, ...], tokens: int) -> KeysValues:
    """Returns ``tokens`` of each head, the most attended, in their order, as far from what follows as they stood.

    Args:
        attended: of each layer how much each token of each head counts, ``"heads held"``.

    Raises:
        EncodeError: that is of another cache.
    """
    kv = kv.at(None)
    shapes = [keys.shape[:2] for keys in kv.keys]
    if [each.shape for each in attended] != shapes or not all(bool(each.isfinite().all()) for each in attended):
        raise EncodeError("expected one finite number for each token of each head, got others: read the text again")
    pairs = [
        _kept(keys, values, looked, rope, window, kv.tokens, tokens)
        for keys, values, looked, rope, window in zip(kv.keys, kv.values, attended, kv.ropes, kv.windows, strict=True)
    ]
    return replace(
        kv, keys=tuple(keys for keys, _ in pairs), values=tuple(values for _, values in pairs), tokens=tokens
    )


def _kept(
    keys: Tensor, values: Tensor, looked: Tensor, rope: tuple[float, ...], window: int, before: int, tokens: int
) -> tuple[Tensor, Tensor]:
    """Returns what stays of one layer; ``before`` tokens become ``tokens``."""
    heads, held, _ = keys.shape
    kept = held_tokens(tokens, window)
    chosen = looked.sort(dim=-1, descending=True, stable=True).indices[:, :kept].sort(-1).values
    stood = chosen.cpu().double() + (before - held)
    stands = torch.arange(tokens - kept, tokens, dtype=torch.float64) + (before - tokens)
    head = torch.arange(heads, device=keys.device)[:, None]
    own = keys[head, chosen.to(keys.device)]
    moved = [turned(own[at][None], stood[at] - stands, rope)[0] for at in range(heads)]
    return torch.stack(moved), values[head, chosen.to(keys.device)]
