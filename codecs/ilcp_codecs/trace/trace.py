"""A trace: what several agents have computed in turn, each behind what those before it left.

::

    Trace --Writer.write--> Trace of one segment more: the tokens of its prompt, then its latent steps

A trace is immutable, like every memory: a writer returns a new one, and the one that it stood on stays as it was. Each
segment says who wrote it, and names the trace before it by a digest, which covers the digest of every segment's own
keys and values: what was changed between two agents shows.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from ilcp.codec.context import Context
from ilcp.codec.keys_values import KeysValues, raw_bytes
from ilcp.errors import DecodeError
from ilcp.identity import digest, digest_all

__all__ = ["MAX_SEGMENTS", "MAX_STEPS", "Segment", "Trace", "content_of", "held_of", "require_chain"]

MAX_SEGMENTS, MAX_STEPS, MAX_ROLE = 256, 4096, 80  # more than any pipeline has: what a hostile header may claim


@dataclass(frozen=True, slots=True)
class Segment:
    """What one agent added.

    ``role`` is the agent's name, ``model`` the digest of its model's identity, in hex. ``prompt_tokens`` were read,
    then ``steps`` taken by ``rule``. ``before`` is the digest of the trace that it stood on, empty for the first one;
    ``on`` the codecs which that trace had come by where they were not exact. ``content`` is the digest of its own keys
    and values, as they were computed; ``held`` of all that layers with a sliding window held at its end, empty where
    there are none.

    Raises:
        DecodeError: a field is not as that says.
    """

    role: str
    model: str
    prompt_tokens: int
    steps: int
    rule: str
    before: str
    content: str
    held: str = ""
    on: str = ""

    def __post_init__(self) -> None:
        texts = (self.role, self.model, self.rule, self.before, self.content, self.held, self.on)
        if any(len(text) > MAX_ROLE or not text.isprintable() for text in texts):
            raise DecodeError(f"expected texts of at most {MAX_ROLE} printable characters in a segment, got others")
        if self.prompt_tokens < 1 or not 0 <= self.steps <= MAX_STEPS:
            got = f"{self.prompt_tokens} and {self.steps}"
            raise DecodeError(f"expected a segment of at least one token and 0 to {MAX_STEPS} steps, got {got}")

    @property
    def tokens(self) -> int:
        """The places that it takes: of its prompt and of its steps."""
        return self.prompt_tokens + self.steps

    def digest(self) -> str:
        """Returns the digest, in hex, of the trace that ends with this segment."""
        return digest(json.dumps(asdict(self), sort_keys=True).encode()).hex()


@dataclass(frozen=True)
class Trace(Context):
    """What agents computed together: a ``Context`` whose keys and values are made of segments.

    ``carried`` names the codecs that it came by, where they were not exact; ``states`` are of the layers that its
    writers were asked to keep, for a codec that reads states.

    Raises:
        DecodeError: the segments do not follow one another, or are not as long as the keys and values.
    """

    segments: tuple[Segment, ...] = ()
    carried: str = ""

    def __post_init__(self) -> None:
        if self.kv is None or not 1 <= len(self.segments) <= MAX_SEGMENTS:
            raise DecodeError(f"expected keys and values of 1 to {MAX_SEGMENTS} segments, got {len(self.segments)}")
        tokens = sum(segment.tokens for segment in self.segments)
        if tokens != self.kv.tokens:
            raise DecodeError(f"expected keys and values of the segments' {tokens} tokens, got {self.kv.tokens}")
        require_chain(self.segments)

    @property
    def kept(self) -> KeysValues:
        """The keys and values, which every trace has."""
        assert self.kv is not None
        return self.kv

    @property
    def digest(self) -> str:
        """The digest, in hex, of all segments: what the next one names as ``before``."""
        return self.segments[-1].digest()

    def spans(self) -> Iterator[tuple[range, range]]:
        """Yields for each segment the places of its prompt, and those of its steps."""
        at = 0
        for segment in self.segments:
            middle, end = at + segment.prompt_tokens, at + segment.tokens
            yield range(at, middle), range(middle, end)
            at = end

    def require_whole(self) -> None:
        """Refuses keys and values that are not those which the segments' writers computed; of rounded ones nothing is
        known.

        Raises:
            DecodeError: with the number of the segment that differs.
        """
        if self.carried:
            return
        if held_of(self.kept) != self.segments[-1].held:
            raise DecodeError("expected what sliding windows held when the last segment was written, got others")
        for number, ((prompt, steps), segment) in enumerate(zip(self.spans(), self.segments, strict=True)):
            if content_of(self.kept, range(prompt.start, steps.stop)) != segment.content:
                raise DecodeError(f"expected the keys and values that {segment.role!r} wrote, got others: {number}")


def held_of(kv: KeysValues) -> str:
    """Returns the digest, in hex, of what layers with a sliding window hold; empty where no layer has one."""
    windowed = [pair for *pair, window in zip(kv.keys, kv.values, kv.windows, strict=True) if window]
    parts: list[bytes | memoryview] = [repr((kv.start, kv.tokens, kv.dtype)).encode()]
    parts += [raw_bytes(each) for pair in windowed for each in pair]
    return digest_all(parts).hex() if windowed else ""


def require_chain(segments: Sequence[Segment]) -> None:
    """Refuses segments of which one does not name the trace before it.

    Raises:
        DecodeError: with its number.
    """
    before = ""
    for number, segment in enumerate(segments):
        if segment.before != before:
            got = segment.before or "nothing"
            raise DecodeError(f"expected segment {number} to stand on {before or 'nothing'}, got {got}")
        before = segment.digest()


def content_of(kv: KeysValues, places: range) -> str:
    """Returns the digest, in hex, of the keys and values of some places, at the positions where they stand.

    Layers with a sliding window do not count (``held_of`` does): what they hold of a segment depends on what follows.
    """
    parts: list[bytes | memoryview] = [repr((kv.start, places.start, places.stop, kv.dtype)).encode()]
    for keys, values, window in zip(kv.keys, kv.values, kv.windows, strict=True):
        for each in () if window else (keys, values):
            parts.append(raw_bytes(each[:, places.start : places.stop]))
    return digest_all(parts).hex()
