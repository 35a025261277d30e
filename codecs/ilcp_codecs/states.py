"""What all learned codecs of a sender's hidden states do alike: made for two models, fed with states, saved, loaded."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import wraps
from operator import attrgetter
from pathlib import Path
from typing import Any, ClassVar, Concatenate, ParamSpec, Self, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ilcp.codec.context import Context
from ilcp.codec.folder import CONFIG, HubCodec
from ilcp.codec.spec import CodecSpec, Trained
from ilcp.errors import ConfigError, EncodeError, IdentityError, IlcpError, StorageError
from ilcp.evidence import Evidence
from ilcp.files import require_readable
from ilcp.folders import inside, shapes_of
from ilcp.identity import ModelIdentity
from ilcp.models.adapter import innermost
from ilcp.models.fingerprint import weights_digest
from ilcp.models.own_weights import OwnWeights
from ilcp.nn.half import lean
from ilcp.nn.inference import inference

__all__ = ["StatesCodec", "by_network"]

WEIGHTS = "model.safetensors"

P = ParamSpec("P")
R = TypeVar("R")


def by_network(call: Callable[Concatenate[Any, P], R]) -> Callable[Concatenate[Any, P], R]:
    """Makes a codec's method inference (a network in training is random) with the weights that the codec is of."""

    @inference(attrgetter("network"))
    @wraps(call)
    def run(codec: Any, /, *args: P.args, **options: P.kwargs) -> R:
        codec.require_own_weights()
        return call(codec, *args, **options)

    return run


class StatesCodec(HubCodec):
    """A codec with a network whose ``config`` has ``sender_layers``, ``sender_hidden`` and ``receiver_hidden``.

    ``reads`` is how many of the sender's layers it reads unless it is told which, evenly up to the share ``deepest`` of
    them. ``apart`` are files of their own: the name of each, and what the names of its tensors start with.
    """

    reads: ClassVar[int]
    deepest: ClassVar[float] = 1.0
    apart: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    spec: CodecSpec

    def __init__(self, network: Any, trained: Trained):
        self.network = network.eval().requires_grad_(False)
        self.config = network.config
        self.trained = trained
        self.evidence: Evidence | None = None
        self._own = OwnWeights(self.network)

    def require_own_weights(self) -> None:
        """Refuses a network that was changed in memory since.

        Raises:
            IdentityError: the text says so.
        """
        self._own.require(self.network, lambda: weights_digest(self.network).hex(), self.trained.weights)

    @classmethod
    @abstractmethod
    def _network(cls, settings: Mapping[str, Any], where: str, error: type[IlcpError]) -> Any:
        """Returns an untrained network of such a configuration.

        Raises:
            IlcpError: ``error``, which names the place ``where``: the settings are not one.
        """

    @classmethod
    def untrained(cls, sender: Any, receiver: Any, settings: Mapping[str, Any]) -> Any:
        """Returns a network for two models, of these settings.

        Raises:
            ConfigError: the settings contradict each other.
        """
        own = sender.config.get_text_config()
        depth = own.num_hidden_layers
        chosen = {round(step * cls.deepest * depth / (cls.reads - 1)) for step in range(cls.reads)}
        values = {
            "sender_layers": tuple(sorted(chosen)),
            "sender_hidden": own.hidden_size,
            "receiver_hidden": innermost(receiver.get_input_embeddings()).embedding_dim,
        }
        network = cls._network(values | dict(settings), "[codec]", ConfigError).float()  # whatever the default dtype is
        layers = network.config.sender_layers
        if max(layers) > depth:
            raise ConfigError(f"expected sender_layers from 0 to {depth} (the last state), got {layers}")
        return network

    @classmethod
    def from_network(cls, network: Any, sender: ModelIdentity, receiver: ModelIdentity) -> Self:
        """Returns the codec out of a trained network."""
        return cls(network, Trained(sender, receiver, weights_digest(network).hex()))

    @property
    def layers(self) -> tuple[int, ...]:
        """The sender's layers that ``encode`` reads."""
        layers: tuple[int, ...] = self.config.sender_layers
        return layers

    @property
    def _device(self) -> torch.device:
        device: torch.device = next(self.network.parameters()).device
        return device

    def _states(self, context: Context) -> tuple[Tensor, Tensor]:
        """Returns a context's states ``"1 layers tokens hidden"``, and their mask ``"1 tokens"``.

        Raises:
            EncodeError: it has none, states of another sender, or NaN.
        """
        states = context.states
        expected = (len(self.config.sender_layers), self.config.sender_hidden)
        if states is None or (states.shape[0], states.shape[2]) != expected or states.shape[1] == 0:
            found = "none" if states is None else f"shape {tuple(states.shape)}"
            raise EncodeError(f"expected states of {expected[0]} layers and width {expected[1]}, got {found}")
        if not bool(torch.isfinite(states).all()):
            raise EncodeError("expected finite hidden states, got NaN or infinity: the sender's weights are damaged")
        mask = torch.ones(1, states.shape[1], device=self._device, dtype=torch.float32)
        return states[None].to(self._device), mask

    def save_files(self, folder: Path) -> dict[str, Any]:
        """Writes the weights, in 16 bits where that loses nothing; returns the configuration."""
        state = {name: lean(tensor) for name, tensor in self.network.state_dict().items()}
        for file, starts in self.apart.items():
            save_file({name: state.pop(name) for name in [*state] if name.startswith(starts)}, folder / file)
        save_file(state, folder / WEIGHTS)
        return asdict(self.config)

    @classmethod
    def load_files(cls, folder: Path, spec: CodecSpec, trained: Trained, settings: Mapping[str, Any]) -> Self:
        """Returns the codec that ``save_files`` wrote.

        Raises:
            StorageError: the weights are missing, damaged, or of another shape.
            IdentityError: the weights are not those the codec was saved with.
        """
        with torch.device("meta"):  # no weight is drawn, and so nobody's random numbers are; and none takes memory yet
            network = cls._network(settings, f"settings in {folder / CONFIG}", StorageError)
        file = folder / WEIGHTS
        try:
            state: dict[str, Tensor] = {}
            for file in (*(folder / name for name in cls.apart), folder / WEIGHTS):
                require_readable(inside(folder, file.name))
                _require_shapes(network, shapes_of(file))
                state |= load_file(file)
            state = {name: each.float() if each.is_floating_point() else each for name, each in state.items()}
            network.load_state_dict(state, strict=True, assign=True)
        except StorageError:
            raise
        except Exception as error:  # safetensors and torch raise several kinds, all of which mean this
            raise StorageError(f"expected the codec's weights in {file}, got: {error}") from error
        found = weights_digest(network).hex()
        if found != trained.weights:
            raise IdentityError(
                f"expected codec weights {trained.weights}, got {found} in {folder / WEIGHTS}: "
                "the file was replaced or damaged; fetch the codec again"
            )
        codec = cls(network, trained)
        if codec.spec != spec:
            raise IdentityError(f"expected the codec spec {spec}, got {codec.spec} from its settings in {folder}")
        return codec


def _require_shapes(network: nn.Module, found: Mapping[str, tuple[tuple[int, ...], str]]) -> None:
    """Refuses weights that are not of the network's shapes, or whole numbers in the place of others, by the header.

    Raises:
        ValueError: with the first that is not; which are missing, ``load_state_dict`` says.
    """
    for name, wanted in network.state_dict().items():
        shape, kind = found.get(name, (tuple(wanted.shape), ""))
        if shape != tuple(wanted.shape) or (kind and kind.startswith(("F", "BF")) != wanted.is_floating_point()):
            raise ValueError(f"{name} of shape {shape} ({kind}), where the settings make it {tuple(wanted.shape)}")
