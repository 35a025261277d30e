"""The wire format of a hand-off, Message v1, v2 and v3. This docstring is the normative specification.

    >>> wire = Message(codec_id=bytes(8), payload=bytes(80)).to_bytes()
    >>> len(wire), Message.from_bytes(wire).payload == bytes(80)
    (100, True)
    >>> wire = Message(codec_id=bytes(8), payload=b"", blob=Blob.of(bytes(10**6))).to_bytes()
    >>> len(wire), Message.from_bytes(wire).version
    (59, 2)
    >>> wire = Message(codec_id=bytes(8), payload=bytes(80), seal=Seal.fresh(ttl_s=60), encrypted=True)
    >>> len(wire.to_bytes(bytes(range(32)))), wire.version
    (126, 3)

**Layout.** A message is one positional msgpack array, bare or sealed, with literals or not; in version 2 it names a
blob; in version 3 it is encrypted, with a blob or not (its table is below). Integers are big-endian; the payload has n
bytes, the literals have k, the blob has b. A writer MUST encode every part as this table says, so each message has
exactly one encoding, but for literals: their text, or any frame that is shorter.

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

    part of version 3   encoding                                 bytes
    array header        0x95; 0x97 where a blob is named             1
    version             0x03                                         1
    codec_id            0xc4 0x08, value                         2 + 8
    blob_bytes,         as in version 2, where                1 to 1 + 8
      blob_digest         a blob is named                       2 + 32
    handoff_id          0xc4 0x08, value                         2 + 8
    expires_unix_s      0xce, uint32                             1 + 4
    ciphertext          0xc4 m, value; m <= 255                  2 + m
                        0xc5 m m, value; m >= 256                3 + m
                        0xc6 m m m m, value; m >= 2**16          5 + m
      of which hidden     0xa0, or literals as in the table above:   1, or as there
                          the whole field, header and all
                        payload, no header                           n
      and not hidden    tag                                         16
    total, n = 80, no literals                                     126
    total, n = 0, b = 2**20 + 16, no literals                       85

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
- `ciphertext` MUST be AES-256-GCM-SIV (RFC 8452) of what it hides, its 16-byte tag last. The nonce is `handoff_id` and
  the 4 bytes of `expires_unix_s`; the associated data are all bytes of the message before the ciphertext's value, its
  header included. The cipher's key is the keyed BLAKE2b, digest size 32, no salt, personalisation "ilcp encryption"
  (zeros behind it), of nothing, under the key, or under the audience's where there is one: it is no key of a MAC.
- Beside a message of version 3 the blob MUST be encrypted, and `blob_bytes` and `blob_digest` are of what it then is.
  It is cut into segments of 2**20 bytes, the last of 1 to 2**20; each is AES-256-GCM-SIV, its tag behind it, without
  associated data. The nonce is the segment's number from 0 in 11 bytes, and a byte that is 1 in the last, else 0. The
  key is the keyed BLAKE2b as above, but personalisation "ilcp blob", and of the message's nonce. That is 16 bytes more
  for each 2**20. A reader MUST refuse a blob with a segment that does not decrypt, or is empty, and use none of it.
- `expires_unix_s` MUST take the 5-byte encoding, so it MUST be at least 2**16: msgpack would shorten a smaller number.
- `literals` are strings, joined by line feeds (0x0a) to a text in UTF-8. Each occurs once, has a character or more,
  begins and ends with no space (U+0020), and holds none of U+0000-001F, U+007F-009F, U+2028, U+2029, U+E000-F8FF.
  The field is the text, or in its place a zstd frame (RFC 8878) without its 4-byte magic number 28 b5 2f fd, but
  only where the whole field becomes shorter by it. The frame's first byte MUST be 0x20 or 0x60: a single segment that
  declares its size, no dictionary, no checksum. A writer MAY always write the text; a reader MUST read both.

**Limits.** The payload has 1 to 65535 bytes: bin 16 can state no more, and it is 800 times the usual 80; with a blob it
has 0 to 65535. A blob has 1 to 2**36 bytes, 64 GiB: the exact cache of 131,072 tokens in 80 layers has 40. The
literals' text has 1 to 1024. So a bare message has 21 to 66583 bytes and a sealed one 48 to 66610, in version 2 55 to
66626 and 82 to 66653; an encrypted one has 47 to 66610, with a blob 81 to 66653: never more than a sealed one of the
same content, but for 1 byte where n >= 65519 and there are no literals. `expires_unix_s` ends with uint32, in February
2106. Reading allocates at most 5 times the message plus 32 KiB, and inside zstd 192 KiB; it fetches no blob.

**Reading.** A reader MUST make these checks in this order and refuse a message that fails one. So it copies nothing
before 1, hashes nothing before 8, opens nothing unverified, and never allocates what a length merely claims:
 1. the argument is bytes, and there are 21 to 66653 of them;
 2. byte 0 is an array header, byte 1 is version 1 to 3, the array has 4 to 7 fields, in version 2 6 to 9, in version 3
    5 or 7;
 3. each field after the version is of its msgpack type: `expires_unix_s` and `blob_bytes` integers, literals text or
    binary, all others binary;
 4. there are as many bytes as the headers imply: none missing, none trailing;
 5. each field, the literals as they stand (1 to 1024 bytes), has its length or is within its limits; the ciphertext has
    18 to 66578 bytes, with a blob 17 to 66578;
 6. the fields, encoded again, give the very same bytes: any other msgpack spelling of the same values is refused;
 7. the kind is the one asked for: a reader that holds a key MUST refuse a bare message (else whoever strips the seal
    is believed); one without a key MUST NOT accept a sealed or encrypted one, though it MAY show it, marked as not
    verified; one with a key takes both;
 8. the check matches, or the MAC does under one of the keys believed (at most 4), compared in constant time, or the
    ciphertext decrypts under one of them; a reader with an audience MUST believe no other key than those made for it;
 9. what was hidden begins with 0xa0 or a whole field of literals, within its limits and in its shortest form, and what
    is left is a payload within its limits; the literals: the frame declares 1 to 1024 bytes, is whole, ends with the
    field and is shorter than its text; the text is UTF-8, and each string in it is as above;
10. now < `expires_unix_s` + 30 by the reader's clock: clocks of one installation may differ by 30 seconds.

**Not checked.** Whether the payload means anything, whether `codec_id` is that of the reader's codec (compare it),
whether the blob is to be had (who fetches it compares it), and replay, or whether `handoff_id` is unique: a reader that
minds asks ``ilcp.message.replay``, after all of the above.

**Threat model.** The check finds accidents (one in 2**32 goes unseen) and stops nobody: anyone can compute it.
The MAC, or the tag, covers every field, by its digest the blob too, and shows that a holder of the key wrote them. It
does not show
- *that they are harmless.* Who holds the key steers the receiver: a latent, or a cache, of an untrusted sender is an
  untrusted prompt that no filter can read, and literals go into it as they are, but for control tokens and characters
  that nobody sees. A key per trust domain.
- *which holder wrote them.* The key is shared: a receiver can forge what its sender might have sent.
- *whom they are for*, without an audience: any holder of the key takes them.
- *that nobody else reads them*, but in version 3: a bare or sealed message is readable to whoever sees it.
- *that they come once*, at all, or in order. Who records a message can deliver it again until it expires, but for a
  replay cache; and once to each receiver that has a cache of its own.
- *the time.* Expiry trusts both clocks: who sets the receiver's back prolongs every message. 30 s are given away.

Encryption hides payload, literals (and whether there are any) and the blob's content from who has no key. It hides
- *no length.* That of a latent is its codec's; that of a text is the text's, and of literals beside it a word's.
- *not the codec's id, the hand-off's id, its expiry*, and so about when it was made, nor the name and size of its blob.
- *no traffic*: who sends to whom, how often, when. The audience is not on the wire; the transport knows its mailbox.
- *nothing from a holder of the key*, now or later. Keys are long-lived and there is no forward secrecy: who records
  messages and gets the key one day reads all of them. Rotate, and destroy old keys.
- *not that two messages are equal*, where id and expiry are the same too, and of blobs then that segments are. Ids are
  random: among 2**32 messages of one key that expire in one second, two have the same one with a chance of 39 %. A key
  SHOULD be replaced before it has encrypted 2**32 messages.
- *nothing beyond the hop*: what a receiver, an audit, a log or a replay cache keeps is theirs to hide.
The cipher does not commit to its key: who holds two keys can write one message that decrypts under each, to something
else. So what one receiver read is no evidence of what another one did.

**Evolution.** One version has one layout. A v1 reader MUST refuse any other version, and any other number of fields:
nothing unknown is skipped, because a reader that drops a field hands on less than was sent, in silence. So a new field,
trailing or not, takes a new version. A writer MUST write the lowest version that holds what it has to say: old readers
go on reading what they can. A reader of version 2 MUST read version 1, one of version 3 both; one that lacks the cipher
is a reader of version 2, and refuses version 3 as that does. Golden vectors (``tests/golden``) never change.
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
