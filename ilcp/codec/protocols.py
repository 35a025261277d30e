"""The seam between hand-offs and the methods behind them: what every codec offers, and what one that learns adds."""

from collections.abc import Mapping
from inspect import isclass
from pathlib import Path
from typing import Any, Protocol, TypeGuard, runtime_checkable

from ilcp.codec.context import Context
from ilcp.codec.memory import Memory
from ilcp.codec.spec import CodecSpec, Trained
from ilcp.evidence import Evidence
from ilcp.identity import ModelIdentity

__all__ = ["Codec", "TrainableCodec", "is_trainable"]


@runtime_checkable
class Codec(Protocol):
    """The seam. Encoding is deterministic, decoding needs nothing but the payload, and neither changes the codec.

    ``evidence`` is what was measured of it, and ``folder`` where it was loaded from: ``ilcp.load`` sets both, and a
    codec that is made otherwise has None. A class whose ``save_files`` writes more than ``*.safetensors`` names it in
    ``hub_files``, as patterns: a hub is asked for no other files. A class that one loaded model is enough for may offer
    ``for_model`` and ``require_budget``, as those of ``ilcp_codecs.kv`` do: ``ilcp measure`` then takes its name in
    place of a folder's. ``ilcp.testing.CodecContract`` checks any codec.
    """

    spec: CodecSpec
    trained: Trained
    evidence: Evidence | None
    folder: Path | None

    @property
    def layers(self) -> tuple[int, ...]:
        """The sender's layers whose states ``encode`` reads, 0 being the embedding; empty where it reads text."""
        ...

    def encode(self, context: Context, payload_bytes: int | None = None) -> bytes:
        """Returns the payload, at most ``payload_bytes`` long (None: the codec's own length).

        Raises:
            EncodeError: the context has nothing that this codec reads.
            ConfigError: there is no payload of that length, or a model that the codec itself runs is damaged.
        """
        ...

    def decode(self, payload: bytes) -> Memory:
        """Returns the memory that a payload stands for.

        Raises:
            DecodeError: the payload has another length, or does not decode.
            ConfigError: a model that the codec itself runs is damaged.
        """
        ...

    def save_files(self, folder: Path) -> dict[str, Any]:
        """Writes weights into ``folder``; returns what ``load_files`` needs beside them, as JSON."""
        ...

    @classmethod
    def load_files(cls, folder: Path, spec: CodecSpec, trained: Trained, settings: Mapping[str, Any]) -> "Codec":
        """Returns the codec that ``save_files`` wrote.

        Raises:
            StorageError: a file is missing or damaged.
            IdentityError: the weights are not those that the codec was saved with.
        """
        ...


class TrainableCodec(Codec, Protocol):
    """A codec that ``ilcp.train`` can make: it also offers its network, and takes one back when it is trained.

    ::

        settings() --[codec] of a recipe--> untrained(sender, receiver, settings) --> network
        network.calibrate(states "batch layers tokens hidden", mask "batch tokens", memory "n slots hidden")
        network(states, mask) --> memory "memory hidden" each, rate_bits "batch"        the training, differentiable
        network.blank(count)  --> memory "memory hidden" each                           of payloads that nobody made
        network.round_to_half()                                                         once, when training is over
        from_network(network, sender, receiver) --> codec

    The network is an ``nn.Module`` that keeps ``ilcp.training.objective.Network``. Where the training cases decide its
    shape, the codec also has ``untrained_for(models, settings, cases)``, which training calls instead; one that can
    learn what was said before a receiver is asked keeps ``ilcp.training.objective.FactNetwork``. ``is_trainable`` says
    whether a codec, or the class of one, keeps this protocol.
    """

    @classmethod
    def settings(cls) -> tuple[str, ...]:
        """Returns the names of what a recipe may set in ``[codec]``."""
        ...

    @classmethod
    def untrained(cls, sender: Any, receiver: Any, settings: Mapping[str, Any]) -> Any:
        """Returns a new network for two transformers models.

        Raises:
            ConfigError: the settings contradict each other or the models.
        """
        ...

    @classmethod
    def from_network(cls, network: Any, sender: ModelIdentity, receiver: ModelIdentity) -> "TrainableCodec":
        """Returns the codec out of a trained network."""
        ...

    def decode_unrounded(self, context: Context) -> Memory:
        """Returns the memory, shaped as ``decode`` gives it, of the latent before it is rounded: for measuring only.

        Raises:
            EncodeError: as ``encode``.
        """
        ...


_LEARNS = ("settings", "untrained", "from_network", "decode_unrounded")


def is_trainable(codec: Any) -> TypeGuard[TrainableCodec]:
    """Checks that a codec, or the class of one, offers the methods of ``TrainableCodec``."""
    owner = codec if isclass(codec) else type(codec)
    return all(callable(getattr(owner, name, None)) for name in _LEARNS)
