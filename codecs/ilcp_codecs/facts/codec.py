"""The facts codec behind the seam: context to bytes, bytes to memory."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from ilcp.codec.context import Context
from ilcp.codec.folder import CONFIG, HubCodec
from ilcp.codec.memory import Memory, SoftPrompt
from ilcp.codec.spec import CodecSpec, Trained
from ilcp.errors import ConfigError, DecodeError, EncodeError, IdentityError, StorageError
from ilcp.evidence import Evidence
from ilcp.identity import ModelIdentity
from ilcp.models.fingerprint import weights_digest
from ilcp.models.forward import embed
from ilcp_codecs.facts.agenda import Agenda, Code
from ilcp_codecs.facts.config import SETTINGS, FactsConfig
from ilcp_codecs.facts.find import find
from ilcp_codecs.facts.network import FactsNetwork, Latent

if TYPE_CHECKING:
    from ilcp.tasks.cases import Case
    from ilcp.training import Models

__all__ = ["NAME", "FactsCodec"]

NAME = "facts"
WEIGHTS, WORDS = "model.safetensors", "words.safetensors"
LAYERS, DEEPEST = 4, 0.6  # the states that are read: so many, evenly up to that share of the sender's depth


class FactsCodec(HubCodec):
    """A codec of facts. Made by training (``from_network``) or by ``ilcp.load``; never changed by use."""

    def __init__(self, network: FactsNetwork, trained: Trained):
        self.network = network.eval().requires_grad_(False)
        self.config = network.config
        self.trained = trained
        self.evidence: Evidence | None = None
        self.spec = CodecSpec(NAME, self.config.payload_bytes, "states")
        self._agenda = network.agenda()

    @classmethod
    def settings(cls) -> tuple[str, ...]:
        """Returns the fields of ``FactsConfig`` that neither the models nor the cases decide."""
        return SETTINGS

    @classmethod
    def untrained(cls, sender: Any, receiver: Any, settings: Mapping[str, Any]) -> FactsNetwork:
        """Returns a network for two models, of the topics, questions and number of words that ``settings`` give.

        Raises:
            ConfigError: the settings contradict each other.
        """
        depth = sender.config.get_text_config().num_hidden_layers
        chosen = {round(step * DEEPEST * depth / (LAYERS - 1)) for step in range(LAYERS)}
        values = {
            "sender_layers": tuple(sorted(chosen)),
            "sender_hidden": sender.config.get_text_config().hidden_size,
            "receiver_hidden": receiver.get_input_embeddings().embedding_dim,
        }
        config = FactsConfig.from_dict(values | dict(settings), "[codec]")
        if max(config.sender_layers) > depth:
            raise ConfigError(f"expected sender_layers from 0 to {depth} (the last state), got {config.sender_layers}")
        return FactsNetwork(config)

    @classmethod
    def untrained_for(cls, models: "Models", settings: Mapping[str, Any], cases: Sequence["Case"]) -> FactsNetwork:
        """Returns a network for two models and the topics, words and chances that are found in training cases.

        Raises:
            ConfigError: no question has a topic, or the settings contradict each other.
        """
        found = find(cases, models.receiver_tokenizer, settings)
        shape = {"topics": found.topics, "questions": found.questions, "words": len(found.vocabulary)}
        network = cls.untrained(models.sender, models.receiver, {**settings, **shape})
        config = network.config
        agenda = Agenda.fit(found.said, found.lengths, whole_dims=config.whole_dims, token_dims=config.token_dims)
        embeddings = embed(models.receiver, found.vocabulary).detach().float().cpu()
        said = (*(ids[: config.topic_tokens] for ids in found.named), found.close)
        *about, close = (embed(models.receiver, ids).detach().float().cpu() for ids in said)
        vocabulary = torch.tensor(found.vocabulary)
        network.found(vocabulary, embeddings, about, close[0], agenda, found.fact_topics, found.fact_ids)
        return network

    @classmethod
    def from_network(cls, network: FactsNetwork, sender: ModelIdentity, receiver: ModelIdentity) -> "FactsCodec":
        """Returns the codec out of a trained network."""
        return cls(network, Trained(sender, receiver, weights_digest(network).hex()))

    @property
    def layers(self) -> tuple[int, ...]:
        """The sender's layers that ``encode`` reads."""
        return self.config.sender_layers

    @property
    def questions(self) -> tuple[str, ...]:
        """A question about each topic that the codec knows."""
        return self.config.questions

    @torch.no_grad()
    def encode(self, context: Context, payload_bytes: int | None = None) -> bytes:
        """Returns the payload of a context's states: no longer than what was said needs, nor than ``payload_bytes``.

        Raises:
            EncodeError: the context has no states, states of another sender, or NaN.
            ConfigError: there is no payload of that length.
        """
        length = self.spec.length(payload_bytes)
        topics, lengths, z = self._latent(context)
        bits = tuple(
            _in_turn(whole, tokens[:length]) for whole, tokens, length in zip(*z, lengths.tolist(), strict=True)
        )
        return self._agenda.encode(Code(tuple(topics.tolist()), tuple(lengths.tolist()), bits), length)

    @torch.no_grad()
    def decode_unrounded(self, context: Context) -> Memory:
        """Returns the memory of the latent before it is rounded, which no payload holds: for measuring only.

        Raises:
            EncodeError: as ``encode``.
        """
        topics, lengths, z = self._latent(context)
        return self._memory(topics, lengths, Latent(*(part.clamp(-1, 1) for part in z)))

    @torch.no_grad()
    def decode(self, payload: bytes) -> Memory:
        """Returns memory of a vector per topic that was said, and one per word of its value.

        Raises:
            DecodeError: the payload is empty or too long, or the vectors are not finite.
        """
        if not 1 <= len(payload) <= self.spec.payload_bytes:
            most = self.spec.payload_bytes
            raise DecodeError(f"expected a payload of 1 to {most} bytes for codec {NAME!r}, got {len(payload)}")
        return self._memory(*self._read(payload))

    @torch.no_grad()
    def facts(self, payload: bytes) -> list[tuple[str, tuple[int, ...]]]:
        """Returns what a payload says: each topic with the likeliest tokens of its value, as ids of the receiver's.

        Raises:
            DecodeError: as ``decode``.
        """
        topics, lengths, z_hat = self._read(payload)
        words = self.network.speller(*z_hat, topics, lengths).argmax(-1)
        rows = zip(topics.tolist(), lengths.tolist(), self.network.vocabulary[words].tolist(), strict=True)
        return [(self.config.topics[topic], tuple(row[:length])) for topic, length, row in rows]

    def _read(self, payload: bytes) -> tuple[Tensor, Tensor, Latent]:
        """Returns topics and lengths ``"facts"``, and the latent as far as the payload decides it."""
        if not 1 <= len(payload) <= self.spec.payload_bytes:
            most = self.spec.payload_bytes
            raise DecodeError(f"expected a payload of 1 to {most} bytes for codec {NAME!r}, got {len(payload)}")
        code, config = self._agenda.decode(payload), self.config
        whole = np.zeros((len(code.topics), config.whole_dims), dtype=np.float32)
        tokens = np.zeros((len(code.topics), config.value_tokens, config.token_dims), dtype=np.float32)
        for fact, (length, bits) in enumerate(zip(code.lengths, code.bits, strict=True)):
            whole[fact] = bits[: config.whole_dims]
            tokens[fact, :length] = bits[config.whole_dims :].reshape(config.token_dims, length).T
        device = self.network.speller.close.device
        numbers = (torch.tensor(part, dtype=torch.long, device=device) for part in (code.topics, code.lengths))
        return *numbers, Latent(*(torch.from_numpy(part).to(device) for part in (whole, tokens)))  # type: ignore[return-value]

    def _memory(self, topics: Tensor, lengths: Tensor, z_hat: Latent) -> Memory:
        speller = self.network.speller
        facts = speller.memory(speller(*z_hat, topics, lengths), topics, lengths)
        return SoftPrompt(torch.cat([speller.close[:0], *facts]))

    def _latent(self, context: Context) -> tuple[Tensor, Tensor, Latent]:
        """Returns the topics that were said, ascending, the lengths of their values, and the latent, not rounded."""
        states = context.states
        expected = (len(self.config.sender_layers), self.config.sender_hidden)
        if states is None or (states.shape[0], states.shape[2]) != expected or states.shape[1] == 0:
            found = "none" if states is None else f"shape {tuple(states.shape)}"
            raise EncodeError(f"expected states of {expected[0]} layers and width {expected[1]}, got {found}")
        if not bool(torch.isfinite(states).all()):
            raise EncodeError("expected finite hidden states, got NaN or infinity: the sender's weights are damaged")
        states = states.to(self.network.speller.close.device)
        heard = self.network.extractor(states[None], torch.ones(1, states.shape[1], device=states.device))
        contexts, topics = (heard.said > 0).nonzero(as_tuple=True)
        values = self.network.extractor.values(heard, contexts, topics)
        return topics, values.lengths, self.network.latent(self.network.words(values), values.lengths)

    def save_files(self, folder: Path) -> dict[str, Any]:
        """Writes the weights, and the receiver's embeddings that it spells with; returns the configuration."""
        state = {name: _lean(tensor) for name, tensor in self.network.state_dict().items()}
        words = {name: state.pop(name) for name in ("speller.embeddings", "vocabulary")}
        save_file(state, folder / WEIGHTS)
        save_file(words, folder / WORDS)
        return asdict(self.config)

    @classmethod
    def load_files(cls, folder: Path, spec: CodecSpec, trained: Trained, settings: Mapping[str, Any]) -> "FactsCodec":
        """Returns the codec that ``save_files`` wrote.

        Raises:
            StorageError: the weights are missing, damaged, or of another shape.
            IdentityError: the weights are not those the codec was saved with.
        """
        network = FactsNetwork(FactsConfig.from_dict(settings, f"settings in {folder / CONFIG}", error=StorageError))
        try:
            network.load_state_dict(load_file(folder / WEIGHTS) | load_file(folder / WORDS), strict=True)
        except Exception as error:  # safetensors and torch raise several kinds, all of which mean this
            raise StorageError(f"expected the codec's weights in {folder}, got: {error}") from error
        found = weights_digest(network).hex()
        if found != trained.weights:
            raise IdentityError(
                f"expected codec weights {trained.weights}, got {found} in {folder}: "
                "a file was replaced or damaged; fetch the codec again"
            )
        codec = cls(network, trained)
        if codec.spec != spec:
            raise IdentityError(f"expected the codec spec {spec}, got {codec.spec} from its settings in {folder}")
        return codec


def _in_turn(whole: Tensor, tokens: Tensor) -> NDArray[np.int8]:
    """Returns the bits of one fact, -1 and 1: the value's as a whole, then bit by bit those of each token."""
    z = torch.cat([whole, tokens.T.reshape(-1)])
    return np.where(z.cpu().numpy() >= 0, 1, -1).astype(np.int8)


def _lean(tensor: Tensor) -> Tensor:
    half = tensor.half()
    return half if tensor.is_floating_point() and torch.equal(half.float(), tensor.float()) else tensor
