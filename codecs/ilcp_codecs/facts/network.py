"""The facts codec as training sees it: extractor, latent, speller, and losses that need no receiver."""

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ilcp.nn.distributed import SyncedNorm, rank, shard_rng, world
from ilcp.nn.half import round_to_half
from ilcp_codecs.facts.agenda import Agenda
from ilcp_codecs.facts.config import FactsConfig
from ilcp_codecs.facts.extractor import Extractor, GatedMlp, Values
from ilcp_codecs.facts.speller import Speller
from ilcp_codecs.vae.bottleneck import straight_through

if TYPE_CHECKING:
    from ilcp.training.facts import Told

__all__ = ["FactsNetwork", "Latent"]

FULL_SHARE = 0.3  # of the training samples keep all bits; of the others any number from LEAST_BITS is as likely
LEAST_BITS = 4
NOISE = 0.2  # standard deviation added to a unit-variance latent in training: codes keep away from the threshold
DRAWN = 256  # values that a training step codes and spells beside those of its contexts
STRANGE_SHARE = 0.15  # of them are words at random: names that nobody saw are such
STRAY_WORDS = 1500  # words drawn at random that a training step has to tell the right ones from
BLANK_FACTS = 8  # that a payload which no sender made says at most, in training
WEIGHTS = {"said": 0.3, "pointing": 0.5, "length": 0.5, "hint": 1.0, "spelling": 1.0, "code": 1.0}


class Latent(NamedTuple):
    """The latent of some facts: ``whole`` ``"facts whole_dims"`` and ``tokens`` ``"facts places token_dims"``; places
    behind the value's end are zero."""

    whole: Tensor
    tokens: Tensor


class FactsNetwork(nn.Module):
    """From states to memory.

    ::

        states "batch layers tokens hidden", mask "batch tokens"
          --Extractor--> topics that are said, and of each value its length and words "facts places width"
          --linear, BatchNorm--> Latent --sign, straight-through, cut to its first bits--> z_hat
          --Speller--> memory: for each context "vectors hidden"
    """

    vocabulary: Tensor
    tree: Tensor
    spans: Tensor
    values: Tensor

    def __init__(self, config: FactsConfig):
        super().__init__()
        self.config = config
        topics, most = len(config.topics), config.value_tokens
        self.extractor = Extractor(config)
        self.hint = GatedMlp(config.width)
        self.whole = nn.Sequential(
            nn.Linear(most * config.width, config.width),
            GatedMlp(config.width),
            nn.Linear(config.width, config.whole_dims),
        )
        self.token = nn.Linear(config.width, config.token_dims)
        self.norm_whole = SyncedNorm(config.whole_dims, affine=False)
        self.norm_token = SyncedNorm(config.token_dims, affine=False)
        self.speller = Speller(config)
        self.register_buffer("vocabulary", torch.arange(config.words))  # ids of the receiver's tokens, ascending
        tree = [torch.arange(topics), torch.full((topics,), -1), *torch.ones(2, topics)]  # any order, nothing is likely
        self.register_buffer("tree", torch.stack([row.int() for row in tree]))
        # Topic and words of each fact that the code is learned by: of training only, so it is no part of the codec.
        none = torch.zeros(1, 1 + most, dtype=torch.long, device="cpu")  # where the weights are not there yet
        self.register_buffer("values", none, persistent=False)
        self.register_buffer("spans", torch.ones(topics, most, dtype=torch.int32))

    @property
    def layers(self) -> tuple[int, ...]:
        """The sender's layers that are read."""
        return self.config.sender_layers

    @property
    def topics(self) -> tuple[str, ...]:
        """The topics that a fact may be about, in the order of their numbers."""
        return self.config.topics

    @property
    def places(self) -> int:
        """How many tokens of a value it takes in."""
        return self.config.value_tokens

    def agenda(self) -> Agenda:
        """Returns the chances of what is said, out of the weights."""
        order, parent, *chances = self.tree.cpu().numpy()
        config = self.config
        chance = np.stack(chances, axis=-1)
        return Agenda(order, parent, chance, self.spans.cpu().numpy(), config.whole_dims, config.token_dims)

    @torch.no_grad()
    def found(
        self,
        vocabulary: Tensor,
        embeddings: Tensor,
        about: Sequence[Tensor],
        close: Tensor,
        agenda: Agenda,
        topics: Tensor,
        ids: Tensor,
    ) -> None:
        """Takes what was found in the cases.

        Args:
            vocabulary: token ids ``"words"`` of the receiver, ascending.
            embeddings: theirs, ``"words hidden"``.
            about: of each topic its own words to start from, ``"tokens hidden"``.
            close: of a line break, ``"hidden"``.
            agenda: the chances of what is said.
            topics: of all facts, ``"facts"``.
            ids: the token ids of their values, ``"facts places"``, -1 behind the end.
        """
        self.vocabulary.copy_(vocabulary)
        self.speller.match(embeddings, about, close)
        rows = np.stack([agenda.order, agenda.parent, *agenda.chances.T])
        self.tree.copy_(torch.from_numpy(rows))
        self.spans.copy_(torch.from_numpy(agenda.lengths))
        numbers = self._numbers(ids)
        whole = ((numbers >= 0) == (ids >= 0)).all(1) & (numbers[:, 0] >= 0)
        self.values = torch.cat([topics.unsqueeze(1), numbers], dim=1)[whole].to(self.vocabulary.device)

    def calibrate(self, states: Tensor, mask: Tensor, memory: Tensor) -> None:
        """Fits the entry to states ``"batch layers tokens hidden"``; the exit is made of the receiver's embeddings."""
        self.extractor.calibrate(states, mask)

    def forward(self, states: Tensor, mask: Tensor) -> tuple[list[Tensor], Tensor]:
        """Returns memory, ``"vectors hidden"`` for each context, and ``rate_bits`` ``"batch"``: the latent's bits.

        What was said, and the latent, take no gradient here: ``fact_losses`` teaches them.
        """
        with torch.no_grad():
            heard = self.extractor(states, mask)
            contexts, topics = (heard.said > 0).nonzero(as_tuple=True)
            values = self.extractor.values(heard, contexts, topics)
            lengths = values.lengths
            z_hat = self.rounded(self.latent(self.words(values), lengths), lengths)
        bits = (self.config.whole_dims + lengths * self.config.token_dims).float()
        rate_bits = torch.zeros(len(states), device=states.device).index_add(0, contexts, bits)
        facts = self.speller.memory(self.speller(*z_hat, topics, lengths), topics, lengths)
        counts = torch.bincount(contexts, minlength=len(states)).tolist()
        return self._gathered(facts, counts), rate_bits

    def words(self, values: Values) -> Tensor:
        """Returns the words of values, near their keys: ``"facts places width"``."""
        return F.normalize(values.places + self.hint(values.places), dim=-1)

    def latent(self, words: Tensor, lengths: Tensor) -> Latent:
        """Returns the latent of values of so many words ``"facts places width"``, of unit variance.

        In training it is a sample.
        """
        here = torch.arange(words.shape[1], device=words.device) < lengths.unsqueeze(1)
        words = words * words.shape[-1] ** 0.5
        whole = self._sampled(self.norm_whole(self.whole((words * here.unsqueeze(-1)).flatten(1)).float()))
        own = self._sampled(self.norm_token(self.token(words[here]).float()))
        tokens = own.new_zeros(*here.shape, own.shape[-1]).index_put((here,), own)
        return Latent(whole, tokens)

    def rounded(self, z: Latent, lengths: Tensor) -> Latent:
        """Returns -1 and 1, with the gradient of ``z`` where it is not far off; in training cut to some first bits."""
        whole, tokens = (straight_through(part, 1) for part in z)
        place = torch.arange(tokens.shape[1], device=tokens.device)
        here = place < lengths.unsqueeze(1)
        if not self.training:
            return Latent(whole, tokens * here.unsqueeze(-1))
        kept = self._kept(lengths).unsqueeze(1)
        whole = whole * (torch.arange(whole.shape[1], device=whole.device) < kept)
        turn = torch.arange(tokens.shape[2], device=tokens.device) * lengths.unsqueeze(1)  # bit by bit, token by token
        taken = turn.unsqueeze(1) + place.unsqueeze(-1) < (kept - whole.shape[1]).unsqueeze(-1)
        return Latent(whole, tokens * (taken & here.unsqueeze(-1)))

    def fact_losses(self, states: Tensor, mask: Tensor, told: "Told") -> dict[str, Tensor]:
        """Returns the losses, in nats, that teach the codec what was said, without a receiver; ``loss`` is their sum.

        ``said``: a context's topics; ``pointing``: where a value stands; ``length``: how many tokens it has; ``hint``
        and ``spelling``: its words, before the latent and behind it; ``code``: the words of other values behind it.
        """
        heard = self.extractor(states, mask)
        wanted = torch.zeros_like(heard.said)
        wanted[told.contexts, told.topics] = 1
        said = F.binary_cross_entropy_with_logits(heard.said, wanted, reduction="sum") / len(states)
        values = self.extractor.values(heard, told.contexts, told.topics)
        there = told.ids >= 0
        found = told.where.any(-1)
        pointed = (values.pointed.float() * told.where).sum(-1)[found].clamp(min=1e-6)
        numbers = self._numbers(told.ids)
        known = numbers >= 0
        topics, others = self._drawn()
        choice = torch.cat([numbers[known], others[others >= 0], self._strays()]).unique()
        hinted = self.words(values)
        lengths = there.sum(1).clamp(min=1)
        losses = {
            "said": said,
            "pointing": -pointed.log().sum() / max(1, len(pointed)),
            "length": _mean_of(
                F.binary_cross_entropy_with_logits(values.more, there.to(values.more), reduction="none")
            ),
            "hint": self._named(self.speller.named(hinted[known], choice), numbers[known], choice),
            "spelling": self._spelled(hinted, told.topics, lengths, numbers, choice),
            "code": self._spelled(self._exact(others), topics, (others >= 0).sum(1), others, choice),
        }
        return losses | {"loss": torch.stack([WEIGHTS[name] * loss for name, loss in losses.items()]).sum()}

    @torch.no_grad()
    def recalled(self, states: Tensor, mask: Tensor, told: "Told") -> Tensor:
        """Returns ``"facts"``: whether the whole latent spells the value under its topic, word for word."""
        heard = self.extractor(states, mask)
        values = self.extractor.values(heard, told.contexts, told.topics)
        lengths = values.lengths
        z_hat = self.rounded(self.latent(self.words(values), lengths), lengths)
        spelled = self.vocabulary[self.speller(*z_hat, told.topics, lengths).argmax(-1)]
        there = told.ids >= 0
        alike = ((spelled == told.ids) | ~there).all(1) & (lengths == there.sum(1))
        right: Tensor = alike & (heard.said[told.contexts, told.topics] > 0)
        return right

    def _spelled(self, words: Tensor, topics: Tensor, lengths: Tensor, numbers: Tensor, choice: Tensor) -> Tensor:
        """Returns the cross-entropy of the words ``numbers`` ``"facts places"`` behind the latent of ``words``."""
        z_hat = self.rounded(self.latent(words, lengths), lengths)
        known = numbers >= 0
        return self._named(self.speller(*z_hat, topics, lengths, choice)[known], numbers[known], choice)

    def _named(self, logits: Tensor, right: Tensor, choice: Tensor) -> Tensor:
        summed = F.cross_entropy(logits.float(), torch.searchsorted(choice, right), reduction="sum")
        return summed / max(1, len(right))

    def _exact(self, numbers: Tensor) -> Tensor:
        """Returns the keys of words ``"facts places"``; zero where there is none."""
        return self.speller.keys(numbers.clamp(min=0)) * (numbers >= 0).unsqueeze(-1)

    def _drawn(self) -> tuple[Tensor, Tensor]:
        """Draws values to learn the code by, whatever context they were said in: topics, and numbers of words."""
        drawn = torch.randint(len(self.values), (DRAWN,), device=self.values.device)
        topics, numbers = self.values[drawn, 0], self.values[drawn, 1:]
        strange = torch.rand(DRAWN, device=topics.device) < STRANGE_SHARE  # any words under any topic: a code for names
        other = torch.randint(self.config.words, numbers.shape, device=topics.device)
        mixed = torch.where(strange.unsqueeze(1) & (numbers >= 0), other, numbers)
        return topics, mixed

    def _strays(self) -> Tensor:
        return torch.randint(self.config.words, (STRAY_WORDS,), device=self.vocabulary.device)

    def blank(self, count: int) -> list[Tensor]:
        """Returns the memories of this process's share of ``count`` payloads that no sender made: a few topics each,
        with random bits."""
        config, device = self.config, self.speller.close.device
        counts = torch.randint(BLANK_FACTS + 1, (count,)).tolist()
        topics = torch.randint(len(config.topics), (sum(counts),), device=device)
        lengths = torch.randint(1, config.value_tokens + 1, (len(topics),), device=device)
        whole = torch.randn(len(topics), config.whole_dims, device=device)
        tokens = torch.randn(len(topics), config.value_tokens, config.token_dims, device=device)
        z_hat = self.rounded(Latent(whole, tokens), lengths)
        facts = self.speller.memory(self.speller(*z_hat, topics, lengths), topics, lengths)
        return self._gathered(facts, counts)[rank() :: world()]

    def round_to_half(self) -> None:
        """Rounds every weight to the nearest that 16 bits hold, so that the file is half as large."""
        round_to_half(self.state_dict().values())

    def _numbers(self, ids: Tensor) -> Tensor:
        """Returns the numbers of the codec's words for the receiver's token ids; -1 for one that it does not know."""
        near = torch.searchsorted(self.vocabulary, ids.clamp(min=0)).clamp(max=self.config.words - 1)
        return torch.where(self.vocabulary[near] == ids, near, -1)

    def _sampled(self, z: Tensor) -> Tensor:
        if not self.training:
            return z
        return z + NOISE * shard_rng(len(z), lambda rows: torch.randn(rows, z.shape[1], device=z.device))

    def _kept(self, lengths: Tensor) -> Tensor:
        """Returns ``"facts"``: how many of the first bits a training sample keeps."""
        bits = self.config.whole_dims + lengths * self.config.token_dims
        share = torch.rand(len(bits), 2).to(lengths.device)
        some = LEAST_BITS + (share[:, 0] * (bits - LEAST_BITS + 1)).long()
        return torch.where(share[:, 1] < FULL_SHARE, bits, some)

    def _gathered(self, facts: Sequence[Tensor], counts: Sequence[int]) -> list[Tensor]:
        """Joins the facts' memories ``"vectors hidden"`` into one for each context, which has so many of them."""
        nothing = self.speller.close[:0]
        ends = np.cumsum([0, *counts]).tolist()
        return [torch.cat([nothing, *facts[start:end]]) for start, end in pairwise(ends)]


def _mean_of(losses: Tensor) -> Tensor:
    """Returns the mean, 0 of nothing."""
    return losses.sum() / max(1, losses.numel())
