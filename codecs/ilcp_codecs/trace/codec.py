"""The codec of traces: who wrote what, and the keys and values as another codec of caches carries them.

::

    Trace --segments as JSON | keys and values by kv-exact, kv-int8 ... --> payload --> CacheMemory, or the Trace again

    part      bytes  what
    magic         8  69 6c 63 70 2d 74 72 0a ("ilcp-tr", line feed)
    length        4  h, little-endian, up to 2**18
    header        h  JSON in ASCII, keys sorted, no spaces: ``carried`` and ``segments`` of the ``Trace``
    check        16  BLAKE2b, digest size 16, of all before it
    cache       ...  the payload of the codec that carries it

A plan (who writes, how many steps, by which rule) belongs to the codec: ``Sender.encode(text)`` lets its agents write,
and its id tells a reader to which plan it was tuned. Traces that others wrote are encoded, too: their segments say how.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import msgspec
from safetensors.torch import save_file

from ilcp.codec.context import Context
from ilcp.codec.keys_values import KeysValues
from ilcp.codec.memory import CacheMemory, Memory
from ilcp.codec.registry import codec_class
from ilcp.codec.spec import CodecSpec, Trained
from ilcp.errors import ConfigError, DecodeError, EncodeError, IdentityError, IlcpError, StorageError
from ilcp.evidence import Evidence
from ilcp.identity import ModelIdentity, require_same
from ilcp.message import MAX_BLOB_BYTES
from ilcp.models.fingerprint import identify
from ilcp.models.own_weights import OwnWeights
from ilcp.records import read_record
from ilcp_codecs.kv.codecs import KvCodec, shape_of
from ilcp_codecs.kv.container import Shape, framed, shape_from, unframed
from ilcp_codecs.kv.tensors import WEIGHTS, digest_of, tensors_in
from ilcp_codecs.trace.plan import Plan
from ilcp_codecs.trace.rules import Rule, shapes_of_rule
from ilcp_codecs.trace.trace import MAX_SEGMENTS, Segment, Trace, require_chain
from ilcp_codecs.trace.writer import cut, written

__all__ = ["CARRIERS", "TraceCodec"]

MAGIC = b"ilcp-tr\n"
MAX_HEADER_BYTES = 1 << 18  # of segments: 256 of them with short roles take half
CARRIERS = ("kv-exact", "kv-int8", "kv-int4")  # codecs of caches that a model's shape is enough for


class TraceCodec:
    """A codec of traces of one model, read by the same model, or by it with low-rank weights; ``of`` makes one.

    Args:
        writer, reader: the identities of the model as it writes, and as it reads.
        shape: what its caches look like.
        plan: of the agents that write.
        carrier: the codec of caches that carries keys and values, one of ``CARRIERS``.
        tensors: the weights of a trained rule; none where the model alone decides.

    Raises:
        ConfigError: the carrier is none of them, or the tensors are not the rule's.
    """

    name: ClassVar[str] = "trace"
    layers: tuple[int, ...] = ()

    def __init__(
        self,
        writer: ModelIdentity,
        reader: ModelIdentity,
        shape: Shape,
        plan: Plan,
        carrier: str = CARRIERS[0],
        tensors: Mapping[str, Any] | None = None,
    ):
        if carrier not in CARRIERS:
            raise ConfigError(f"expected a carrier of {', '.join(CARRIERS)}, got {str(carrier)[:40]!r}")
        self.plan, self.carrier = plan, carrier
        self.tensors = {name: value.float().contiguous() for name, value in (tensors or {}).items()}
        if {*self.tensors} != {*shapes_of_rule(plan.rule, 1)} and self.tensors:
            raise ConfigError(f"expected the weights of rule {plan.rule!r}, got {sorted(self.tensors)}")
        self._carried: KvCodec = codec_class(carrier)(writer, shape)
        most = min(self._carried.spec.payload_bytes + MAX_HEADER_BYTES, MAX_BLOB_BYTES)
        self.spec = CodecSpec(self.name, most, "cache")
        self.trained = Trained(writer, reader, self._digest())
        self._own_weights = OwnWeights(self.tensors)
        self.evidence: Evidence | None = None
        self.folder: Path | None = None

    def _digest(self) -> str:
        return digest_of(self.tensors, [json.dumps([self.plan.to_dict(), self.carrier], sort_keys=True).encode()])

    @classmethod
    def of(
        cls,
        model: Any,
        tokenizer: Any,
        plan: Plan | None = None,
        *,
        carrier: str = CARRIERS[0],
        tokens: int | None = None,
        rule: Rule | None = None,
    ) -> Self:
        """Returns the codec of a loaded model, whose reader nobody tuned.

        Args:
            tokens: the most that a trace may stand for; None for the model's window.
            rule: a trained one of the plan's.

        Raises:
            ConfigError: the model cannot be identified, keeps no keys and values, or has no such window.
        """
        identity = identify(model, tokenizer)
        tensors = {} if rule is None else rule.tensors()
        return cls(identity, identity, shape_of(model, tokens), plan or Plan(), carrier, tensors)

    def writing(self, model: Any, tokenizer: Any) -> Callable[[str], Trace]:
        """Returns what lets the plan's agents write: of a text, cut among them, it makes their trace.

        Raises:
            ConfigError: the model has no such rule, or as ``Writer``.
            IdentityError: the rule's weights were changed in memory since; or the model has this codec's weights, and
                computes something else with them.
        """
        self._own_weights.require(self.tensors, self._digest, self.trained.weights)
        writers = self.plan.writers(model, tokenizer, Rule(self.plan.rule, model, self.tensors))
        if writers[0].identity == self.trained.sender:  # another's segments are refused by ``encode``
            require_same("writer", self.trained.sender, writers[0].identity)
        return lambda text: written(writers, cut(text, len(writers)))

    def write(self, model: Any, tokenizer: Any, text: str) -> Trace:
        """Returns the trace that the plan's agents write of one text; ``writing`` is for several.

        Raises:
            EncodeError: there is nothing to cut, or it does not fit into the model's window.
            ConfigError: as ``writing``.
        """
        return self.writing(model, tokenizer)(text)

    def encode(self, context: Context, payload_bytes: int | None = None) -> bytes:
        """Returns the segments and the container of a trace's keys and values.

        Raises:
            EncodeError: the context is no trace, another model's, or takes more than ``payload_bytes``.
            ConfigError: as the carrier's.
        """
        limit = self.spec.length(payload_bytes)
        if not isinstance(context, Trace):
            raise EncodeError(f"expected a Trace, got {type(context).__name__}: let a Writer write one")
        handed = self._handed(context)
        try:
            context.require_whole()
        except DecodeError as error:
            raise EncodeError(str(error)) from error
        head = _json(context.segments, context.carried)
        if len(head) > MAX_HEADER_BYTES:
            raise EncodeError(
                f"expected a header of at most {MAX_HEADER_BYTES} bytes, got {len(head)}: shorten the roles"
            )
        payload = framed(MAGIC, head) + self._carried.encode(Context(kv=handed))
        if len(payload) > limit:
            raise EncodeError(f"expected a trace of at most {limit} bytes, got {len(payload)}: write less of it")
        return payload

    def memory(self, trace: Trace) -> CacheMemory:
        """Returns what a reader in this process attends to: the memory of what ``encode`` hands over, nothing rounded.

        Raises:
            EncodeError: the trace is another model's.
            DecodeError: its keys and values are not what its writers computed.
        """
        handed = self._handed(trace)
        trace.require_whole()
        return CacheMemory(handed)

    def _handed(self, trace: Trace) -> KeysValues:
        model = self.trained.sender.digest().hex()
        if any(segment.model != model for segment in trace.segments):
            way_out = "write with this codec's model, without the low-rank weights of a reader"
            raise EncodeError(f"expected a trace of this codec's model, got a segment of another's: {way_out}")
        steps = [segment.steps for segment in trace.segments]
        if self.plan.keep == "steps" and set(steps) != {self.plan.steps}:
            raise EncodeError(f"expected segments of {self.plan.steps} steps to hand over, got {steps}")
        return self.plan.kept(trace.kept, [segment.prompt_tokens for segment in trace.segments])

    def decode(self, payload: bytes) -> Memory:
        """Returns the memory of keys and values that a payload stands for.

        What came by exact carriers is compared, segment by segment, with what its writers said that they computed.

        Raises:
            DecodeError: it is no trace of this codec's model, damaged, or not what its writers computed.
        """
        return self._opened(payload)[0]

    def trace(self, payload: bytes) -> Trace:
        """Returns the trace that a payload stands for, for the next agent to write on.

        Raises:
            DecodeError: as ``decode``; or only the steps came.
        """
        _, trace = self._opened(payload)
        if trace is None:
            raise DecodeError("expected a whole trace to write on, got its steps alone: hand over all of it")
        return trace

    def _opened(self, payload: bytes) -> tuple[CacheMemory, Trace | None]:
        """Returns the memory, and the trace that it is of, where all of it came."""
        if not isinstance(payload, bytes | bytearray | memoryview):
            raise DecodeError(f"expected a payload of bytes, got {type(payload).__name__}")
        segments, carried, begin = _read(payload)
        memory = self._carried.decode(memoryview(payload)[begin:])  # type: ignore[arg-type]  # it takes any buffer
        assert isinstance(memory, CacheMemory)
        self._require_planned(segments, memory)
        if self.plan.keep == "steps":
            return memory, None
        by = () if self.carrier == CARRIERS[0] else (self.carrier,)
        names = ", ".join(dict.fromkeys([*filter(None, carried.split(", ")), *by]))
        trace = Trace(kv=memory.kv, segments=segments, carried=names)
        trace.require_whole()
        return memory, trace

    def _require_planned(self, segments: tuple[Segment, ...], memory: CacheMemory) -> None:
        model = self.trained.sender.digest().hex()
        if any(segment.model != model for segment in segments):
            raise DecodeError("expected segments of this codec's model, got another's: they would be read as noise")
        own = [segment.steps if self.plan.keep == "steps" else segment.tokens for segment in segments]
        if sum(own) != memory.tokens:
            raise DecodeError(f"expected keys and values of {sum(own)} tokens, got {memory.tokens}: damaged")
        require_chain(segments)

    def save_files(self, folder: Path) -> dict[str, Any]:
        """Writes the rule's weights; returns plan, carrier and shape."""
        if self.tensors:
            save_file(self.tensors, folder / WEIGHTS)
        shape: dict[str, Any] = msgspec.to_builtins(self._carried.shape)
        return {"plan": self.plan.to_dict(), "carrier": self.carrier, "shape": shape, "weights": bool(self.tensors)}

    @classmethod
    def load_files(cls, folder: Path, spec: CodecSpec, trained: Trained, settings: Mapping[str, Any]) -> Self:
        """Returns the codec that ``save_files`` wrote.

        Raises:
            StorageError: a file is missing, damaged or of other shapes, or the settings are none of such a codec.
            IdentityError: it is not what the codec was saved with.
        """
        left: dict[str, Any] = dict(settings)
        shape = shape_from(left.pop("shape", None), f"the settings in {folder}")
        try:
            plan = Plan.from_dict(left.pop("plan", {}), f"the plan in {folder}")
            carrier, has = str(left.pop("carrier", "")), left.pop("weights", False)
            if left or type(has) is not bool:
                raise ConfigError(f"expected plan, carrier, shape and weights, got {sorted(settings)}")
            tensors = {}
            if has:
                tensors = tensors_in(folder, shapes_of_rule(plan.rule, _width(folder)), f"the rule {plan.rule!r}")
            codec = cls(trained.sender, trained.receiver, shape, plan, carrier, tensors)
        except StorageError:
            raise
        except IlcpError as error:
            raise StorageError(f"expected the settings of a trace's codec in {folder}, got: {error}") from error
        if codec.trained.weights != trained.weights:
            raise IdentityError(f"expected plan and rule {trained.weights}, got others: fetch the codec again")
        return codec


def _json(segments: tuple[Segment, ...], carried: str) -> bytes:
    record = {"carried": carried, "segments": [asdict(one) for one in segments]}
    return json.dumps(record, sort_keys=True, separators=(",", ":")).encode()


@dataclass(frozen=True, slots=True)
class _Header:
    """What stands before the cache."""

    carried: str
    segments: tuple[Segment, ...]

    def __post_init__(self) -> None:
        names = self.carried.split(", ") if self.carried else []
        if not {*names} <= {*CARRIERS[1:]} or len({*names}) != len(names):
            raise DecodeError(f"expected a trace carried by {', '.join(CARRIERS[1:])} or exact, got another codec")


def _read(payload: bytes) -> tuple[tuple[Segment, ...], str, int]:
    """Returns the segments of a payload, checked, the codec that they came by before, and where the cache begins."""
    head, begin = unframed(payload, MAGIC, MAX_HEADER_BYTES, "a trace")
    try:
        record = msgspec.json.decode(head, type=dict[str, Any])
    except (msgspec.DecodeError, msgspec.ValidationError, RecursionError, UnicodeDecodeError) as error:
        raise DecodeError(f"expected the header of a trace, got: {error}") from error
    header = read_record(_Header, record, "a trace's header", error=DecodeError)
    if not 1 <= len(header.segments) <= MAX_SEGMENTS:
        raise DecodeError(f"expected 1 to {MAX_SEGMENTS} segments, got {len(header.segments)}")
    if _json(header.segments, header.carried) != head:
        raise DecodeError("expected a header spelt as the specification says, got another spelling of it")
    return header.segments, header.carried, begin


def _width(folder: Path) -> int:
    """Returns the width that a rule's bias in a folder says, which ``tensors_in`` then asks of all; 0 for none."""
    from safetensors import SafetensorError

    from ilcp.folders import inside, shapes_of

    try:
        shape = shapes_of(inside(folder, WEIGHTS)).get("bias", ((0,), ""))[0]
    except (OSError, SafetensorError) as error:
        raise StorageError(f"expected the rule's weights in {folder}, got: {error}") from error
    return shape[0] if len(shape) == 1 else 0
