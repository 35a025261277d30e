"""The reader of a trace: a receiver that takes a trace, or a message of one, and answers.

::

    Trace, or message bytes --CacheMemory--> reader with its adapter --> answer
    message bytes --open--> Trace, for the next agent to write on
"""

from ilcp.codec.memory import CacheMemory, Memory
from ilcp.errors import ConfigError, DoubtError, EncodeError, IdentityError
from ilcp.handoff import Receiver
from ilcp.handoff.assured import judged_memory
from ilcp.handoff.audited import telling_refusals
from ilcp.handoff.envelope import Opened
from ilcp.handoff.receiver import Source
from ilcp_codecs.trace.codec import TraceCodec
from ilcp_codecs.trace.trace import Trace

__all__ = ["Reader"]


class Reader(Receiver):
    """A ``Receiver`` that also takes a ``Trace`` wherever it takes a message, and opens messages for the next writer.

    Its codecs are ``TraceCodec``s, such as ``ilcp.load`` gives of what ``ilcp trace train`` made; ``ilcp.adapt(model,
    codec)`` gives the model the adapter of one. Arguments and errors are those of ``Receiver``.
    """

    @telling_refusals
    def open(self, message: bytes) -> Trace:
        """Returns the trace in a message, for an agent to write on.

        Raises:
            DecodeError, TransportError, IdentityError, ConfigError, DoubtError: as ``decode``, which a replay cache
                counts it as; or the message is of another codec than of traces, or carries the steps alone.
        """
        opened = Opened.of(self, message)
        if not isinstance(opened.codec, TraceCodec):
            raise ConfigError(f"expected a message of a trace, got one of {opened.codec.spec.name!r}: decode it")
        trace = opened.codec.trace(opened.payload)
        opened.admit(self)
        if not isinstance(judged_memory(self, opened, CacheMemory(trace.kept)), CacheMemory):
            raise DoubtError("expected a trace like those of the calibration, got one whose text is wanted: decode it")
        return trace

    def memory(self, trace: Trace) -> CacheMemory:
        """Returns the memory of a trace, as the first codec of traces hands it over.

        Raises:
            IdentityError: its writers are another model.
            DecodeError: its keys and values are not what its writers computed.
            ConfigError: there is no codec of traces.
        """
        codec = next((codec for codec in self.codecs if isinstance(codec, TraceCodec)), None)
        if codec is None:
            raise ConfigError("expected a codec of traces to read one by, got none: make a TraceCodec")
        try:
            return codec.memory(trace)
        except EncodeError as error:
            raise IdentityError(str(error)) from error

    def _memory(self, message: Source) -> Memory | None:
        return self.memory(message) if isinstance(message, Trace) else super()._memory(message)
