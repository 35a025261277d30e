"""The wire format of a hand-off, Message v1 and v2. This docstring is the normative specification.

    >>> wire = Message(codec_id=bytes(8), payload=bytes(80)).to_bytes()
    >>> len(wire), Message.from_bytes(wire).payload == bytes(80)
    (100, True)
    >>> wire = Message(codec_id=bytes(8), payload=b"", blob=Blob.of(bytes(10**6))).to_bytes()
    >>> len(wire), Message.from_bytes(wire).version
    (59, 2)

**Layout.** A message is one positional msgpack array, bare or sealed, with literals or not; in version 2 it names a
blob. Integers are big-endian; the payload has n bytes, the literals have k, the blob has b. A writer MUST encode every
part as this table says, so each message has exactly one encoding, but for literals: their text,
or any frame that is shorter.

    part            encoding                            bytes, bare    bytes, sealed
    array header    0x94 bare, 0x96 sealed;                       1                1
                    0x95, 0x97 with literals;
      version 2     0x96 bare, 0x98 sealed;
                    0x97, 0x99 with literals
    version         0x01, or 0x02 where a blob is named           1                1
    codec_id        0xc4 0x08, value                          2 + 8            2 + 8
    payload         0xc4 n, value; n <= 255                   2 + n            2 + n
                    0xc5 n n, value; n >= 256                 3 + n            3 + n
    blob_bytes,     b; b <= 127                                   1                1
      version 2     0xcc, uint8; b <= 255                     1 + 1            1 + 1
                    0xcd, uint16; b < 2**16                   1 + 2            1 + 2
                    0xce, uint32; b < 2**32                   1 + 4            1 + 4
                    0xcf, uint64; b >= 2**32                  1 + 8            1 + 8
    blob_digest,    0xc4 0x20, value                         2 + 32           2 + 32
      version 2
    handoff_id      0xc4 0x08, value                              -            2 + 8
    expires_unix_s  0xce, uint32                                  -            1 + 4
    literals,       0xa0 | k, text; k <= 31                   1 + k            1 + k
      where the     0xd9 k, text; 32 <= k <= 255              2 + k            2 + k
      array header  0xda k k, text; k >= 256                  3 + k            3 + k
      says so       0xc4 k, frame; k <= 255                   2 + k            2 + k
                    0xc5 k k, frame; k >= 256                 3 + k            3 + k
    check           0xc4 0x04, value                          2 + 4                -
    mac             0xc4 0x10, value                              -           2 + 16
    total, n = 80, no literals                                  100              127
    total, version 2, n = 0, b = 2**20, no literals              59               86

- `codec_id` names the codec that decodes the payload. `handoff_id` SHOULD be unique: it is idempotency key and nonce.
- A blob is bytes that travel beside the message, under their digest: `blob_digest` MUST be their unkeyed BLAKE2b,
  digest size 32, no salt and no personalisation. What the codec decodes is then the payload field's bytes followed by
  the blob's. A reader MUST NOT decode the field alone, and MUST NOT use a byte of a blob before size and digest of the
  whole have been compared.
- `check` MUST be the unkeyed BLAKE2b, digest size 4, and `mac` the keyed BLAKE2b, digest size 16, no salt and no
  personalisation, of all bytes that precede the check or mac field: that field's own 2-byte header is not covered.
- The key has 16 to 64 bytes and MUST NOT be used for anything else.
- A message MAY be sealed for one recipient, by a name that both ends know and that is not on the wire: the audience, 1
  to 256 bytes of UTF-8. Its MAC is then under another key: the keyed BLAKE2b under the key, digest size 32, no salt,
  personalisation "ilcp audience" (zeros behind it), of the audience.
- `expires_unix_s` MUST take the 5-byte encoding, so it MUST be at least 2**16: msgpack would shorten a smaller number.
- `literals` are strings, joined by line feeds (0x0a) to a text in UTF-8. Each occurs once, has a character or more,
  begins and ends with no space (U+0020), and holds none of U+0000-001F, U+007F-009F, U+2028, U+2029, U+E000-F8FF.
  The field is the text, or in its place a zstd frame (RFC 8878) without its 4-byte magic number 28 b5 2f fd, but
  only where the whole field becomes shorter by it. The frame's first byte MUST be 0x20 or 0x60: a single segment that
  declares its size, no dictionary, no checksum. A writer MAY always write the text; a reader MUST read both.

**Limits.** The payload has 1 to 65535 bytes: bin 16 can state no more, and it is 800 times the usual 80; in version 2
it has 0 to 65535. A blob has 1 to 2**36 bytes, 64 GiB: the exact cache of 131,072 tokens in 80 layers has 40. The
literals' text has 1 to 1024. So a bare message has 21 to 66583 bytes and a sealed one 48 to 66610, in version 2 55 to
66626 and 82 to 66653. `expires_unix_s` ends with uint32, in February 2106. Reading allocates at most 5 times the
message plus 32 KiB, and inside zstd 192 KiB; it fetches no blob.

**Reading.** A reader MUST make these checks in this order and refuse a message that fails one. So it copies nothing
before 1, hashes nothing before 8, opens nothing unverified, and never allocates what a length merely claims:
 1. the argument is bytes, and there are 21 to 66653 of them;
 2. byte 0 is an array header, byte 1 is version 1 or 2, the array has 4 to 7 fields, in version 2 6 to 9;
 3. each field after the version is of its msgpack type: `expires_unix_s` and `blob_bytes` integers, literals text or
    binary, all others binary;
 4. there are as many bytes as the headers imply: none missing, none trailing;
 5. each field, the literals as they stand (1 to 1024 bytes), has its length or is within its limits;
 6. the fields, encoded again, give the very same bytes: any other msgpack spelling of the same values is refused;
 7. the kind is the one asked for: a reader that holds a key MUST refuse a bare message (else whoever strips the seal
    is believed); one without a key MUST NOT accept a sealed message, though it MAY show it, marked as not verified;
 8. the check matches, or the MAC does under one of the keys believed (at most 4), compared in constant time; a reader
    with an audience MUST believe no other key than those made for it;
 9. the literals: the frame declares 1 to 1024 bytes, is whole, ends with the field and is shorter than its text; the
    text is UTF-8, and each string in it is as above;
10. now < `expires_unix_s` + 30 by the reader's clock: clocks of one installation may differ by 30 seconds.

**Not checked.** Whether the payload means anything, whether `codec_id` is that of the reader's codec (compare it),
whether the blob is to be had (who fetches it compares it), and replay, or whether `handoff_id` is unique: a reader that
minds asks ``ilcp.message.replay``, after all of the above.

**Threat model.** The check finds accidents (one in 2**32 goes unseen) and stops nobody: anyone can compute it.
The MAC covers every field, by its digest the blob too, and shows that a holder of the key wrote them. It does not show
- *that they are harmless.* Who holds the key steers the receiver: a latent, or a cache, of an untrusted sender is an
  untrusted prompt that no filter can read, and literals go into it as they are, but for control tokens and characters
  that nobody sees. A key per trust domain.
- *which holder wrote them.* The key is shared: a receiver can forge what its sender might have sent.
- *whom they are for*, without an audience: any holder of the key takes them.
- *that nobody else reads them.* Nothing is encrypted: use TLS where the content is confidential.
- *that they come once*, at all, or in order. Who records a message can deliver it again until it expires, but for a
  replay cache; and once to each receiver that has a cache of its own.
- *the time.* Expiry trusts both clocks: who sets the receiver's back prolongs every message. 30 s are given away.

**Evolution.** One version has one layout. A v1 reader MUST refuse any other version, and any other number of fields:
nothing unknown is skipped, because a reader that drops a field hands on less than was sent, in silence. So a new field,
trailing or not, takes a new version. A writer MUST write the lowest version that holds what it has to say: old readers
go on reading what they can. A reader of version 2 MUST read version 1. Golden vectors (``tests/golden``) never change.
"""

from ilcp.message.blob import MAX_BLOB_BYTES, Blob
from ilcp.message.description import Description, describe
from ilcp.message.format import (
    CLOCK_SKEW_S,
    CODEC_ID_BYTES,
    MAX_MESSAGE_BYTES,
    MAX_PAYLOAD_BYTES,
    Message,
    Part,
    verified,
)
from ilcp.message.keys import KeyRing
from ilcp.message.seal import Seal

__all__ = [
    "CLOCK_SKEW_S",
    "CODEC_ID_BYTES",
    "MAX_BLOB_BYTES",
    "MAX_MESSAGE_BYTES",
    "MAX_PAYLOAD_BYTES",
    "Blob",
    "Description",
    "KeyRing",
    "Message",
    "Part",
    "Seal",
    "describe",
    "verified",
]
