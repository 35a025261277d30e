"""The loss of a batch, through the frozen receiver.

::

    loss = cross_entropy_weight * cross-entropy of the answers given the memory
         + kl_weight * KL(receiver with full text || receiver with memory), on one question per context
         + reconstruction_weight * cross-entropy of the context itself given the memory, in the first part of the run
         + rate_weight * the bits of rate above what is free
         + alignment_weight * the share of the phrasebook's memory that is missing from the network's
         + blank_share * KL(receiver with nothing || receiver with a payload no sender made), on so many contexts

Every mean is over what all processes have together; see ``ilcp.nn.distributed``.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from ilcp.errors import EncodeError
from ilcp.models.forward import PADDING, embed
from ilcp.nn.distributed import all_reduce, rank, world
from ilcp.nn.whitening import whitening
from ilcp.tasks.cases import Case
from ilcp.training.batch import Batch, Batcher, Models, Row
from ilcp.training.clock import Clock
from ilcp.training.hyperparameters import Hyperparameters
from ilcp.training.packed import memory_logits, text_logits
from ilcp.training.precision import precision
from ilcp.training.reader import Reader

if TYPE_CHECKING:
    from ilcp.training.phrasebook import Phrasebook

CALIBRATION_TOKENS = 16_384  # of the sender's that are read, and of the receiver's vocabulary that is looked at
LIKENESS_SCALE = 24.0  # of the cosine: sharp enough to name one word among thousands

__all__ = ["Network", "Objective", "Targets", "alignment_loss", "calibrate", "naming_loss", "targets_of"]


class Network(Protocol):
    """What the loop asks of a learned codec's ``nn.Module``."""

    layers: tuple[int, ...]

    def __call__(self, states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Memory ``"batch memory hidden"`` and ``rate_bits`` ``"batch"`` from ``"batch layers tokens hidden"``."""
        ...

    def calibrate(self, states: Tensor, mask: Tensor, memory: Tensor) -> None:
        """Before training: fits the network to samples of states and of memory, ``"n slots hidden"``."""
        ...

    def blank(self, count: int) -> Tensor:
        """Memory ``"share memory hidden"`` of payloads that no sender made: this process's share of ``count``."""
        ...


@torch.no_grad()
def calibrate(
    network: Network,
    models: Models,
    cases: Sequence[Case],
    recipe: Hyperparameters,
    phrasebook: "Phrasebook | None" = None,
) -> None:
    """Fits an untrained network to how the sender's states of these cases are spread, and the memory it should make.

    That memory is the phrasebook's; without one, the receiver's embeddings stand in for it.
    """
    tokens, few = 0, list[Case]()
    for case in cases:  # as many as are read in one pass without filling the memory of a large model
        tokens += len(models.sender_tokenizer(case.context, verbose=False).input_ids)
        few += [case] if tokens <= CALIBRATION_TOKENS or not few else []
    batch = Batcher(models, recipe).batch(few, random.Random(0), whole=True)
    states, mask = Reader(models, network.layers, recipe).states(batch.texts)
    vocabulary = models.receiver.get_input_embeddings().num_embeddings
    sample = range(0, vocabulary, -(-vocabulary // CALIBRATION_TOKENS))
    stand_in = embed(models.receiver, sample).float().unsqueeze(1)
    network.calibrate(states, mask, stand_in if phrasebook is None else phrasebook.memory(batch))


class Objective:
    """The terms of the loss, by name; ``"loss"`` is their weighted sum."""

    def __init__(
        self,
        models: Models,
        recipe: Hyperparameters,
        reader: Reader,
        phrasebook: "Phrasebook | None" = None,
        clock: Clock | None = None,
    ):
        self.models, self.recipe, self.reader, self.phrasebook = models, recipe, reader, phrasebook
        self.clock = clock or Clock()

    def terms(self, network: Network, batch: Batch, step: int = 0, done: float = 0.0) -> dict[str, Tensor]:
        """At ``step`` of a run of which the share ``done`` is over."""
        if self.phrasebook and step < self.recipe.naming_steps + self.recipe.alignment_steps:
            return self._warmup(network, batch, self.phrasebook, step)
        memory, rate_bits = self.memory(network, batch)
        blanks = self.recipe.blanks(batch.count)
        silent = [row for row in batch.rows if self._number(row) < blanks]
        told = [row for row in batch.rows if self._number(row) >= blanks]
        terms = {"rate_bits": self._mean(rate_bits.sum(), len(rate_bits))}
        weights = {"rate_bits": 0.0}
        if self.recipe.rate_weight:
            terms["paid_bits"] = (all_reduce(terms["rate_bits"]) / world() - self.recipe.free_bits_at(done)).clamp(
                min=0
            )
            weights["paid_bits"] = self.recipe.rate_weight
        blank = network.blank(blanks) if blanks else None
        with self.clock("receiver"), precision(self.models.receiver.device, self.recipe):
            terms |= self._answers(batch, told, memory)
            if self.recipe.reconstructs_at(done):
                retold = [row for row in batch.retold if self._number(row) >= blanks]
                terms["reconstruction"] = self._cross_entropy(retold, memory)
            if blank is not None:
                terms["blank"] = self._blank(blank, silent)
        if self.recipe.alignment_weight and self.phrasebook is not None:
            terms["alignment"] = alignment_loss(targets_of(self.phrasebook, batch, memory))
        weights |= {
            "cross_entropy": self.recipe.cross_entropy_weight,
            "alignment": self.recipe.alignment_weight,
            "reconstruction": self.recipe.reconstruction_weight,
            "blank": self.recipe.blank_share,
            "kl": self.recipe.kl_weight,
        }
        return terms | {"loss": torch.stack([weights[name] * term for name, term in terms.items()]).sum()}

    def memory(self, network: Network, batch: Batch) -> tuple[Tensor, Tensor]:
        """Memory ``"contexts memory hidden"`` and its rate ``"contexts"``; the sender's pass takes no gradient."""
        with self.clock("sender"):
            states, mask = self.reader.states(batch.texts)
        with self.clock("codec"):
            memory, rate_bits = network(states, mask)
        self.clock.backward_reaches(memory)
        return memory, rate_bits

    def _warmup(self, network: Network, batch: Batch, phrasebook: "Phrasebook", step: int) -> dict[str, Tensor]:
        """Before the receiver is asked anything; see ``naming_loss`` and ``alignment_loss``."""
        memory, _ = self.memory(network, batch)
        targets = targets_of(phrasebook, batch, memory)
        terms = {"naming": naming_loss(targets), "alignment": alignment_loss(targets)}
        return terms | {"loss": terms["naming" if step < self.recipe.naming_steps else "alignment"]}

    def _answers(self, batch: Batch, rows: Sequence[Row], memory: Tensor) -> dict[str, Tensor]:
        logits, labels = memory_logits(self.models, rows, memory)
        known = labels != PADDING
        losses = F.cross_entropy(logits[known], labels[known], reduction="sum")
        terms = {"cross_entropy": self._mean(losses, int(known.sum()))}
        if self.recipe.kl_weight:
            first = {row.context: index for index, row in reversed(list(enumerate(rows)))}
            chosen = list(first.values())
            with torch.no_grad(), self.models.unadapted():
                texts = [batch.texts[context] for context in first]
                target, own = text_logits(self.models, [rows[index] for index in chosen], texts)
            terms["kl"] = self._mean(*_kl(target, logits[chosen, -own.shape[1] :], own))
        return terms

    def _cross_entropy(self, rows: Sequence[Row], memory: Tensor) -> Tensor:
        logits, labels = memory_logits(self.models, rows, memory)
        known = labels != PADDING
        return self._mean(F.cross_entropy(logits[known], labels[known], reduction="sum"), int(known.sum()))

    def _blank(self, memory: Tensor, rows: Sequence[Row]) -> Tensor:
        """What a payload says that no sender made: as little as nothing does."""
        if not rows:  # all of them are other processes'
            return self._mean(0.0 * memory.sum(), 0)
        logits, labels = memory_logits(self.models, rows, memory)
        with torch.no_grad(), self.models.unadapted():
            target, _ = text_logits(self.models, rows, [""] * len(rows))
        return self._mean(*_kl(target, logits, labels))

    def _number(self, row: Row) -> int:
        """Of the row's context, among those of all processes."""
        return rank() + row.context * world()

    def _mean(self, summed: Tensor, count: int) -> Tensor:
        """This process's part of a mean over all processes' items: the average of the parts is the mean."""
        return summed * (world() / all_reduce(float(count), summed.device).clamp(min=1))


@dataclass(frozen=True, slots=True)
class Targets:
    """What the memory vectors of a batch should be, after whitening by how the phrasebook's memory is spread.

    ``held`` and ``wanted`` are ``"told hidden"``, of the same contexts and topics and less the topic's place; ``words``
    is ``"words hidden"``, every word that could be said; ``said`` is ``"told words"``, a distribution over them.
    """

    held: Tensor
    wanted: Tensor
    words: Tensor
    said: Tensor


def targets_of(phrasebook: "Phrasebook", batch: Batch, memory: Tensor) -> Targets:
    """The aims of a batch.

    Raises:
        EncodeError: no question of the batch is about one of the recipe's topics.
    """
    keys = [key for key, words in batch.told.items() if words <= phrasebook.words.keys()]
    if not keys:
        raise EncodeError("expected questions about the recipe's topics, got none: give Question.facts, Recipe.topics")
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
    """KL, in nats, from the words of the answers to what a memory vector looks like among all words (cosine).

    It starts the learning, since it tells values of one kind apart at once. A squared error does not: that of a value
    is mostly that of its kind.
    """
    likeness = F.normalize(targets.held, dim=-1) @ F.normalize(targets.words, dim=-1).T
    return F.kl_div((LIKENESS_SCALE * likeness).log_softmax(-1), targets.said, reduction="batchmean")


def alignment_loss(targets: Targets) -> Tensor:
    """The share of the phrasebook's memory that is missing from the network's: squared error over mean square."""
    return (targets.held - targets.wanted).square().sum() / targets.wanted.square().sum().clamp(min=1e-6)


def _kl(target: Tensor, logits: Tensor, labels: Tensor) -> tuple[Tensor, int]:
    """The summed divergence over all tokens of answers, in nats, and how many there are."""
    known = labels != PADDING
    wanted = F.log_softmax(target[known], dim=-1)
    summed = F.kl_div(F.log_softmax(logits[known], dim=-1), wanted, log_target=True, reduction="sum")
    return summed, int(known.sum())
