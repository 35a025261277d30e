"""The pooler: learned queries read the sender's states.

::

    states "batch layers tokens hidden"
      --unit RMS per layer, concatenated, linear-->  x "batch tokens width"
      --SameTokenAttention (optional): what stands beside the same word elsewhere-->  x "batch tokens width"
      --Mixer (twice): convolution over +-4 tokens, both ways-->  x "batch tokens width"
      --Block (blocks times): queries attend to x, then to each other, then an MLP-->  slots "batch slots width"

The mixer is there because the sender is causal: in "Mara owns the ticket" the state of "Mara" has not seen "owns".

The entry starts as a whitening of the states: words of one kind share most of their state, and the small rest that
tells them apart would be learned last. Where nothing says what each slot is about, the queries' attention starts with a
bias towards one stretch of the text per slot (``config.locality_bias``, learned); otherwise all would read the same
average.
"""

from collections.abc import Callable

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ilcp.nn.norm import FloatNorm
from ilcp.nn.whitening import start_whitened, whitening
from ilcp_codecs.vae.config import VaeConfig

__all__ = ["HIDDEN", "Attention", "Mixer", "Pooler", "stretches", "unit_states"]

REACH = 4  # tokens to either side that one mixer sees
MIXERS = 2
SHARPNESS = 20.0  # at the start: another occurrence of the word weighs e10 times as much as none of the tokens
TABLE = 1 << 23  # entries of token-by-token tables at once: 32 MB in float32, a few of which live at a time
HIDDEN = -1e4  # bias of a padded token: finite, so that a row without tokens gives no NaN


def stretches(rows: int, columns: int, tables: int = 1) -> list[slice]:
    """Returns the rows of ``tables`` tables ``"rows columns"`` in stretches of as many as memory should hold at once.

    What is computed of a row is the same in any stretch, but for rounding. A text of ordinary length is one.
    """
    at_once = max(1, TABLE // (tables * columns))
    return [slice(start, start + at_once) for start in range(0, rows, at_once)]


class Pooler(nn.Module):
    """Slots ``"batch slots width"`` from states ``"batch layers tokens hidden"`` and a mask ``"batch tokens"``."""

    def __init__(self, config: VaeConfig):
        super().__init__()
        self.enter = nn.Linear(len(config.sender_layers) * config.sender_hidden, config.width)
        self.mixers = nn.ModuleList(Mixer(config.width) for _ in range(MIXERS))
        # ``echo``, as ``nearness`` below, is part of the weights' names in files: it stays.
        self.echo = SameTokenAttention(config) if config.same_token_attention else None
        self.queries = nn.Parameter(torch.randn(config.slots, config.width))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.blocks))
        self.leave = FloatNorm(config.width)

    def calibrate(self, states: Tensor, mask: Tensor) -> None:
        """Starts the entry as a whitening of states ``"batch layers tokens hidden"`` under a mask ``"batch tokens"``.

        Words of one kind share most of their state; without this, what tells them apart is learned last or never.
        """
        unit = unit_states(states)
        start_whitened(self.enter, unit[mask.bool()], states.shape[-1])
        if self.echo is not None:
            self.echo.calibrate(unit[..., : states.shape[-1]], mask)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        unit = unit_states(states)
        x = self.enter(unit)
        if self.echo is not None:
            x = self.echo(unit[..., : states.shape[-1]], x, mask)
        for mixer in self.mixers:
            x = mixer(x, mask)
        far = self._squared_distance(mask)
        slots = self.queries.expand(len(x), -1, -1)
        for block in self.blocks:
            slots = block(slots, x, mask, far)
        normed: Tensor = self.leave(slots)
        return normed

    def _squared_distance(self, mask: Tensor) -> Tensor:
        """Returns ``"batch slots tokens"``: each token's distance from the middle of a slot's stretch, in stretches."""
        slots, tokens = len(self.queries), mask.shape[1]
        stretch = rearrange(mask.sum(1) / slots, "batch -> batch 1 1").clamp(min=1e-6)
        middles = rearrange(torch.arange(slots, device=mask.device).float() + 0.5, "slots -> 1 slots 1") * stretch
        places = rearrange(torch.arange(tokens, device=mask.device).float() + 0.5, "tokens -> 1 1 tokens")
        return ((places - middles) / stretch).square()


def unit_states(states: Tensor) -> Tensor:
    """Returns each layer's state at unit RMS, side by side: ``"batch tokens (layers hidden)"``."""
    return rearrange(
        F.rms_norm(states.float(), states.shape[-1:]), "batch layers tokens hidden -> batch tokens (layers hidden)"
    )


class Mixer(nn.Module):
    """``x + mlp(convolution(norm(x)))``: each token sees ``REACH`` tokens to either side."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = FloatNorm(width)
        self.near = nn.Conv1d(width, width, 2 * REACH + 1, padding=REACH, groups=width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        seen = self.norm(x) * mask.unsqueeze(-1)
        near = self.near(seen.transpose(1, 2)).transpose(1, 2)
        mixed: Tensor = x + self.mlp(near)
        return mixed


class SameTokenAttention(nn.Module):
    """Adds to ``x`` ``"batch tokens width"`` what stands around the same word elsewhere: "Hugo owns it. ... Hugo works
    from Cadiz."

    Each token attends to the tokens like it, or to none, by the cosine of their ``words`` (states of the first layer
    that is read, at unit RMS) after one matrix for both: were queries and keys apart, they would have to learn word by
    word that a word is like itself. It starts as the identity.
    """

    def __init__(self, config: VaeConfig):
        super().__init__()
        width = config.width
        self.like = nn.Linear(config.sender_hidden, config.sender_hidden)
        self.sharpness = nn.Parameter(torch.tensor(SHARPNESS))
        self.none = nn.Parameter(torch.tensor(0.5))  # how alike a token has to be
        self.around = nn.Conv1d(width, width, 2 * REACH + 1, padding=REACH, groups=width)
        self.out = nn.Linear(width, width)
        nn.init.ones_(self.around.weight)
        nn.init.zeros_(self.around.bias)  # type: ignore[arg-type]  # there is one
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    @torch.no_grad()
    def calibrate(self, words: Tensor, mask: Tensor) -> None:
        """Starts from ``"batch tokens hidden"`` so that two words are not alike for what all words share."""
        middle, matrix = whitening(words[mask.bool()])
        self.like.weight.copy_(matrix)
        self.like.bias.copy_(-matrix @ middle)

    def forward(self, words: Tensor, x: Tensor, mask: Tensor) -> Tensor:
        word = F.normalize(self.like(words), dim=-1)
        around = self.around((x * mask.unsqueeze(-1)).transpose(1, 2)).transpose(1, 2)
        places = torch.arange(x.shape[1], device=x.device)
        heard = []
        for some in stretches(x.shape[1], x.shape[1]):
            alike = self.sharpness * (word[:, some] @ word.transpose(1, 2) - self.none)
            itself = places[some].unsqueeze(1) == places
            alike = alike.masked_fill(itself | ~mask.bool().unsqueeze(1), HIDDEN)
            weights = F.pad(alike, (0, 1)).softmax(-1)[..., :-1]  # the last is none of them
            heard.append(weights @ around)
        attended: Tensor = x + self.out(torch.cat(heard, dim=1))
        return attended


class Block(nn.Module):
    """Queries attend to the tokens, then to each other, then pass an MLP; each step is pre-normed and residual."""

    def __init__(self, config: VaeConfig):
        super().__init__()
        width, heads = config.width, config.heads
        self.read = Attention(width, heads)
        self.nearness = nn.Parameter(torch.full((heads,), config.locality_bias))
        self.confer = Attention(width, heads)
        self.norm = FloatNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))

    def forward(self, slots: Tensor, x: Tensor, mask: Tensor, far: Tensor) -> Tensor:
        near = -torch.einsum("h, b s t -> b h s t", F.relu(self.nearness), far)
        bias = near.masked_fill(~mask.bool()[:, None, None, :], HIDDEN)
        slots = slots + self.read(slots, x, bias)
        slots = slots + self.confer(slots, slots, None)
        conferred: Tensor = slots + self.mlp(self.norm(slots))
        return conferred


class Attention(nn.Module):
    """Multi-head attention of ``query`` over ``memory``, both normed first, with an additive ``bias``.

    A bias ``"batch heads query memory"`` may be given as a function of a stretch of queries, where the whole is large.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm_query, self.norm_memory = FloatNorm(width), FloatNorm(width)
        self.q, self.kv, self.out = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)

    def forward(self, query: Tensor, memory: Tensor, bias: Tensor | Callable[[slice], Tensor] | None) -> Tensor:
        q = rearrange(self.q(self.norm_query(query)), "b q (h d) -> b h q d", h=self.heads)
        k, v = rearrange(self.kv(self.norm_memory(memory)), "b k (two h d) -> two b h k d", two=2, h=self.heads)
        heads = []
        for some in stretches(q.shape[2], k.shape[2], self.heads):
            # Written out: fused attention is slow backwards on a CPU.
            weights = q[:, :, some] @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
            if bias is not None:
                weights = weights + (bias(some) if callable(bias) else bias[:, :, some] if bias.shape[2] > 1 else bias)
            heads.append(weights.softmax(-1) @ v)
        out: Tensor = self.out(rearrange(torch.cat(heads, dim=2), "b h q d -> b q (h d)"))
        return out
