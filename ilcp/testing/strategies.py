"""Hypothesis strategies for what ilcp takes, and for what an attacker sends.

Each strategy is a function, its result shrinks towards the smallest case, and nothing here reads a clock or a file.
The checks, MACs and ciphertexts of ``hostile_bytes`` are computed here from the specification, not with the code under
test; the latter take cryptography.
"""

import hashlib

import msgpack  # type: ignore[import-untyped]
import torch
import zstandard
from hypothesis import strategies as st

from ilcp.codec.context import Context
from ilcp.codec.spec import CodecSpec
from ilcp.message import MAX_BLOB_BYTES, Blob, Message, Seal
from ilcp.message.seal import MAX_EXPIRES_UNIX_S, MIN_EXPIRES_UNIX_S

__all__ = [
    "bare_messages",
    "blobs",
    "codec_ids",
    "contexts",
    "encrypted_messages",
    "hostile_bytes",
    "keys",
    "literals",
    "payloads",
    "payloads_of",
    "sealed_messages",
    "seals",
    "texts",
    "with_check",
    "with_ciphertext",
    "with_mac",
]

# What most payloads hold is below this; the largest ones have tests of their own, which name their size.
USUAL_PAYLOAD_BYTES = 300


def codec_ids() -> st.SearchStrategy[bytes]:
    """Any codec id: 8 bytes."""
    return st.binary(min_size=8, max_size=8)


def payloads(max_size: int = USUAL_PAYLOAD_BYTES) -> st.SearchStrategy[bytes]:
    """Any payload of 1 to `max_size` bytes; the default crosses the border from bin 8 to bin 16 at 256."""
    return st.one_of(
        st.binary(min_size=1, max_size=max_size),
        st.sampled_from([n for n in (1, 80, 255, 256, max_size) if n <= max_size]).map(bytes),
    )


def payloads_of(spec: CodecSpec, max_size: int = USUAL_PAYLOAD_BYTES) -> st.SearchStrategy[bytes]:
    """Any bytes of a length that a codec of this spec may be given, as damaged or hostile payloads are."""
    lengths = spec.prefixes or range(1, min(spec.payload_bytes, max_size) + 1)
    return st.sampled_from(lengths).flatmap(lambda n: st.binary(min_size=n, max_size=n))


def texts(max_size: int = 200) -> st.SearchStrategy[str]:
    """Any text that says something: one character that is no space, at least."""
    return st.text(min_size=1, max_size=max_size).filter(str.strip)


def contexts(layers: int = 0, hidden: int = 0, max_tokens: int = 12) -> st.SearchStrategy[Context]:
    """Any context with a text; with ``layers`` and ``hidden`` also with states ``"layers tokens hidden"``, of any
    size and sign."""
    if not layers:
        return st.builds(Context, text=texts())

    def states(seed: int, tokens: int, scale: float) -> torch.Tensor:
        return scale * torch.randn(layers, tokens, hidden, generator=torch.Generator().manual_seed(seed))

    drawn = st.builds(states, st.integers(0, 2**32 - 1), st.integers(1, max_tokens), st.sampled_from([1.0, 1e-3, 1e3]))
    return st.builds(Context, text=texts(), states=drawn)


def keys() -> st.SearchStrategy[bytes]:
    """Any key that may seal a message: 16 to 64 bytes, not all alike."""
    return st.binary(min_size=16, max_size=64).filter(lambda key: len(set(key)) > 1)


def seals() -> st.SearchStrategy[Seal]:
    """Any seal, expired or not: every id, every expiry that the wire can carry."""
    return st.builds(Seal, st.binary(min_size=8, max_size=8), st.integers(MIN_EXPIRES_UNIX_S, MAX_EXPIRES_UNIX_S))


def literals() -> st.SearchStrategy[tuple[str, ...]]:
    """Any literals that fit: none, few, or alike, so that zstd makes them shorter."""
    # The categories of what the specification refuses: Cc, Zl, Zp, Cs, Co. Spaces around a literal are taken off.
    words = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Zl", "Zp", "Cs", "Co")), max_size=20)
    some = st.lists(words.map(lambda word: word.strip(" ")).filter(bool), max_size=8, unique=True).map(tuple)
    alike = st.integers(1, 60).map(lambda n: tuple(f"INC-2024-{i:04d}" for i in range(n)))
    return st.one_of(st.just(()), some, alike)


def blobs() -> st.SearchStrategy[Blob]:
    """The name of any blob, of every size that the wire can carry."""
    borders = st.sampled_from([1, 127, 128, 255, 256, 2**16 - 1, 2**16, 2**32 - 1, 2**32, MAX_BLOB_BYTES])
    return st.builds(Blob, borders | st.integers(1, MAX_BLOB_BYTES), st.binary(min_size=32, max_size=32))


def bare_messages() -> st.SearchStrategy[Message]:
    """Any message without a seal, with a blob (version 2) or without."""
    return _messages(st.none())


def sealed_messages() -> st.SearchStrategy[Message]:
    """Any message with a seal, with a blob (version 2) or without; writing it needs one of `keys()`."""
    return _messages(seals())


def encrypted_messages() -> st.SearchStrategy[Message]:
    """Any message of version 3, with a blob or without; writing it needs one of `keys()`, and cryptography."""
    return _messages(seals(), encrypted=True)


def _messages(seal: st.SearchStrategy[Seal | None], encrypted: bool = False) -> st.SearchStrategy[Message]:
    rest = {"literals": literals(), "encrypted": st.just(encrypted)}
    plain = st.builds(Message, codec_ids(), payloads(), seal, **rest)
    with_blob = st.builds(Message, codec_ids(), payloads() | st.just(b""), seal, blob=blobs(), **rest)
    return plain | with_blob


def hostile_bytes(key: bytes) -> st.SearchStrategy[bytes]:
    """Bytes that a peer may send to break a reader, some sealed or encrypted under `key`, a few of them even valid.

    Random bytes; valid messages that were changed, truncated or lengthened; msgpack of other shapes; and, to get past
    check, MAC and tag, arrays of the right length with wrong fields whose check, MAC or tag is right.
    """
    under = st.one_of(sealed_messages(), encrypted_messages()).map(lambda m: m.to_bytes(key))
    wires = st.one_of(bare_messages().map(Message.to_bytes), under)
    junk = st.binary(min_size=1, max_size=40)
    return st.one_of(
        st.binary(max_size=400),
        wires,
        st.builds(_overwritten, wires, st.integers(0, 400), junk),
        st.builds(_without, wires, st.integers(0, 400), st.integers(1, 40)),
        st.builds(lambda wire, n: wire[: n % len(wire)], wires, st.integers(0, 400)),
        st.builds(lambda wire, tail: wire + tail, wires, junk),
        _msgpack_values().map(_packed),
        _forged(key),
    )


def _overwritten(wire: bytes, at: int, patch: bytes) -> bytes:
    at %= len(wire)
    return wire[:at] + patch + wire[at + len(patch) :]


def _without(wire: bytes, at: int, n: int) -> bytes:
    at %= len(wire)
    return wire[:at] + wire[at + n :]


def _packed(value: object) -> bytes:
    packed = msgpack.packb(value)
    assert isinstance(packed, bytes)
    return packed


def _msgpack_values() -> st.SearchStrategy[object]:
    """Any value that msgpack can pack: nested lists and maps of numbers, text, bytes and extensions."""
    leaves = st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**63), 2**64 - 1),
        st.floats(),
        st.text(max_size=20),
        st.binary(max_size=100),
        st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=20)),
    )
    return st.recursive(
        leaves,
        lambda inner: st.one_of(st.lists(inner, max_size=7), st.dictionaries(st.text(max_size=5), inner, max_size=4)),
        max_leaves=20,
    )


def _forged(key: bytes) -> st.SearchStrategy[bytes]:
    """Arrays of 4 to 9 fields, any of them wrong, under a check, a MAC or a tag that is right."""
    version = st.sampled_from([b"\x01", b"\xcc\x01", b"\x00", b"\x02", b"\x03", b"\xc3"])
    codec_id = st.one_of(codec_ids(), st.text(min_size=8, max_size=8), st.none()).map(_packed)
    payload = st.one_of(
        payloads(),
        st.just(b""),
        st.text(max_size=80),
        _msgpack_values(),
    ).map(_packed)
    wide_payload = st.binary(max_size=80).map(lambda p: b"\xc5" + len(p).to_bytes(2, "big") + p)
    handoff_id = st.one_of(codec_ids(), st.binary(max_size=16)).map(_packed)
    expires = st.one_of(
        st.integers(0, 2**32 - 1).map(lambda s: b"\xce" + s.to_bytes(4, "big")),
        st.integers(0, 2**16).map(_packed),
    )
    head = st.tuples(version, codec_id, st.one_of(payload, wide_payload)).map(b"".join)
    seal = st.tuples(handoff_id, expires).map(b"".join)
    blob = st.tuples(_packed_sizes(), st.binary(min_size=31, max_size=33).map(_packed)).map(b"".join)
    none = st.just(b"")
    fields = st.tuples(head, none | blob, none | seal, none | _literals_fields())
    plain = st.one_of(
        st.binary(max_size=40), st.builds(bytes.__add__, st.just(b"\xa0") | _literals_fields(), payloads())
    )
    ids = st.tuples(version | st.just(b"\x03"), codec_id, none | blob, seal).map(b"".join)
    header = st.sampled_from([0x95, 0x97, 0x95, 0x97, 0x96])
    hidden = st.builds(
        lambda first, body, plain: with_ciphertext(bytes([first]) + body, plain, key), header, ids, plain
    )
    open_ = fields.flatmap(lambda parts: st.sampled_from([0, 0, 0, 1]).map(lambda off: _array(*parts, off, key)))
    return open_ | hidden


def _array(head: bytes, blob: bytes, seal: bytes, beside: bytes, off: int, key: bytes) -> bytes:
    """Returns an array of these fields, whose header says `off` more, under the check or the MAC."""
    header = 0x94 + 2 * bool(blob) + 2 * bool(seal) + bool(beside) + off
    body = bytes([header]) + head + blob + seal + beside
    return with_mac(body, key) if seal else with_check(body)


def _packed_sizes() -> st.SearchStrategy[bytes]:
    """Sizes of blobs as msgpack packs them, too large, none, or longer than need be."""
    wide = st.integers(0, 2**37).map(lambda n: b"\xcf" + n.to_bytes(8, "big"))
    return st.integers(-1, 2**37).map(_packed) | wide


def _literals_fields() -> st.SearchStrategy[bytes]:
    """Fields of literals: text and frames, of any header, most of them wrong in one thing."""
    text = st.one_of(
        st.text("ab\n \t\ue000\u2028ø", max_size=12).map(str.encode),
        literals().map(lambda some: "\n".join(some).encode()),
        st.binary(max_size=12),
    )
    frame = st.one_of(
        text.map(lambda data: zstandard.ZstdCompressor(level=1).compress(data)[4:]),
        st.integers(1, 2000).map(lambda n: zstandard.ZstdCompressor(level=1).compress(b"a" * n)[4:]),
        st.binary(max_size=20).map(lambda data: b"\x20" + data),
        st.builds(_overwritten, st.just(zstandard.compress(b"INC-2024-0017\n" * 9)[4:]), st.integers(0, 30), text),
    )
    raw = frame.map(lambda data: b"\xc4" + bytes([len(data) % 256]) + data)
    wide = text.map(lambda data: b"\xd9" + bytes([len(data) % 256]) + data)
    return st.one_of(text.map(_str), wide, raw, _msgpack_values().map(_packed))


def _str(data: bytes) -> bytes:
    """Returns a str of `data` in the shortest form, UTF-8 or not."""
    n = len(data)
    header = bytes([0xA0 | n]) if n < 32 else bytes([0xD9, n]) if n < 256 else b"\xda" + n.to_bytes(2, "big")
    return header + data


def with_check(body: bytes) -> bytes:
    """`body` with the check field that the specification demands for it."""
    return body + b"\xc4\x04" + hashlib.blake2b(body, digest_size=4).digest()


def with_mac(body: bytes, key: bytes) -> bytes:
    """`body` with the MAC field that the specification demands for it under `key`."""
    return body + b"\xc4\x10" + hashlib.blake2b(body, digest_size=16, key=key).digest()


def with_ciphertext(body: bytes, plain: bytes, key: bytes) -> bytes:
    """`body`, which ends with id and expiry, with the ciphertext field that the specification demands for `plain`."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCMSIV

    n, own = len(plain) + 16, hashlib.blake2b(key=key, digest_size=32, person=b"ilcp encryption").digest()
    header = (
        b"\xc4" + bytes([n])
        if n < 256
        else b"\xc5" + n.to_bytes(2, "big")
        if n < 2**16
        else b"\xc6" + n.to_bytes(4, "big")
    )
    nonce = (bytes(13) + body)[-13:-5] + body[-4:].rjust(4, b"\0")
    return body + header + AESGCMSIV(own).encrypt(nonce, plain, body + header)
