"""``codec.decode`` of any payload, and the receiver's check of the memory that comes out: a VAE and two text codecs.

The first byte of an input picks the codec, the second a length of the VAE's; the others are the payload.
"""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from ilcp.errors import DecodeError
from ilcp.forward import embedding_norm
from ilcp.identity import ANY
from ilcp_codecs.text import PlainCodec, ZstdCodec
from ilcp_codecs.vae import VaeCodec, VaeConfig, VaeNetwork

__all__ = ["one_input"]

HIDDEN = 16


def _codecs() -> tuple[VaeCodec, PlainCodec, ZstdCodec]:
    torch.manual_seed(0)
    config = VaeConfig((0, 1), 8, HIDDEN, slots=4, dims=16, prefixes=(2, 4, 8), width=8, heads=2, projector_width=8)
    return VaeCodec.from_network(VaeNetwork(config), ANY, ANY), PlainCodec(1400), ZstdCodec(1400)


def _norm() -> float:
    small = dict(hidden_size=HIDDEN, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, vocab_size=32)
    return embedding_norm(LlamaForCausalLM(LlamaConfig(**small)))


VAE, PLAIN, ZSTD = _codecs()
NORM = _norm()


def one_input(data: bytes) -> None:
    """Fails where a payload brings out anything but a memory that a receiver takes, or a DecodeError."""
    which, length, payload = data[:1], data[1:2], data[2:]
    codec = (VAE, PLAIN, ZSTD)[which[0] % 3 if which else 0]
    if codec is VAE and length and length[0] % 4:
        n = VAE.spec.prefixes[length[0] % 4 - 1]
        payload = payload[:n].ljust(n, b"\0")
    try:
        memory = codec.decode(payload)
        if memory.text is None:
            vectors = memory.checked_vectors(HIDDEN, NORM)
            assert bool(torch.isfinite(vectors).all())
            assert vectors.shape == (4, HIDDEN)
        else:
            assert memory.text.encode("utf-8") is not None
    except DecodeError as error:
        if not str(error).startswith("expected "):
            raise
