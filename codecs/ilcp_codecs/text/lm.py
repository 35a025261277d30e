"""The equal-byte baseline to fear: text coded with a language model and a range coder.

::

    encode   text --tokenizer--> ids --model, token by token--> probabilities "ids vocabulary" --range coder--> payload
    decode   payload --range decoder, given what the model expects--> ids --tokenizer--> the text's head

The first symbol is a mode: a text that the tokenizer cannot give back, or that surprises the model, goes as UTF-8
bytes, all alike. ``range_code`` says how a text ends.

**Both sides must expect the same**, bit for bit. The logits of a batched pass differ from those of single steps, so
both make the very same calls: the prompt up to the context, then one token at a time. Those of float32 differ with the
number of threads and with where weights lie in memory, so a copy of the model in float64 computes them, and rounds
them. Another kind of machine or another torch may still differ, and then reads another text: a codec to measure with.
"""

from bisect import bisect_left, bisect_right
from codecs import utf_8_decode
from collections.abc import Mapping, Sequence
from copy import deepcopy
from math import inf
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from ilcp.codec.spec import CodecSpec, Trained
from ilcp.errors import ConfigError, DecodeError, StorageError
from ilcp.folders import inside
from ilcp.identity import ANY, require_same
from ilcp.inputs import require_text
from ilcp.message import MAX_PAYLOAD_BYTES
from ilcp.models.adapter import plain
from ilcp.models.fingerprint import identify
from ilcp.models.loading import load_folder
from ilcp.models.prompt import layout
from ilcp.models.reading import window_tokens
from ilcp.models.sources import FETCHED, TEMPLATES, folder_of
from ilcp_codecs import range_code
from ilcp_codecs.range_code import Probabilities
from ilcp_codecs.text.codecs import TextCodec

__all__ = ["LmCodec"]

FOLDER = "lm"
MODEL, BYTES = 0, 1  # the modes
MODES = np.array([255, 1]) / 256  # the model costs 0.006 bits to announce, bytes 8
FLOOR = 2**-10  # the share of probability that all tokens divide evenly: 0.0014 bits a token, and none is impossible
MAX_TOKENS = 1 << 11  # so many steps of the model: at milliseconds each, hostile bytes cost seconds; then all are alike
# Each is a step of the model, so that hostile bytes cost no more than text of as many: one bit a token, and a start.
TOKENS_PER_BYTE, LEAST_TOKENS = 8, 64
ROUND = 2**8  # logits are multiples of its inverse: worth 1e-6 bits a token, and far above what float64 leaves unclear
CUT_OFF = "\ufffd"  # what a tokenizer makes of a character of which some bytes are missing


class _Source:
    """The probabilities of what comes next in a text: a mode, then tokens as the model expects them, or bytes.

    The model reads token by token, in the same calls wherever the tokens come from. When its window is full, it starts
    again from the latest half.
    """

    def __init__(self, model: Any, start: Sequence[int], size: int):
        self._model, self._start = model, list(start)
        self._window = window_tokens(model)
        self._symbols: list[int] = []
        self._cache: Any = None
        self._held = 0  # tokens in the cache
        self._even_tokens, self._even_bytes = np.full(size, 1 / size), np.full(256, 1 / 256)

    def __call__(self, latest: int | None) -> Probabilities:
        """Returns the probabilities of what follows ``latest``; None asks for the mode."""
        if latest is None:
            return MODES
        row = [latest] if self._symbols else self._start
        self._symbols.append(latest)
        if self._symbols[0] == BYTES:
            return self._even_bytes
        if not row or len(self._symbols) > MAX_TOKENS:  # nothing to read for a model without a first token of its own
            return self._even_tokens
        return self._expected(row)

    @torch.no_grad()
    def _expected(self, row: list[int]) -> Probabilities:
        if self._held + len(row) > self._window:
            half = (self._window - len(self._start)) // 2
            row, self._cache, self._held = [*self._start, *self._symbols[1:][-half:]], None, 0
        ids = torch.tensor([row], device=self._model.device)
        outputs = self._model(input_ids=ids, past_key_values=self._cache, use_cache=True)
        self._cache, self._held = outputs.past_key_values, self._held + len(row)
        size = len(self._even_tokens)
        logits = (outputs.logits[0, -1, :size].double() * ROUND).round() / ROUND
        if not bool(torch.isfinite(logits).all()):
            raise ConfigError("expected finite logits, got NaN or infinity: the language model's weights are damaged")
        probabilities: Probabilities = (1 - FLOOR) * logits.softmax(-1).cpu().numpy() + FLOOR / size
        return probabilities


class LmCodec(TextCodec):
    """The longest beginning of the text that fits when range-coded under a causal language model.

    Args:
        model: a transformers causal language model; a copy of it in float64 does the coding.
        tokenizer: the model's tokenizer.
        payload_bytes: the largest payload.

    Raises:
        ConfigError: model and tokenizer do not belong together, or the prompt before a context fills the window.
    """

    name = "text-lm"
    hub_files = tuple(f"{FOLDER}/{name}" for name in FETCHED)

    def __init__(self, model: Any, tokenizer: Any, payload_bytes: int = MAX_PAYLOAD_BYTES):
        model = plain(model)
        sender = identify(model, tokenizer)
        super().__init__(payload_bytes, sender.weights, sender)
        self.model = model
        self.tokenizer = tokenizer
        self._exact = deepcopy(model).double().eval()
        self._start = layout(tokenizer, "").prefix  # as the sender reads a context; the first token, without a template
        self._size = 1 + max(tokenizer.get_vocab().values())  # the model may have more logits
        smallest = 2 * len(self._start) + 4
        if window_tokens(model) < smallest:
            raise ConfigError(
                f"expected a window of at least {smallest} tokens, because the prompt before a context has "
                f"{len(self._start)}, got {window_tokens(model)}: take a model with a larger window"
            )
        self._latest: tuple[str, float, list[range_code.Path]] | None = None  # one text is often cut to several lengths

    def code_length_bits(self, text: str) -> float:
        """Returns the code length of the whole text in bits, with its open end; a payload has at most 4 bytes more.

        Raises:
            EncodeError: the text is none, or holds half of a surrogate pair.
            ConfigError: the model's weights are damaged.
        """
        text = require_text(text, may_be_empty=True)
        whole = [path for path in self._paths(text, inf) if self._read(path.symbols) == text]
        return min(path.whole_bits for path in whole)

    def save_files(self, folder: Path) -> dict[str, Any]:
        """Writes the language model and its tokenizer; there are no settings."""
        self.model.save_pretrained(folder / FOLDER, safe_serialization=True)
        self.tokenizer.save_pretrained(folder / FOLDER)
        return {}

    @classmethod
    def load_files(cls, folder: Path, spec: CodecSpec, trained: Trained, settings: Mapping[str, Any]) -> Self:
        """Returns the codec with its language model, out of the folder alone.

        Raises:
            StorageError: the model or its tokenizer is missing or damaged.
            IdentityError: it is not the one that the codec was saved with.
        """
        if trained.sender == ANY:
            raise StorageError(
                f"expected the identity of the language model of codec {cls.name!r}, got an empty one, which would fit "
                "every model: fetch the codec again"
            )
        try:
            for file in (folder / FOLDER).rglob("*"):
                if file.is_dir() and file == folder / FOLDER / TEMPLATES and not file.is_symlink():
                    continue
                inside(folder, str(file.relative_to(folder)))
            model, tokenizer = load_folder(folder_of(folder / FOLDER), str(folder / FOLDER), "auto")
        except (OSError, ConfigError) as error:  # the folder's fault, not the caller's
            raise StorageError(
                f"expected a language model and its tokenizer in {folder / FOLDER}, got: {error}"
            ) from error
        require_same("language model", trained.sender, identify(model, tokenizer))
        codec = cls(model, tokenizer, spec.payload_bytes)
        codec.trained = trained  # the states of a sentence are rounded otherwise on every machine
        return codec

    def _pack(self, text: str, limit: int) -> bytes:
        heads = [self._head(text, path, limit) for path in self._paths(text, 8 * limit)]
        return max(heads, key=lambda head: (head[0], -len(head[1])))[1]

    def _unpack(self, payload: bytes) -> bytes:
        most = _most_tokens(len(payload))
        symbols = range_code.decided(payload, self._source(), 1 + most)
        if len(symbols) > 1 + most:
            raise DecodeError(f"expected at most {most} tokens in {len(payload)} bytes, got more: nobody writes that")
        text = self._read(symbols)
        if not text:
            raise DecodeError(f"expected at least one character, got {len(payload)} bytes that decide none")
        return text.encode("utf-8")

    def _source(self) -> _Source:
        return _Source(self._exact, self._start, self._size)

    def _read(self, symbols: Sequence[int]) -> str:
        """Returns the text that symbols stand for."""
        if not symbols:
            return ""
        mode, *rest = symbols
        if mode == BYTES:
            return utf_8_decode(bytes(rest), "strict", False)[0]  # without a character that is cut off at the end
        return str(self.tokenizer.decode(rest, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def _ids(self, text: str) -> list[int]:
        """Returns the tokens of ``text``, up to where they no longer give it back."""
        ids = list(self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids)

        def strays(count: int) -> bool:
            return not text.startswith(self._read([MODEL, *ids[:count]]).rstrip(CUT_OFF))

        return ids[: bisect_left(range(1, len(ids) + 1), True, key=strays)] if strays(len(ids)) else ids

    def _paths(self, text: str, budget_bits: float) -> list[range_code.Path]:
        """Returns the ways to code ``text``, each up to the first symbol beyond the budget."""
        latest = self._latest  # once: another thread may put its own there
        if latest and latest[0] == text and latest[1] >= budget_bits:
            return latest[2]
        ways = [MODEL, *self._ids(text)], [BYTES, *text.encode("utf-8")]
        paths = [range_code.walk(symbols, self._source(), budget_bits) for symbols in ways]
        whole = all(path.bits[-1] <= budget_bits for path in paths)
        self._latest = text, inf if whole else budget_bits, paths
        return paths

    def _head(self, text: str, path: range_code.Path, limit: int) -> tuple[int, bytes]:
        """Returns how many characters of ``text`` fit into ``limit`` bytes along ``path``, and their payload."""
        for count in range(bisect_right(path.bits, 8 * limit) - 1, 1, -1):  # what has more bits cannot fit
            if count - 1 > _most_tokens(min(limit, int(path.bits[count] / 8) + range_code.SEARCH_BYTES)):
                continue
            head = self._read(path.symbols[:count])
            payload = range_code.payload_of(path, count, limit) if head and text.startswith(head) else b""
            if payload and count - 1 <= _most_tokens(len(payload)):
                return len(head), payload
        return 0, b""


def _most_tokens(payload_bytes: int) -> int:
    return LEAST_TOKENS + TOKENS_PER_BYTE * payload_bytes
