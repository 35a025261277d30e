"""Runs ``codec.decode`` on any payload, and the receiver's check of the memory that comes out: a VAE, two text codecs,
and one that hands on any floats, as damaged weights would. The codec that needs a language model is too slow here.

The first byte of an input picks the codec, the second a length of the VAE's; the others are the payload.
"""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from fuzz.limits import Limits
from ilcp.codec.memory import NORM_BAND, Memory, SoftPrompt
from ilcp.errors import DecodeError
from ilcp.identity import ANY
from ilcp.models.forward import embedding_norm
from ilcp_codecs.text import PlainCodec, ZstdCodec
from ilcp_codecs.text.codecs import MAX_TEXT_BYTES
from ilcp_codecs.vae import VaeCodec, VaeConfig, VaeNetwork

__all__ = ["one_input"]

HIDDEN = 16
LIMITS = Limits(factor=8, more_bytes=64 << 10)
# A frame may expand to MAX_TEXT_BYTES: as bytes twice over, and as a str of up to 4 bytes for each.
TEXT = Limits(factor=8, more_bytes=6 * MAX_TEXT_BYTES + (64 << 10), floor_ms=5.0)


def _codecs() -> tuple[VaeCodec, PlainCodec, ZstdCodec]:
    torch.manual_seed(0)
    config = VaeConfig((0, 1), 8, HIDDEN, slots=4, dims=16, prefixes=(2, 4, 8), width=8, heads=2, projector_width=8)
    return VaeCodec.from_network(VaeNetwork(config), ANY, ANY), PlainCodec(1400), ZstdCodec(1400)


def _norm() -> float:
    small = dict(hidden_size=HIDDEN, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, vocab_size=32)
    return embedding_norm(LlamaForCausalLM(LlamaConfig(**small)))


class Floats:
    """A codec whose payload is its vectors."""

    def decode(self, payload: bytes) -> Memory:
        floats = torch.frombuffer(bytearray(payload + b"\0" * (-len(payload) % 4) or b"\0" * 4), dtype=torch.float32)
        return SoftPrompt(torch.nn.functional.pad(floats, (0, -len(floats) % HIDDEN)).reshape(-1, HIDDEN))


VAE, PLAIN, ZSTD = _codecs()
CODECS = (VAE, PLAIN, ZSTD, Floats())
NORM = _norm()


def one_input(data: bytes) -> None:
    """Fails where a payload costs too much, or brings out anything but a DecodeError or a memory that is taken."""
    which, length, payload = data[:1], data[1:2], data[2:]
    codec = CODECS[which[0] % len(CODECS) if which else 0]
    if codec is VAE and length and length[0] % 4:
        n = VAE.spec.prefixes[length[0] % 4 - 1]
        payload = payload[:n].ljust(n, b"\0")
    try:
        memory = (TEXT if codec is ZSTD else LIMITS).of(payload, codec.decode, payload)
        held = memory.in_prompt(HIDDEN, NORM)
        if isinstance(held, str):
            assert len(held.encode("utf-8")) <= MAX_TEXT_BYTES
        else:
            assert isinstance(held, torch.Tensor)
            assert bool(torch.isfinite(held).all())
            assert codec is not VAE or held.shape == (4, HIDDEN)
            assert float(held.abs().max()) <= NORM_BAND * NORM
    except DecodeError as error:
        if not str(error).startswith("expected "):
            raise
