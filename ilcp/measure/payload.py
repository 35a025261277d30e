"""The bytes of a message, part by part, and of what it stands for."""

from dataclasses import dataclass
from typing import Any

import zstandard

from ilcp.errors import ConfigError
from ilcp.inputs import require_text
from ilcp.measure.figures import Computed, Measured
from ilcp.message import describe
from ilcp.message.keys import Key

__all__ = ["Payload", "kv_cache", "payload"]

FLOAT32_BYTES = 4


@dataclass(frozen=True, slots=True)
class Payload:
    """The bytes of one message by part (measured), beside the forms it replaces."""

    message: Measured
    parts: dict[str, Measured]
    replaces: dict[str, Measured | Computed]

    def __str__(self) -> str:
        lines = [f"message: {self.message}"]
        lines += [f"  {name}: {figure}" for name, figure in self.parts.items()]
        lines += ["stands for:"] if self.replaces else []
        lines += [f"  {name}: {figure}" for name, figure in self.replaces.items()]
        return "\n".join(lines)


def payload(
    message: bytes,
    *,
    key: Key | None = None,
    audience: str | None = None,
    text: str | None = None,
    sender: Any = None,
    receiver: Any = None,
) -> Payload:
    """Measures the size of ``message`` as serialised, and of what it stands for.

    Args:
        message: what ``Sender.encode`` gave.
        key: of a sealed message; without it the MAC is not verified.
        audience: whom it was sealed for, if for anybody by name.
        text: what was encoded; its UTF-8 and zstd sizes are then measured.
        sender: an ``ilcp.Sender``; with ``text``, the size of its last hidden states is computed.
        receiver: an ``ilcp.Receiver``; with ``text``, its token count is measured and its KV cache computed.

    Raises:
        DecodeError: the bytes are no message.
        ConfigError: a sender or receiver is given without a text, or the text is none.
    """
    if text is None and (sender is not None or receiver is not None):
        raise ConfigError("expected a text beside the sender or receiver: sizes are of what was encoded")
    found = describe(message, key=key, audience=audience)
    replaces: dict[str, Measured | Computed] = {}
    if text is not None:
        text = require_text(text, error=ConfigError, may_be_empty=True)
        replaces["text, UTF-8"] = _bytes(text.encode("utf-8"))
        replaces["text, zstd level 19"] = _bytes(zstandard.compress(text.encode("utf-8"), 19))
    if text is not None and sender is not None:
        tokens, hidden = len(sender.tokenizer(text).input_ids), sender.model.config.hidden_size
        replaces["sender's last hidden states, float32"] = Computed(
            tokens * hidden * FLOAT32_BYTES,
            "B",
            "tokens * hidden * 4",
            {"tokens": tokens, "hidden": hidden},
        )
    if text is not None and receiver is not None:
        tokens = len(receiver.tokenizer(text, add_special_tokens=False).input_ids)
        replaces["receiver's tokens"] = Measured(tokens, "tokens", 1)
        replaces["receiver's KV cache, float32"] = kv_cache(receiver.model.config, tokens)
    parts = {part.name: Measured(part.size_bytes, "B", 1) for part in found.parts}
    return Payload(Measured(found.total_bytes, "B", 1), parts, replaces)


def _bytes(data: bytes) -> Measured:
    return Measured(len(data), "B", 1)


def kv_cache(config: Any, tokens: int, value_bytes: int = FLOAT32_BYTES) -> Computed:
    """Returns the bytes of the keys and values that a model of that configuration keeps for so many tokens."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    layers = config.num_hidden_layers
    return Computed(
        2 * layers * tokens * heads * width * value_bytes,
        "B",
        f"2 * layers * tokens * kv_heads * head_dim * {value_bytes}",
        {"layers": layers, "tokens": tokens, "kv_heads": heads, "head_dim": width},
    )
