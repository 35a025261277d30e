"""The loss of a batch, through the frozen receiver.

::

    loss = cross_entropy_weight * cross-entropy of the answers given the memory
         + kl_weight * KL(receiver with full text || receiver with memory), on one question per context
         + reconstruction_weight * cross-entropy of the context itself given the memory, in the first part of the run
         + rate_weight * the bits of rate above what is free
         + alignment_weight * the share of the phrasebook's memory that is missing from the network's
         + blank_share * KL(receiver with nothing || receiver with a blank payload), on so many contexts
         + reader_weight * cross-entropy of one context's answers given its text, while the adapter is trained
         + forget_weight * what an adversary knows of forgotten topics, and that adversary's own cross-entropy
         + facts_weight * a codec's own losses about what was said, where it learns facts

What the receiver says with the full text, or with nothing, is what it said when the codec's training began
(``Models.teacher``), whatever its adapter has learned since.

Every mean is over what all processes have together; see ``ilcp.nn.distributed``.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional as F

from ilcp.errors import ConfigError
from ilcp.models.adapter import vocabulary_size
from ilcp.models.forward import PADDING, embed
from ilcp.nn.distributed import all_reduce, rank, world
from ilcp.nn.whitening import whitening
from ilcp.tasks.cases import Case
from ilcp.training.batch import Batch, Batcher, Models, Row
from ilcp.training.clock import Clock
from ilcp.training.facts import Told
from ilcp.training.forget import LatentNetwork, adversary_of
from ilcp.training.hyperparameters import Hyperparameters
from ilcp.training.packed import memory_logits, text_logits
from ilcp.training.precision import precision
from ilcp.training.reader import Reader

if TYPE_CHECKING:
    from ilcp.training.phrasebook import Phrasebook

CALIBRATION_TOKENS = 16_384  # of the sender's that are read, and of the receiver's vocabulary that is looked at
Memories = Tensor | Sequence[Tensor]
LIKENESS_SCALE = 24.0  # of the cosine: sharp enough to name one word among thousands

__all__ = ["FactNetwork", "Network", "Objective", "Targets", "alignment_loss", "calibrate", "naming_loss", "targets_of"]


class Network(Protocol):
    """A learned codec's ``nn.Module``, as the loop needs it."""

    @property
    def layers(self) -> tuple[int, ...]:
        """The sender's layers whose states it takes, as ``Codec.layers``."""
        ...

    def __call__(self, states: Tensor, mask: Tensor) -> tuple[Memories, Tensor]:
        """Turns states ``"batch layers tokens hidden"`` into memory and a rate ``"batch"``.

        The mask is ``"batch tokens"``; memory is ``"memory hidden"`` for each context, of any length, or one tensor
        ``"batch memory hidden"``; the rate is in bits.
        """
        ...

    def calibrate(self, states: Tensor, mask: Tensor, memory: Tensor) -> None:
        """Fits the network, untrained yet, to samples of states and of memory, ``"n slots hidden"``."""
        ...

    def blank(self, count: int) -> Memories:
        """Returns memory, ``"memory hidden"`` each, of blank payloads: this process's share of ``count``."""
        ...

    def round_to_half(self) -> None:
        """Rounds the trained weights to the half precision in which they are saved."""
        ...


@runtime_checkable
class FactNetwork(Network, Protocol):
    """A network that learns facts from what the questions tell, before a receiver is asked anything."""

    @property
    def topics(self) -> tuple[str, ...]:
        """What a fact may be about, in the order of their numbers."""
        ...

    @property
    def places(self) -> int:
        """How many tokens of a value it takes in."""
        ...

    def fact_losses(self, states: Tensor, mask: Tensor, told: Told) -> dict[str, Tensor]:
        """Returns what its lesson costs, term by term; ``"loss"`` is what is to be lowered."""
        ...

    def recalled(self, states: Tensor, mask: Tensor, told: Told) -> Tensor:
        """Returns ``"facts"``: whether the memory it makes spells the value under its topic, word for word."""
        ...


@torch.no_grad()
def calibrate(
    network: Network,
    models: Models,
    cases: Sequence[Case],
    hyperparameters: Hyperparameters,
    phrasebook: "Phrasebook | None" = None,
) -> None:
    """Fits an untrained network to the spread of the sender's states of these cases and of the memory it should make.

    That memory is the phrasebook's; without one, the receiver's embeddings stand in for it.
    """
    tokens, few = 0, list[Case]()
    for case in cases:  # as many as are read in one pass without filling the memory of a large model
        tokens += len(models.sender_tokenizer(case.context, verbose=False).input_ids)
        few += [case] if tokens <= CALIBRATION_TOKENS or not few else []
    batch = Batcher(models, hyperparameters).batch(few, random.Random(0), whole=True)
    states, mask = Reader(models, network.layers, hyperparameters).states(batch.texts)
    vocabulary = vocabulary_size(models.receiver)
    sample = range(0, vocabulary, -(-vocabulary // CALIBRATION_TOKENS))
    stand_in = embed(models.receiver, sample).float().unsqueeze(1)
    network.calibrate(states, mask, stand_in if phrasebook is None else phrasebook.memory(batch))


class Objective:
    """The terms of the loss, by name; ``"loss"`` is their weighted sum."""

    def __init__(
        self,
        models: Models,
        hyperparameters: Hyperparameters,
        reader: Reader,
        phrasebook: "Phrasebook | None" = None,
        clock: Clock | None = None,
    ):
        self.models, self.hyperparameters, self.reader, self.phrasebook = models, hyperparameters, reader, phrasebook
        self.clock = clock or Clock()

    def terms(self, network: Network, batch: Batch, step: int = 0, done: float = 0.0) -> dict[str, Tensor]:
        """Computes the terms at ``step`` of a run of which the share ``done`` is over."""
        if self.phrasebook and step < self.hyperparameters.naming_steps + self.hyperparameters.alignment_steps:
            return self._warmup(network, batch, self.phrasebook, step)
        read = self.states(batch)
        memory, rate_bits, hidden = self._hiding(network, batch, *read)
        blanks = self.hyperparameters.blanks(batch.count)
        unsent = [row for row in batch.rows if self._number(row) < blanks]
        sent = [row for row in batch.rows if self._number(row) >= blanks]
        terms = {"rate_bits": self._mean(rate_bits.sum(), len(rate_bits))}
        weights = {"rate_bits": 0.0}
        if self.hyperparameters.rate_weight:
            terms["paid_bits"] = (
                all_reduce(terms["rate_bits"]) / world() - self.hyperparameters.free_bits_at(done)
            ).clamp(min=0)
            weights["paid_bits"] = self.hyperparameters.rate_weight
        blank = network.blank(blanks) if blanks else None
        with self.clock("receiver"), precision(self.models.receiver.device, self.hyperparameters):
            terms |= self._answers(batch, sent, memory)
            if self.hyperparameters.reconstructs_at(done):
                rows = [row for row in batch.reconstruction if self._number(row) >= blanks]
                terms["reconstruction"] = self._cross_entropy(*memory_logits(self.models, rows, memory))
            if blank is not None:
                terms["blank"] = self._blank(blank, unsent)
            if self.models.adapter is not None and self.hyperparameters.adapts_at(done):
                read_rows = [row for row in batch.rows if not row.forgotten] or list(batch.rows)
                same = [row for row in read_rows if row.context == read_rows[0].context]
                terms["reading"] = self.reading(batch, same)
        if isinstance(network, FactNetwork) and self.hyperparameters.facts_weight:
            terms["facts"] = self.lesson(network, batch, *read)["loss"]
        if self.hyperparameters.alignment_weight and self.phrasebook is not None:
            assert isinstance(memory, Tensor)
            terms["alignment"] = alignment_loss(targets_of(self.phrasebook, batch, memory))
        terms |= hidden
        warm = self.hyperparameters.warmup_steps  # in which the adversary learns first
        weights |= {
            "adversary": 1.0,
            "guess": 1.0,
            "forgetting": self.hyperparameters.forget_weight * (min(1.0, step / warm) if warm else 1.0),
            "cross_entropy": self.hyperparameters.cross_entropy_weight,
            "alignment": self.hyperparameters.alignment_weight,
            "reconstruction": self.hyperparameters.reconstruction_weight,
            "blank": self.hyperparameters.blank_share,
            "kl": self.hyperparameters.kl_weight,
            "reading": self.hyperparameters.reader_weight,
            "facts": self.hyperparameters.facts_weight,
        }
        return terms | {"loss": torch.stack([weights[name] * term for name, term in terms.items()]).sum()}

    def states(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Returns the sender's states of a batch, and their mask, as ``Reader.states``; it takes no gradient."""
        with self.clock("sender"):
            return self.reader.states(batch.texts)

    def memory(self, network: Network, states: Tensor, mask: Tensor) -> tuple[Memories, Tensor]:
        """Returns memory, ``"memory hidden"`` for each context, and its rate ``"contexts"``."""
        with self.clock("codec"):
            memory, rate_bits = network(states, mask)
        self.clock.backward_reaches(memory)
        return memory, rate_bits

    def _hiding(
        self, network: Network, batch: Batch, states: Tensor, mask: Tensor
    ) -> tuple[Memories, Tensor, dict[str, Tensor]]:
        """Returns what ``memory`` does, and the terms of the network's adversary, if it has one."""
        adversary = adversary_of(network)
        if adversary is None:
            return *self.memory(network, states, mask), {}
        assert isinstance(network, LatentNetwork)
        with self.clock("codec"):
            latent, rate_bits = network.latent(states, mask)
            memory = network.memory_of(latent)
            hidden = adversary.terms(latent, torch.tensor(batch.secrets, device=latent.device))
        self.clock.backward_reaches(memory)
        return memory, rate_bits, hidden

    def reading(self, batch: Batch, rows: Sequence[Row]) -> Tensor:
        """Computes the cross-entropy of the answers given the full text."""
        return self._cross_entropy(*text_logits(self.models, rows, [batch.texts[row.context] for row in rows]))

    def lesson(self, network: FactNetwork, batch: Batch, states: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Computes what the codec's own lesson about the batch's facts costs."""
        told = Told.of(batch.told, network.places, states.shape[2], states.device)
        with self.clock("codec"), precision(self.models.receiver.device, self.hyperparameters):
            return network.fact_losses(states, mask, told)

    def receiver_pass(self, batch: Batch, memory: Memories) -> None:
        """Runs the receiver alone over a batch's rows, forward and back to the memory: no step could do with less."""
        memory = [one.detach().requires_grad_() for one in memory]
        with precision(self.models.receiver.device, self.hyperparameters):
            loss = self._cross_entropy(*memory_logits(self.models, batch.rows, memory))
        torch.autograd.grad(loss, memory, allow_unused=True)  # of a context that no row asks about
        loss.item()  # which waits for a GPU

    def _warmup(self, network: Network, batch: Batch, phrasebook: "Phrasebook", step: int) -> dict[str, Tensor]:
        """Computes ``naming_loss`` and ``alignment_loss``, before the receiver is asked anything."""
        memory, _ = self.memory(network, *self.states(batch))
        assert isinstance(memory, Tensor)  # a phrasebook has a vector per topic
        targets = targets_of(phrasebook, batch, memory)
        terms = {"naming": naming_loss(targets), "alignment": alignment_loss(targets)}
        return terms | {"loss": terms["naming" if step < self.hyperparameters.naming_steps else "alignment"]}

    def _answers(self, batch: Batch, rows: Sequence[Row], memory: Memories) -> dict[str, Tensor]:
        logits, labels = memory_logits(self.models, rows, memory)
        terms = {"cross_entropy": self._cross_entropy(logits, labels)}
        if self.hyperparameters.kl_weight:
            first = {row.context: index for index, row in reversed(list(enumerate(rows))) if not row.forgotten}
            chosen = list(first.values())
            if not first:
                return terms | {"kl": self._mean(0.0 * terms["cross_entropy"], 0)}
            with torch.no_grad(), self.models.teaching():
                texts = [batch.texts[context] for context in first]
                target, own = text_logits(self.models, [rows[index] for index in chosen], texts)
            terms["kl"] = self._mean(*_kl(target, logits[chosen, -own.shape[1] :], own))
        return terms

    def _cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        known = labels != PADDING
        return self._mean(F.cross_entropy(logits[known], labels[known], reduction="sum"), int(known.sum()))

    def _blank(self, memory: Memories, rows: Sequence[Row]) -> Tensor:
        """Computes the KL that pushes blank payloads towards the no-message answer."""
        if not rows:  # all of them are other processes'
            return self._mean(0.0 * torch.stack([one.sum() for one in memory]).sum(), 0)
        logits, labels = memory_logits(self.models, rows, memory)
        with torch.no_grad(), self.models.teaching():
            target, _ = text_logits(self.models, rows, [""] * len(rows))
        return self._mean(*_kl(target, logits, labels))

    def _number(self, row: Row) -> int:
        """Returns the number of the row's context among those of all processes."""
        return rank() + row.context * world()

    def _mean(self, summed: Tensor, count: int) -> Tensor:
        """Returns this process's part of a mean over all processes' items: the average of the parts is the mean."""
        return summed * (world() / all_reduce(float(count), summed.device).clamp(min=1))


@dataclass(frozen=True, slots=True)
class Targets:
    """The memory vectors of a batch and their aims, whitened by the spread of the phrasebook's vectors.

    ``held`` and ``wanted`` are ``"facts hidden"``, of the same contexts and topics and less the topic's place;
    ``words`` is ``"words hidden"``, every word that could be said; ``said`` is ``"facts words"``, a distribution over
    them.
    """

    held: Tensor
    wanted: Tensor
    words: Tensor
    said: Tensor


def targets_of(phrasebook: "Phrasebook", batch: Batch, memory: Tensor) -> Targets:
    """Returns the aims of a batch, whose memory is ``"contexts memory hidden"``.

    Raises:
        ConfigError: no question of the batch is about one of the topics.
    """
    keys = [key for key, words in batch.facts.items() if words <= phrasebook.words.keys()]
    if not keys:
        raise ConfigError("expected questions about Hyperparameters.topics, got none: give Question.facts and topics")
    said = phrasebook.said(batch, keys)
    _, matrix = whitening(phrasebook.vectors)
    contexts, topics = map(list, zip(*keys, strict=True))
    vectors = phrasebook.vectors @ matrix
    return Targets(
        held=(memory[contexts, topics] - phrasebook.places[topics]) @ matrix,
        wanted=said @ vectors,
        words=vectors,
        said=F.normalize(said, p=1, dim=-1),
    )


def naming_loss(targets: Targets) -> Tensor:
    """Computes the KL, in nats, from the words of the answers to a memory vector's likeness to all words (cosine).

    It starts the learning, since it tells values of one kind apart at once. A squared error does not: that of a value
    is mostly that of its kind.
    """
    likeness = F.normalize(targets.held, dim=-1) @ F.normalize(targets.words, dim=-1).T
    return F.kl_div((LIKENESS_SCALE * likeness).log_softmax(-1), targets.said, reduction="batchmean")


def alignment_loss(targets: Targets) -> Tensor:
    """Computes the share of the phrasebook's memory that the network's lacks: squared error over mean square."""
    return (targets.held - targets.wanted).square().sum() / targets.wanted.square().sum().clamp(min=1e-6)


def _kl(target: Tensor, logits: Tensor, labels: Tensor) -> tuple[Tensor, int]:
    """Returns the divergence summed over all tokens of answers, in nats, and how many there are."""
    known = labels != PADDING
    wanted = F.log_softmax(target[known], dim=-1)
    summed = F.kl_div(F.log_softmax(logits[known], dim=-1), wanted, log_target=True, reduction="sum")
    return summed, int(known.sum())
