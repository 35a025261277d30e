"""The extractor: which topics the sender's states say something about, and what.

::

    states "batch layers tokens hidden"
      --unit RMS per layer, concatenated, linear, Mixer, Encoder (blocks times)-->       x "batch tokens width"
      --a query per topic attends to x, then to the others-->                            heard "batch topics width"
      --linear--> said "batch topics" (logits)
    of each topic that is said, and each place of its value
      --topic + place, attend to x (blocks times), point at one token-->                 places "facts places width"
      --linear--> more "facts places" (logits): the value has a token there

The pointer copies what it points at from the lowest layer that is read: a name that nobody saw in training reaches the
code that way. Training tells it where the value's words stand in the text, which attention is slow to find by itself.
"""

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ilcp.nn.norm import FloatNorm
from ilcp.nn.whitening import start_whitened
from ilcp_codecs.facts.config import FactsConfig
from ilcp_codecs.vae.pooler import HIDDEN, Attention, Mixer, unit_states

__all__ = ["Extractor", "Heard", "Values"]

POINTER_WIDTH = 64
RARE = -3.0  # logit of a topic before anything is learned: few are said


@dataclass(frozen=True)
class Heard:
    """The text as the extractor holds it: ``x`` and ``raw`` ``"batch tokens width"`` (``raw`` is what the pointer
    copies), the attention's ``bias`` ``"batch 1 1 tokens"``, and of each topic ``topics`` ``"batch topics width"`` and
    ``said`` ``"batch topics"``, a logit."""

    x: Tensor
    raw: Tensor
    bias: Tensor
    topics: Tensor
    said: Tensor


@dataclass(frozen=True)
class Values:
    """What is said of some topics, token by token: ``places`` ``"facts places width"``, where each was found,
    ``pointed`` ``"facts places tokens"``, a distribution, and ``more`` ``"facts places"``, the logit that there is such
    a token."""

    places: Tensor
    pointed: Tensor
    more: Tensor

    @property
    def lengths(self) -> Tensor:
        """The number of tokens of each value, ``"facts"``: up to the first that is not there, one at least."""
        goes_on = (self.more > 0).long().cumprod(1).sum(1)
        return goes_on.clamp(min=1)


class Extractor(nn.Module):
    """Topics and values out of states ``"batch layers tokens hidden"`` under a mask ``"batch tokens"``."""

    def __init__(self, config: FactsConfig):
        super().__init__()
        width = config.width
        self.enter = nn.Linear(len(config.sender_layers) * config.sender_hidden, width)
        self.mixer = Mixer(width)
        self.encoder = nn.ModuleList(Encoder(config) for _ in range(config.blocks))
        self.topics = nn.Parameter(torch.randn(len(config.topics), width))
        self.listen = Listener(config, confer=True)
        self.said = nn.Sequential(FloatNorm(width), nn.Linear(width, 1))
        self.often = nn.Parameter(torch.full((len(config.topics),), RARE))
        self.place = nn.Parameter(0.5 * torch.randn(config.value_tokens, width))
        self.search = nn.ModuleList(Listener(config) for _ in range(config.blocks))
        self.point = Pointer(config)
        self.copy = nn.Linear(config.sender_hidden, width)
        self.more = nn.Linear(width, 1)

    def calibrate(self, states: Tensor, mask: Tensor) -> None:
        """Starts both entries as a whitening of the states, and the copied one so that it tells words apart."""
        unit = unit_states(states)[mask.bool()]
        for entry, rows in ((self.enter, unit), (self.copy, unit[:, : states.shape[-1]])):
            start_whitened(entry, rows, states.shape[-1])

    def forward(self, states: Tensor, mask: Tensor) -> Heard:
        """Reads the states."""
        unit = unit_states(states)
        x = self.mixer(self.enter(unit), mask)
        bias = rearrange((1 - mask) * HIDDEN, "batch tokens -> batch 1 1 tokens")
        for block in self.encoder:
            x = block(x, bias)
        topics = self.listen(self.topics.expand(len(x), -1, -1), x, bias)
        said = self.said(topics).squeeze(-1) + self.often
        return Heard(x, self.copy(unit[..., : states.shape[-1]]), bias, topics, said)

    def values(self, heard: Heard, contexts: Tensor, topics: Tensor) -> Values:
        """Returns what is said about ``topics`` ``"facts"`` in ``contexts`` ``"facts"``, which ascend."""
        counts = torch.bincount(contexts, minlength=len(heard.x))
        firsts = counts.cumsum(0) - counts
        row = torch.arange(len(contexts), device=contexts.device) - firsts[contexts]  # of each fact in its context
        asked = heard.topics.new_zeros(len(heard.x), max(1, int(counts.max())), heard.x.shape[-1])
        asked = asked.index_put((contexts, row), heard.topics[contexts, topics])
        places = rearrange(asked.unsqueeze(2) + self.place, "batch facts places width -> batch (facts places) width")
        for block in self.search:
            places = block(places, heard.x, heard.bias)
        pointed = self.point(places, heard.x, heard.bias)
        places = places + pointed @ heard.raw

        def of_facts(rows: Tensor) -> Tensor:
            cut: Tensor = rearrange(rows, "batch (facts places) any -> batch facts places any", places=len(self.place))
            return cut[contexts, row]

        places = of_facts(places)
        return Values(places, of_facts(pointed), self.more(places).squeeze(-1))


class Encoder(nn.Module):
    """Tokens attend to each other both ways, those near more easily, then pass an MLP; both steps are residual."""

    def __init__(self, config: FactsConfig):
        super().__init__()
        self.attend = Attention(config.width, config.heads)
        self.slopes = nn.Parameter(0.5 ** torch.arange(1, config.heads + 1).float())  # of ALiBi, learned
        self.mlp = GatedMlp(config.width)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        places = torch.arange(x.shape[1], device=x.device, dtype=x.dtype)

        def near(some: slice) -> Tensor:
            far = (places[some, None] - places[None, :]).abs()
            return bias - torch.einsum("h, q k -> h q k", self.slopes, far)

        x = x + self.attend(x, x, near)
        attended: Tensor = x + self.mlp(x)
        return attended


class Listener(nn.Module):
    """Queries attend to the tokens, then to each other where they ``confer``, then pass an MLP; all is residual."""

    def __init__(self, config: FactsConfig, *, confer: bool = False):
        super().__init__()
        self.attend = Attention(config.width, config.heads)
        self.confer = Attention(config.width, config.heads) if confer else None
        self.mlp = GatedMlp(config.width)

    def forward(self, queries: Tensor, x: Tensor, bias: Tensor) -> Tensor:
        queries = queries + self.attend(queries, x, bias)
        if self.confer is not None:
            queries = queries + self.confer(queries, queries, None)
        heard: Tensor = queries + self.mlp(queries)
        return heard


class Pointer(nn.Module):
    """A distribution over the tokens ``"batch queries tokens"`` for each query."""

    def __init__(self, config: FactsConfig):
        super().__init__()
        self.norm_query, self.norm_token = FloatNorm(config.width), FloatNorm(config.width)
        self.query, self.token = nn.Linear(config.width, POINTER_WIDTH), nn.Linear(config.width, POINTER_WIDTH)

    def forward(self, queries: Tensor, x: Tensor, bias: Tensor) -> Tensor:
        query, token = self.query(self.norm_query(queries)), self.token(self.norm_token(x))
        alike: Tensor = query @ token.transpose(1, 2) / POINTER_WIDTH**0.5 + bias.squeeze(1)
        return alike.softmax(-1)


class GatedMlp(nn.Module):
    """``out(silu(gate(x)) * value(x))`` of the normed input."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = FloatNorm(width)
        self.gate, self.value, self.out = (nn.Linear(width, width) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        out: Tensor = self.out(F.silu(self.gate(x)) * self.value(x))
        return out
