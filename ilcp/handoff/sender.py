"""The sending end of a hop: it reads, compresses and packs.

::

    text, ids or outputs --Sender.read--> Context --codec.encode--> payload --Message.to_bytes--> bytes
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ilcp.codec import Codec
from ilcp.context import Context, read_ids, read_outputs
from ilcp.errors import EncodeError
from ilcp.identity import check_same, identify
from ilcp.message import Message, Seal

__all__ = ["Sender"]

TTL_S = 3600  # a sealed message lives an hour unless the sender says otherwise


class Sender:
    """One side of a hop: reads, compresses, and packs.

    Args:
        model: a transformers causal language model; it is put into evaluation mode and used, its weights never change.
        tokenizer: the model's tokenizer.
        codec: trained for this sender.
        key: 16 to 64 bytes shared with the receiver; messages are then sealed (127 bytes in place of 100).
        ttl_s: how long a sealed message is valid, in seconds.

    Raises:
        IdentityError: the codec was trained for another sender; the text names the part that differs.
    """

    def __init__(self, model: Any, tokenizer: Any, codec: Codec, *, key: bytes | None = None, ttl_s: int = TTL_S):
        check_same("sender", codec.trained.sender, identify(model, tokenizer))
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.codec = codec
        self.key = key
        self.ttl_s = ttl_s
        self._codec_id = codec.trained.codec_id(codec.spec)

    def encode(self, source: Any, *, payload_bytes: int | None = None) -> bytes:
        """The message for ``source``, as bytes.

        Args:
            source: a text; token ids; or the outputs of this model's own finished ``forward`` or ``generate`` call
                with hidden states, so that no second pass is paid.
            payload_bytes: a shorter prefix of the same latent; None for the codec's own length.

        Raises:
            EncodeError: there is nothing to encode, or no payload of that length.
        """
        return self.pack(self.codec.encode(self.read(source), payload_bytes))

    def read(self, source: Any) -> Context:
        """The context of a text, token ids or model outputs (see ``encode``).

        Raises:
            EncodeError: the source is empty, or holds nothing that the codec reads.
        """
        if isinstance(source, str):
            return self._read_text(source)
        if isinstance(source, Tensor) or (isinstance(source, Sequence) and not isinstance(source, bytes)):
            ids = _one_row(source)
            if not ids or self.codec.spec.reads == "states":
                states, windows = read_ids(self.model, ids, self.codec.layers)
                return Context(states=states, windows=windows)
            return Context(text=self.tokenizer.decode(ids, skip_special_tokens=True))
        if self.codec.spec.reads == "text":
            raise EncodeError(
                f"expected a text or token ids, because codec {self.codec.spec.name!r} reads text, "
                f"got {type(source).__name__}"
            )
        return Context(states=read_outputs(source, self.codec.layers))

    def pack(self, payload: bytes) -> bytes:
        """A payload in its envelope: bare, or sealed where this sender holds a key."""
        seal = None if self.key is None else Seal.fresh(ttl_s=self.ttl_s)
        return Message(self._codec_id, payload, seal).to_bytes(self.key)

    def _read_text(self, text: str) -> Context:
        if not text.strip():
            raise EncodeError("expected a text, got an empty one: there is nothing to hand off")
        if self.codec.spec.reads == "text":
            return Context(text=text)
        ids = self.tokenizer(text, verbose=False).input_ids
        states, windows = read_ids(self.model, ids, self.codec.layers)
        return Context(text=text, states=states, windows=windows)


def _one_row(source: Any) -> list[int]:
    """The ids of one sequence; everything else that looks like a list is refused by name."""
    try:
        row = torch.as_tensor(source)
    except (TypeError, ValueError, RuntimeError) as error:
        raise EncodeError(
            f"expected a text, token ids or model outputs, got {type(source).__name__}: {error}"
        ) from error
    if row.numel() and (row.is_floating_point() or row.is_complex() or row.dtype == torch.bool):
        raise EncodeError(f"expected whole numbers as token ids, got {row.dtype}: pass hidden states as model outputs")
    if row.ndim > 2 or (row.ndim == 2 and len(row) != 1):
        raise EncodeError(f"expected the ids of one sequence, got shape {tuple(row.shape)}: encode row by row")
    ids: list[int] = row.reshape(-1).tolist()
    return ids
