"""The facts codec behind the seam: context to bytes, bytes to memory."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ilcp.assurance.view import Observed
from ilcp.codec.context import Context
from ilcp.codec.memory import Memory, SoftPrompt
from ilcp.codec.spec import CodecSpec, Trained
from ilcp.errors import DecodeError, IlcpError
from ilcp.models.forward import embed
from ilcp.records import read_record
from ilcp_codecs.facts.agenda import Agenda, Code
from ilcp_codecs.facts.config import SETTINGS, FactsConfig
from ilcp_codecs.facts.find import find
from ilcp_codecs.facts.network import FactsNetwork, Latent
from ilcp_codecs.states import StatesCodec, by_network

if TYPE_CHECKING:
    from ilcp.tasks.cases import Case
    from ilcp.training import Models

__all__ = ["NAME", "FactsCodec"]

NAME = "facts"
WORDS = "words.safetensors"  # the receiver's embeddings that it spells with
SPELLER = "speller.safetensors"


class FactsCodec(StatesCodec):
    """A codec of facts. Made by training (``from_network``) or by ``ilcp.load``; never changed by use."""

    reads, deepest = 4, 0.6
    apart: ClassVar[Mapping[str, tuple[str, ...]]] = {
        WORDS: ("speller.embeddings", "vocabulary"),
        SPELLER: ("speller.",),
    }

    def __init__(self, network: FactsNetwork, trained: Trained):
        super().__init__(network, trained)
        self.spec = CodecSpec(NAME, self.config.payload_bytes, "states")
        self._agenda = network.agenda()

    @classmethod
    def settings(cls) -> tuple[str, ...]:
        """Returns the fields of ``FactsConfig`` that neither the models nor the cases decide."""
        return SETTINGS

    @classmethod
    def _network(cls, settings: Mapping[str, Any], where: str, error: type[IlcpError]) -> FactsNetwork:
        return FactsNetwork(read_record(FactsConfig, settings, where, error=error))

    @classmethod
    def untrained_for(cls, models: "Models", settings: Mapping[str, Any], cases: Sequence["Case"]) -> FactsNetwork:
        """Returns a network for two models and the topics, words and chances that are found in training cases.

        Raises:
            ConfigError: no question has a topic, or the settings contradict each other.
        """
        found = find(cases, models.receiver_tokenizer, settings)
        shape = {"topics": found.topics, "questions": found.questions, "words": len(found.vocabulary)}
        network: FactsNetwork = cls.untrained(models.sender, models.receiver, {**settings, **shape})
        config = network.config
        agenda = Agenda.fit(found.said, found.lengths, whole_dims=config.whole_dims, token_dims=config.token_dims)
        embeddings = embed(models.receiver, found.vocabulary).detach().float().cpu()
        said = (*(ids[: config.topic_tokens] for ids in found.named), found.close)
        *about, close = (embed(models.receiver, ids).detach().float().cpu() for ids in said)
        vocabulary = torch.tensor(found.vocabulary)
        network.found(vocabulary, embeddings, about, close[0], agenda, found.fact_topics, found.fact_ids)
        return network

    @property
    def questions(self) -> tuple[str, ...]:
        """A question about each topic that the codec knows."""
        questions: tuple[str, ...] = self.config.questions
        return questions

    @by_network
    def encode(self, context: Context, payload_bytes: int | None = None) -> bytes:
        """Returns the payload of a context's states: no longer than what was said needs, nor than ``payload_bytes``.

        Raises:
            EncodeError: the context has no states, states of another sender, or NaN.
            ConfigError: there is no payload of that length.
        """
        return self.encode_observed(context, payload_bytes)[0]

    @by_network
    def encode_observed(self, context: Context, payload_bytes: int | None = None) -> tuple[bytes, Observed]:
        """Returns the payload as ``encode``, and how sure the codec is of each topic's having been said, beside it how
        many tokens that takes.

        Raises:
            EncodeError, ConfigError: as ``encode``.
        """
        most = self.spec.length(payload_bytes)
        heard, topics, lengths, z = self._heard(context)
        rows = zip(*z, lengths.tolist(), strict=True)
        bits = tuple(_in_turn(whole, tokens[:length]) for whole, tokens, length in rows)
        payload = self._agenda.encode(Code(tuple(topics.tolist()), tuple(lengths.tolist()), bits), most)
        return payload, Observed(heard.said[0].float().cpu().numpy(), (float(lengths.sum()),))

    @by_network
    def observe(self, payload: bytes) -> Observed:
        """Returns which topics a payload is about, beside it how many tokens their values take, and its length in
        bytes.

        Raises:
            DecodeError: as ``decode``.
        """
        topics, lengths, _ = self._read(payload)
        about = np.zeros(len(self.config.topics), dtype=np.float32)
        about[topics.cpu().numpy()] = 1
        return Observed(about, (float(lengths.sum()), float(len(payload))))

    @by_network
    def decode_unrounded(self, context: Context) -> Memory:
        """Returns the memory of the latent before it is rounded, which no payload holds: for measuring only.

        Raises:
            EncodeError: as ``encode``.
        """
        _, topics, lengths, z = self._heard(context)
        return self._memory(topics, lengths, Latent(*(part.clamp(-1, 1) for part in z)))

    @by_network
    def decode(self, payload: bytes) -> Memory:
        """Returns memory of a vector per topic that was said, and one per word of its value.

        Raises:
            DecodeError: the payload is empty or too long, or the vectors are not finite.
        """
        return self._memory(*self._read(payload))

    @by_network
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
        numbers = (torch.tensor(part, dtype=torch.long, device=self._device) for part in (code.topics, code.lengths))
        return *numbers, Latent(*(torch.from_numpy(part).to(self._device) for part in (whole, tokens)))  # type: ignore[return-value]

    def _memory(self, topics: Tensor, lengths: Tensor, z_hat: Latent) -> Memory:
        speller = self.network.speller
        facts = speller.memory(speller(*z_hat, topics, lengths), topics, lengths)
        return SoftPrompt(torch.cat([speller.close[:0], *facts]))

    def _heard(self, context: Context) -> tuple[Any, Tensor, Tensor, Latent]:
        """Returns what was heard, the topics that were said, ascending, the lengths of their values, and the latent,
        not rounded."""
        heard = self.network.extractor(*self._states(context))
        contexts, topics = (heard.said > 0).nonzero(as_tuple=True)
        values = self.network.extractor.values(heard, contexts, topics)
        return heard, topics, values.lengths, self.network.latent(self.network.words(values), values.lengths)


def _in_turn(whole: Tensor, tokens: Tensor) -> NDArray[np.int8]:
    """Returns the bits of one fact, -1 and 1: the value's as a whole, then bit by bit those of each token."""
    z = torch.cat([whole, tokens.T.reshape(-1)])
    return np.where(z.cpu().numpy() >= 0, 1, -1).astype(np.int8)
