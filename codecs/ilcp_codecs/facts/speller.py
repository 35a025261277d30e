"""The speller: a fact's latent becomes memory vectors that the receiver reads as it reads words.

::

    z_hat: whole "facts whole_dims", tokens "facts places token_dims", 0 where unknown; topics, lengths "facts"
      --linear of all + topic + length, GatedMlp (twice)--> what the value is
      --+ place + linear of the token's own bits, GatedMlp (twice), linear--> words "facts places width"
      --likeness to the keys of the words that the codec knows--> logits "facts places words"
      --expected embedding--> memory of a fact: [topic: word ... word, line break] "vectors hidden"

A value's vector is the mean of word embeddings under what the bits leave open; around it stand the words of its topic,
which cost no bits. So a receiver that was never trained can read it, and one that is adapted has little to learn (one
vector for a whole topic says nothing to either). A word's key is its embedding in fewer dimensions. A token's own
bits are a hash of it, whatever the value: that carries values which no training case had.
"""

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ilcp.nn.whitening import start_whitened
from ilcp_codecs.facts.config import FactsConfig
from ilcp_codecs.facts.extractor import GatedMlp

__all__ = ["Speller"]

SHARPNESS = 24.0  # of the likeness, at the start


class Speller(nn.Module):
    """Words, and memory of them, from the latents, topics and lengths of facts."""

    embeddings: Tensor
    told: Tensor

    def __init__(self, config: FactsConfig):
        super().__init__()
        width = config.speller_width
        self.enter = nn.Linear(config.whole_dims + config.value_tokens * config.token_dims, width)
        self.topic = nn.Embedding(len(config.topics), width)
        self.length = nn.Embedding(config.value_tokens + 1, width)
        self.think = nn.ModuleList(GatedMlp(width) for _ in range(2))
        self.place = nn.Parameter(0.3 * torch.randn(config.value_tokens, width))
        self.own = nn.Linear(config.token_dims, width)
        self.spell = nn.ModuleList(GatedMlp(width) for _ in range(2))
        self.leave = nn.Linear(width, config.width)
        self.key = nn.Linear(config.receiver_hidden, config.width)
        self.often = nn.Parameter(torch.zeros(config.words))
        self.sharpness = nn.Parameter(torch.tensor(SHARPNESS))
        self.about = nn.Parameter(torch.zeros(len(config.topics), config.topic_tokens, config.receiver_hidden))
        self.close = nn.Parameter(torch.zeros(1, config.receiver_hidden))  # behind each fact
        self.register_buffer("told", torch.ones(len(config.topics), dtype=torch.long))  # vectors of each topic
        self.register_buffer("embeddings", torch.zeros(config.words, config.receiver_hidden))

    @torch.no_grad()
    def match(self, embeddings: Tensor, about: Sequence[Tensor], close: Tensor) -> None:
        """Takes the receiver's ``embeddings`` ``"words hidden"``, and starts from those of each topic's own words,
        ``about`` ``"tokens hidden"``, and of a line break, ``close`` ``"hidden"``."""
        self.embeddings.copy_(embeddings)
        self.close.copy_(close)
        for topic, vectors in enumerate(about):
            self.about[topic, : len(vectors)] = vectors
            self.told[topic] = len(vectors)
        start_whitened(self.key, embeddings, embeddings.shape[1])

    def keys(self, words: Tensor | None = None) -> Tensor:
        """Returns the keys ``"words width"``, of unit length, of these ``words`` (numbers), or of all."""
        return F.normalize(self.key(self.embeddings if words is None else self.embeddings[words]), dim=-1)

    def forward(
        self, whole: Tensor, tokens: Tensor, topics: Tensor, lengths: Tensor, words: Tensor | None = None
    ) -> Tensor:
        """Returns logits ``"facts places words"``: of these ``words`` (numbers), or of all."""
        bits = torch.cat([whole, rearrange(tokens, "facts places dims -> facts (places dims)")], dim=1)
        h = self.enter(bits) + self.topic(topics) + self.length(lengths)
        for block in self.think:
            h = h + block(h)
        h = h.unsqueeze(1) + self.place + self.own(tokens)
        for block in self.spell:
            h = h + block(h)
        return self.named(self.leave(h), words)

    def named(self, h: Tensor, words: Tensor | None = None) -> Tensor:
        """Returns the logits of words for ``h`` ``"... width"``."""
        often = self.often if words is None else self.often[words]
        logits: Tensor = self.sharpness * F.normalize(h, dim=-1) @ self.keys(words).T + often
        return logits

    def memory(self, logits: Tensor, topics: Tensor, lengths: Tensor) -> list[Tensor]:
        """Returns the memory ``"vectors hidden"`` of each fact, from logits of all words."""
        vectors = logits.softmax(-1) @ self.embeddings
        rows = zip(topics.tolist(), vectors, lengths.tolist(), self.told[topics].tolist(), strict=True)
        return [self._fact(topic, told, row[:length]) for topic, row, length, told in rows]

    def fact(self, topic: int, words: Tensor) -> Tensor:
        """Returns the memory ``"vectors hidden"`` of a fact whose value is ``words`` ``"length hidden"``."""
        return self._fact(topic, int(self.told[topic]), words)

    def _fact(self, topic: int, told: int, words: Tensor) -> Tensor:
        return torch.cat([self.about[topic, :told], words, self.close])
