"""The phrasebook: the memory vectors from which the frozen receiver answers, one set of words per topic.

::

    memory vector of topic t = place[t] + sum of vector[w] over the words w of the answers about t

``place`` and ``vector`` are free parameters, trained with the cross-entropy of the answers through the frozen receiver;
no sender and no codec takes part. It takes minutes, and it splits the codec's problem in two: the receiver says here
what it can read, and the codec learns by regression to write that.
"""

import os
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn import functional as F

from ilcp.errors import ConfigError, StorageError
from ilcp.models.adapter import vocabulary_size
from ilcp.models.forward import PADDING, embed
from ilcp.models.prompt import answer_ids
from ilcp.tasks.cases import Case
from ilcp.training.batch import Batch, Batcher, Models, frozen
from ilcp.training.hyperparameters import Hyperparameters
from ilcp.training.pace import Pace, seconds_text, voice
from ilcp.training.packed import memory_logits
from ilcp.training.precision import precision
from ilcp.training.tensors import checked, write_tensors

__all__ = ["Phrasebook", "kept_phrasebook", "write_phrasebook"]

FILE, STEPS = "phrasebook.safetensors", 300  # of a run's own: where it lies, and how long it takes
RATE = 0.4  # of Adam, in units of the RMS of the receiver's embeddings


@dataclass(frozen=True, slots=True)
class Phrasebook:
    """``vectors`` ``"words hidden"`` of ``words``, and ``places`` ``"topics hidden"``."""

    words: Mapping[str, int]
    vectors: Tensor
    places: Tensor

    def memory(self, batch: Batch) -> Tensor:
        """Returns the memory ``"contexts topics hidden"`` that says what the batch's answers say."""
        keys = [(context, topic) for context in range(len(batch.texts)) for topic in range(len(self.places))]
        facts: Tensor = (self.said(batch, keys) @ self.vectors).unflatten(0, (-1, len(self.places)))
        return self.places + facts

    def said(self, batch: Batch, keys: Sequence[tuple[int, int]]) -> Tensor:
        """Returns ``"keys words"``: one where the answers about that context and topic have the word, else zero."""
        said = torch.zeros(len(keys), len(self.words), device=self.vectors.device)
        for line, key in zip(said, keys, strict=True):
            line[[self.words[word] for word in batch.facts.get(key, ()) if word in self.words]] = 1
        return said

    def save(self, file: Path) -> None:
        """Writes everything into one safetensors file.

        Raises:
            StorageError: the disk is full, or not to be written to.
        """
        order = sorted(self.words, key=lambda word: self.words[word])
        write_tensors(file, {"vectors": self.vectors, "places": self.places}, {"words": "\n".join(order)})

    @classmethod
    def load(cls, file: Path) -> "Phrasebook":
        """Reads the phrasebook that ``save`` wrote.

        Raises:
            StorageError: the file is missing or damaged.
        """
        try:
            with safe_open(file, "pt") as opened:
                words = (opened.metadata() or {})["words"].split("\n")
                vectors, places = checked(opened, "vectors"), checked(opened, "places")
        except (OSError, KeyError, ValueError, SafetensorError) as error:
            raise StorageError(f"expected a phrasebook in {file}, got: {error}") from error
        if len(words) != len(vectors):
            raise StorageError(f"expected a phrasebook in {file}, got {len(words)} words and {len(vectors)} vectors")
        return cls({word: number for number, word in enumerate(words)}, vectors, places)


def kept_phrasebook(
    models: Models, source: Callable[[int, int], Sequence[Case]], hyperparameters: Hyperparameters, folder: Path
) -> Phrasebook | None:
    """Returns the phrasebook that a run's folder keeps, which is written first; None where no topic wants one.

    Raises:
        ConfigError, StorageError: as ``write_phrasebook``, ``Phrasebook.save`` and ``Phrasebook.load``.
    """
    wanted, file = hyperparameters, folder / FILE
    if not (wanted.topics and (wanted.naming_steps or wanted.alignment_steps or wanted.alignment_weight)):
        return None
    if not os.path.exists(file):
        batcher, n = Batcher(models, replace(wanted, telling_share=0.0)), wanted.contexts
        drawn = (random.Random(f"phrasebook {wanted.seed}/{step}") for step in range(STEPS))
        batches = [batcher.batch(source(step * n, n), rng) for step, rng in enumerate(drawn)]
        write_phrasebook(models, batches, wanted).save(file)
    return Phrasebook.load(file)


def write_phrasebook(
    models: Models, batches: Sequence[Batch], hyperparameters: Hyperparameters, *, draft: Phrasebook | None = None
) -> Phrasebook:
    """Trains the phrasebook on the batches, one step each; ``draft`` is one of the same words to go on from.

    Raises:
        ConfigError: no question of the batches is about one of the topics.
    """
    book = _fresh(models, batches, hyperparameters) if draft is None else draft
    book = Phrasebook(book.words, book.vectors.clone().requires_grad_(True), book.places.clone().requires_grad_(True))
    embedding = _embedding(models)
    rate = RATE * float(embedding.square().mean().sqrt())
    optimizer = torch.optim.Adam([book.vectors, book.places], lr=rate)
    console, pace = Console(stderr=True, soft_wrap=True), Pace(len(batches))
    with frozen(models), voice(console, "phrasebook") as tell:
        for step, batch in enumerate(batches):
            optimizer.param_groups[0]["lr"] = rate * min(1.0, 2 * (1 - step / len(batches)))
            with precision(models.receiver.device, hyperparameters):
                logits, labels = memory_logits(models, batch.rows, book.memory(batch))
                loss = F.cross_entropy(logits[labels != PADDING], labels[labels != PADDING])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            right = ((logits.argmax(-1) == labels) | (labels == PADDING)).all(-1).float().mean()
            note = f"{loss.item():.3f} nats a token · {right.item():.3f} exact"
            tell((step + 1) / len(batches), _said(pace, step + 1, note))
    return Phrasebook(book.words, book.vectors.detach(), book.places.detach())


def _fresh(models: Models, batches: Sequence[Batch], hyperparameters: Hyperparameters) -> Phrasebook:
    """Starts a phrasebook: every word of the batches is the mean of its tokens' embeddings, every place is zero."""
    words = sorted({word for batch in batches for words in batch.facts.values() for word in words})
    if not words:
        raise ConfigError("expected questions about Hyperparameters.topics, got none: give Question.facts and topics")
    embedding = _embedding(models)
    vectors = [embedding[list(answer_ids(models.receiver_tokenizer, word, end=False))].mean(0) for word in words]
    places = torch.zeros(len(hyperparameters.topics), embedding.shape[1], device=embedding.device)
    return Phrasebook({word: number for number, word in enumerate(words)}, torch.stack(vectors), places)


def _said(pace: Pace, made: int, note: str) -> str:
    steps = f"phrasebook step {made:,} of {pace.total:,} · {seconds_text(pace.each_s(made))} a step"
    return f"{steps} · {pace.ends(made)} · {note}"


def _embedding(models: Models) -> Tensor:
    """Returns ``"vocabulary hidden"`` as the receiver's own embedding module gives it: some scale their rows."""
    return embed(models.receiver, range(vocabulary_size(models.receiver))).detach().float()
