"""The arms of a codec whose payload is a cache: megabytes for each case, so that no more than a few are held at once.

::

    case --Sender.encode--> message, its blob on disk --Receiver.decode, when it is asked--> memory

``message`` is the cache, ``message-N`` one of at most so many bytes, where the codec has such; ``mismatched`` another
case's. Beside them stand the full text and nothing. There are no other arms: text of as many bytes is the whole text,
random bytes are no cache, and literals are words of the text that the cache was read from.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory

from ilcp.codec.memory import Memory
from ilcp.errors import ConfigError
from ilcp.handoff import Receiver, Sender
from ilcp.measure.arms import ArmInput, ArmSpec, text_input
from ilcp.message import Message
from ilcp.message.blob import Blob
from ilcp.tasks.cases import Case

__all__ = ["Held", "apart", "cache_specs", "require_caches"]

TTL_S = 31_536_000  # of a sealed message: it is read again as long as the run takes
AT_ONCE = 8  # cases whose memories are held: of a thousand tokens each some hundred megabytes


class Held(Sequence[Memory]):
    """Memories that are decoded when they are looked up, and forgotten; ``at_once`` may be held by whoever does."""

    at_once = AT_ONCE

    def __init__(self, wires: Sequence[bytes], decode: Callable[[bytes], Memory]):
        self._wires, self._decode = wires, decode

    def __len__(self) -> int:
        return len(self._wires)

    def __getitem__(self, number: int) -> Memory:  # type: ignore[override]  # nobody slices them
        return self._decode(self._wires[number])


def cache_specs(sender: Sender, receiver: Receiver, cases: Sequence[Case], lengths: Sequence[int]) -> Iterator[ArmSpec]:
    """Yields the arms; ``lengths`` are of payloads, in bytes at most, the longest first."""
    inputs = {length: _Inputs(sender, receiver, cases, length) for length in lengths}
    yield ArmSpec("text", "text", partial(text_input, cases))
    yield ArmSpec("none", "control", lambda: ArmInput([None] * len(cases)))
    for length in lengths:
        name = "message" if length == lengths[0] else f"message-{length}"
        yield ArmSpec(name, "message", partial(inputs[length].message, 0))
    yield ArmSpec("mismatched", "control", partial(inputs[lengths[0]].message, 1))


class _Inputs:
    """Encodes each case once, and decodes it whenever it is asked about."""

    def __init__(self, sender: Sender, receiver: Receiver, cases: Sequence[Case], length: int):
        self.sender, self.receiver, self.cases, self.length = sender, receiver, cases, length

    @cached_property
    def wires(self) -> list[bytes]:
        """Each case's message, encoded once, in whatever arms and halves of the cases it is asked for."""
        known = self.sender.blobs.wires if isinstance(self.sender.blobs, _Folder) else {}
        for case in self.cases:
            if (case.context, self.length) not in known:
                known[case.context, self.length] = self.sender.encode(case.context, payload_bytes=self.length)
        return [known[case.context, self.length] for case in self.cases]

    def message(self, shift: int) -> ArmInput:
        """Sends each case's message, or that of the case ``shift`` places on; a blob's bytes are counted."""
        wires = self.wires[shift:] + self.wires[:shift]
        parsed = [Message.from_bytes(wire, key=self.receiver.key, audience=self.receiver.audience) for wire in wires]
        blobs = [0 if message.blob is None else message.blob.size_bytes for message in parsed]
        return ArmInput(
            Held(wires, self.receiver.decode),
            tuple(len(message.payload) + blob for message, blob in zip(parsed, blobs, strict=True)),
            tuple(len(wire) + blob for wire, blob in zip(wires, blobs, strict=True)),
        )


@contextmanager
def apart(sender: Sender, receiver: Receiver) -> Iterator[tuple[Sender, Receiver]]:
    """Yields both ends, which tell no record of what is only tried, and doubt none of it; those of a codec of caches
    with a folder for the blobs, which goes afterwards."""
    plain = all(end.audit is None and end.guard is None for end in (sender, receiver))
    if sender.codec.spec.reads != "cache" and plain:
        yield sender, receiver
        return
    ends = copy.copy(sender), copy.copy(receiver)
    for end in ends:
        end.audit = end.guard = None
    if sender.codec.spec.reads != "cache":
        yield ends
        return
    with TemporaryDirectory(prefix="ilcp-caches-") as folder:
        blobs = _Folder(Path(folder))
        for end in ends:
            end.blobs = blobs
        ends[0].ttl_s = TTL_S
        yield ends


class _Folder:
    """Blobs of one run, each in a file of its own: no quota and no age counts here.

    ``wires`` are the messages that name them, by text and most bytes.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.wires: dict[tuple[str, int], bytes] = {}

    def put_blob(self, data: bytes, /) -> Blob:
        blob = Blob.of(data)
        (self.folder / blob.digest.hex()).write_bytes(data)
        return blob

    def get_blob(self, blob: Blob, /) -> bytes:
        return (self.folder / blob.digest.hex()).read_bytes()


def require_caches(sender: Sender, receiver: Receiver, *, hops: int, budgets: Sequence[int]) -> None:
    """Refuses, before anything runs, what is not measured of caches.

    Raises:
        ConfigError: with what to leave out.
    """
    if sender.codec.spec.reads != "cache":
        return
    if hops or budgets:
        raise ConfigError(
            f"expected no hops and no budgets for {sender.codec.spec.name}, got {hops} and {list(budgets)}: a cache is "
            "handed on as it is, and is not read back"
        )
    if receiver.replay is not None:
        raise ConfigError("expected a receiver without a replay cache to measure, got one: each message is read again")
