"""Writes the first inputs of each target, from the golden vectors and by hand; files that are there stay as they are.

python -m fuzz.make_corpus
"""

import json
import struct
from pathlib import Path

import msgspec
import torch
import zstandard

from fuzz.kv_target import CODECS
from ilcp.codec import Context
from ilcp.codec.keys_values import KeysValues
from ilcp_codecs.kv.container import read_header

HERE = Path(__file__).resolve().parent
VECTORS = json.loads((HERE.parent / "tests" / "golden" / "v1" / "vectors.json").read_text(encoding="utf-8"))


# Of each side of the transports, by its number in ``fuzz.transport_target.SIDES``: what is in order, and what is not.
TOLD = b'{"codec_ids":["00112233445566aa"],"versions":[1],"sealed":false,"text":true}'
JSON = b"\ncontent-type: application/json\n\n"
BARE = bytes.fromhex(VECTORS["accepted"][0]["hex"])
MEDIA = b"\ncontent-type: application/vnd.ilcp.message\ncontent-length: %d\n" % len(BARE)
SEND = b"POST /v1/a" + MEDIA + b"ilcp-handoff-id: x\n"
INFO = (
    b'{"stream_name":"ilcp-handoffs","name":"a","num_ack_pending":0,"num_redelivered":0,"num_waiting":0,'
    b'"num_pending":0,"created":"2026-01-01T00:00:00Z","config":{"ack_policy":"explicit","ack_wait":60000000000,'
    b'"deliver_policy":"all","replay_policy":"instant"},"delivered":{"consumer_seq":0,"stream_seq":0},'
    b'"ack_floor":{"consumer_seq":0,"stream_seq":0}}'
)
PULLED = b"$JS.ACK.ilcp-handoffs.a.1.1.1.1700000000000000000.0\nNats-Msg-Id: a.x\n\nmessage"
ACKED = b'\n--\nr\n\n{"stream":"KV_ilcp-settled","seq":1,"domain":"","duplicate":false}\n--\nr\n\n'
NOT_SETTLED = b"\x03\n 404\n\n\n--\n"
FOUND = b"r\nNats-Stream: s\nNats-Subject: $KV.ilcp-told.a\nNats-Sequence: 1\nNats-Time-Stamp: 2026-01-01T00:00:00Z\n\n"
ROW = b"tx\nbmessage\ni0\n\nf0\nf0\nf2e9\ni1\ni135\nb" + TOLD + b"\nb" + bytes(16) + b"\nf1e9\ni0\n1.abcd"
# In the place of a configuration's value.
SAID = (b"null", b"-1", b"1e99", b"{}", b"[[]]", b'"x"', b"1" * 400, b"[" * 1200, b"../x", b"\0")
TRANSPORT = {
    0: (
        b"\0" + b"200" + JSON + TOLD,
        b"\0" + b"404" + JSON + b"null",
        b"\0" + b"404" + JSON + b'{"error": "another name"}',
        b"\1" + b"202\n\n",
        b"\1" + b"200\nilcp-handoff-id: x\n\n",
        b"\1" + b"409" + JSON + b'{"error": "another message"}',
        b"\1" + b"429\nretry-after: 1\n\n" + b"[" * 1100,
        b"\1" + b"307\nlocation: //[\nset-cookie: a=b; path=/\n\n",
        b"\1" + b"307\nlocation: on: /\n\n",
        b"\1" + b"503\n\n{}\n--\n202\n\n",
        b"\x80" + b"200" + JSON + TOLD,
    ),
    1: (
        b"\0" + b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(TOLD) + TOLD,
        b"\0" + b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\n{}\n\r\n0\r\n\r\n",
        b"\1" + b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.0 202\r\n\r\n",
    ),
    2: (
        SEND + b"\n" + BARE,
        SEND.replace(b"POST", b"post") + b"authorization: Bearer correct-horse-battery\n\n" + BARE,
        SEND.replace(b": x", b": known") + b"\n" + BARE,
        SEND + b"origin: null\n\n" + BARE,
        SEND + b"host: localhost:80\n\n" + BARE,
        SEND + b"host: evil.example\n\n" + BARE,
        SEND.replace(b"/a", b"/b") + b"\n" + BARE,
        b"POST /v1/a" + MEDIA + b"\n" + BARE,
        b"GET /v1/a/capabilities\n\n",
        b"GET /metrics\nhost: [::1]\n\n",
        b"GET /health/?%ff\nhost: [\n\n",
        b"GET /v1\n\n",
    ),
    3: (
        b"\x00" + PULLED + b"\n--\n\n 404 Not Found\n\n" + ACKED,
        b"\x00" + PULLED + b"\n--\n" + FOUND.replace(b"told.a", b"settled.a.x") + b"done" + ACKED,
        b"\x82" + b"r\n\n" + INFO + b"\n--\n" + PULLED + b"\n--\n\n 404\n\n" + ACKED,
        b"\x00" + PULLED.replace(b"\nNats", b"\n \xff\xfe\nNats") + b"\n--\n\n 404\n\n",
        b"\x02" + FOUND + TOLD,
        NOT_SETTLED + b'r\n\n{"stream":"ilcp-handoffs","seq":1,"duplicate":true}',
        NOT_SETTLED + b'r\n\n{"error":{"code":503,"err_code":10077,"description":"maximum messages exceeded"}}',
        b"\x00" + b"$JS.ACK._.h.s.a.1.1.1.99999999999999999999999.0.r\nNats-Msg-Id: a.x\n\nm\n--\n\n 404\n\n",
    ),
    4: (ROW, ROW.replace(b"bmessage", b"tmessage").replace(b"i0", b"f1e300"), ROW.replace(b"f0", b"t\xff")),
    5: (TOLD, TOLD.replace(b"1]", b"1,[[{}]],1e5]"), TOLD.replace(b"{", b"["), b'{"codec_ids":' + b"[" * 1200),
}
FRAMES = zstandard.ZstdCompressor(
    compression_params=zstandard.ZstdCompressionParameters.from_level(
        19, window_log=17, write_content_size=False, format=zstandard.FORMAT_ZSTD1_MAGICLESS
    )
)


def main() -> None:
    """Writes each golden message, whole and without its tag (which the target makes), payloads, and the transports'."""
    for side, inputs in TRANSPORT.items():
        for number, data in enumerate(inputs):
            write("transport", f"side-{side}-{number}", bytes([side]) + data)
    named = json.loads((HERE.parent / "tests" / "golden" / "v2" / "vectors.json").read_text(encoding="utf-8"))
    vectors = [(vector, side) for side in (VECTORS, named) for vector in (*side["accepted"], *side["refused"])]
    for vector, side in vectors:
        wire, sealed = bytes.fromhex(vector["hex"]), vector["key"] is not None
        name = "".join(char if char.isalnum() else "-" for char in vector["name"]) + "-v2" * (side is named)
        if len(wire) <= 320:
            write("message", name, bytes([int(sealed)]) + wire)
        if "payload" in vector and len(wire) <= 320:
            write("message", f"{name}-open", bytes([2 + sealed]) + wire[: -18 if sealed else -6])
    write_encrypted()
    for which, payload in enumerate((b"\xa5" * 8, "Mara owns it: Ø.".encode(), b"\x00\x29\x00\x00Mara.")):
        for length in range(4 if which == 0 else 1):
            write("memory", f"codec-{which}-{length}", bytes([which, length]) + payload)
    for number, text in enumerate(("Mara owns it: Ø. " * 40, "a" * (1 << 20), "a" * (1 << 20) + "a", "a" * (1 << 24))):
        frame = FRAMES.compress(text.encode())
        write("memory", f"frame-{number}", b"\2\0" + frame)
        write("memory", f"frame-{number}-twice", b"\2\0" + frame + frame)
    for number, said in enumerate(SAID):
        for place in (0, 9, 17, 33):
            write("folder", f"codec-{number}-{place}", bytes([0, place]) + said)
        write("folder", f"adapter-{number}", bytes([1, number]) + said)
    for number, floats in enumerate(((0.0, 0.5, -1e-40), (1e30,), (float("nan"), float("-inf")))):
        write("memory", f"floats-{number}", b"\3\0" + struct.pack(f"<{len(floats)}f", *floats))
    write_caches()
    for side in (0, 2, 4):
        for number, changes in enumerate(((), ((40, 1, 0),), ((0, 128, 0), (300, 4, 0)), ((0, 0, 200),))):
            write(
                "kept", f"changes-{side}-{number}", bytes([side]) + b"".join(struct.pack("<HBB", *c) for c in changes)
            )
    for side, content in (
        (1, b"PK\x03\x04"),
        (1, b"\x80\x02l\n."),
        (3, b"\x02\0\0\0\0\0\0\0{}"),
        (5, b'[]\n{"step": "x"}\n\xff'),
    ):
        write("kept", f"raw-{side}-{content[:2].hex()}", bytes([side]) + content)


def write_encrypted() -> None:
    """Writes the golden messages of version 3, whole and as the target encrypts them."""
    hidden = json.loads((HERE.parent / "tests" / "golden" / "v3" / "vectors.json").read_text(encoding="utf-8"))
    for vector in (*hidden["accepted"], *hidden["refused"]):
        wire, name = bytes.fromhex(vector["hex"]), "".join(c if c.isalnum() else "-" for c in vector["name"])
        write("message", f"{name}-v3", b"\1" + wire)
        if vector.get("payload"):  # whose shown part, and what it may hide, the target encrypts itself
            text = "\n".join(vector["literals"]).encode()
            shown = wire[: 62 if vector["blob_bytes"] else 27]
            plain = bytes([0xA0 | len(text)]) + text + bytes.fromhex(vector["payload"])
            write("message", f"{name}-v3-open", b"\4" + shown + plain)


def write_caches() -> None:
    """Writes a small container by each codec that the target has, whole and as the target completes it."""
    drawn = torch.Generator().manual_seed(0)
    keys, values = (torch.randn(1, 6, 4, generator=drawn) for _ in range(2))
    kv = KeysValues((keys,), (values,), tokens=6, start=1, ropes=((1.0, 0.1),), windows=(0,))
    for which in range(128, 128 + len(CODECS)):
        number = which % len(CODECS)  # as the target reads the first byte
        payload = CODECS[number].encode(Context(kv=kv))
        header, begin = read_header(payload)
        write("kv", f"whole-{number}", bytes([which]) + payload)
        write("kv", f"open-{number}", bytes([number]) + msgspec.json.encode(header) + b"\0" + payload[begin:])


def write(target: str, name: str, data: bytes) -> None:
    """Writes one input, unless it is there."""
    folder = HERE / "corpus" / target
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / name
    if not file.exists():
        file.write_bytes(data)


if __name__ == "__main__":
    main()
