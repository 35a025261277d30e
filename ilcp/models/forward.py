"""The receiver's forward passes: over prompts with their answers, which scoring and training run, and up to the first
new token, which pre-fills a cache; and the one check of what fits into a model's window.

::

    prompts "tokens hidden" each, answers in ids --padded on the left--> model --> logits "rows answer vocabulary"

Padding on the left lets all answers end together, so that logits are computed for answers only.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ilcp.errors import ConfigError, EncodeError, IlcpError
from ilcp.models.adapter import unwrapped, vocabulary_size
from ilcp.models.reading import window_tokens
from ilcp.models.support import forward_takes
from ilcp.nn.inference import inference

__all__ = [
    "COMMON",
    "PADDING",
    "Prefill",
    "answer_logits",
    "answer_scores",
    "attention_kinds",
    "block_mask",
    "embed",
    "embedding_norm",
    "has_room",
    "left_padded",
    "pad_left",
    "require_room",
]

PADDING = -1  # label of a position that is no answer's
COMMON = -1  # segment of what all prompts of a sequence begin with
NORM_SAMPLE = 4096  # embeddings suffice for a mean norm; all of a large vocabulary would take gigabytes


def embed(model: Any, ids: Sequence[int]) -> Tensor:
    """Returns embeddings ``"tokens hidden"`` of token ids, as the model's embedding module gives them."""
    vectors: Tensor = model.get_input_embeddings()(torch.tensor(ids, dtype=torch.long, device=model.device))
    return vectors


@torch.no_grad()
def embedding_norm(model: Any) -> float:
    """Returns the mean norm of the embeddings as the model reads them: some families scale them."""
    vocabulary = vocabulary_size(model)
    sample = range(0, vocabulary, -(-vocabulary // NORM_SAMPLE))
    return float(embed(model, sample).float().norm(dim=-1).mean())


def pad_left(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Returns rows ``"tokens hidden"`` of any length as ``"rows tokens hidden"``, all ending together, and their mask
    ``"rows tokens"``."""
    longest = max(map(len, rows))
    embeds = torch.stack([F.pad(row, (0, 0, longest - len(row), 0)) for row in rows])
    lengths = torch.tensor([len(row) for row in rows], device=embeds.device)
    mask = torch.arange(longest, device=embeds.device) >= (longest - lengths).unsqueeze(1)
    return embeds, mask.long()


def left_padded(rows: Sequence[Sequence[int]]) -> Tensor:
    """Returns rows of ids as ``"rows longest"``, padded on the left with ``PADDING``."""
    longest = max(map(len, rows))
    return torch.tensor([[PADDING] * (longest - len(row)) + list(row) for row in rows])


def has_room(model: Any, prompt_tokens: int, answer_tokens: int = 1) -> bool:
    """Checks that a prompt of so many tokens leaves room for an answer in the model's window."""
    return prompt_tokens + answer_tokens <= window_tokens(model)


def require_room(
    model: Any,
    prompt_tokens: int,
    answer_tokens: int = 1,
    *,
    what: str = "a prompt and answer",
    way_out: str = "shorten the text, or hand it off as a message",
    error: type[IlcpError] = EncodeError,
) -> None:
    """Refuses a prompt that leaves no room for its answer in the model's window.

    Args:
        what: is to fit, in words, such as ``"the text and question of case 'a'"``.
        way_out: says what to do.
        error: what is raised.

    Raises:
        IlcpError: ``error``, with the window and both numbers.
    """
    if not has_room(model, prompt_tokens, answer_tokens):
        raise error(
            f"expected {what} of at most {window_tokens(model)} tokens (the receiver's window), "
            f"got {prompt_tokens} + {answer_tokens}: {way_out}"
        )


class Prefill:
    """The pass of ``model`` over a prompt ``"tokens hidden"``, before its first new token; ``options`` go along."""

    def __init__(self, model: Any, **options: Any):
        self.model = model
        last = {"logits_to_keep": 1} if forward_takes(model, "logits_to_keep") else {}
        self._options = {"use_cache": True, **last, **options}
        self._takes_places = forward_takes(model, "position_ids")

    def __call__(self, prompt: Tensor) -> Tensor:
        """Returns the logits ``"vocabulary"`` of the last position of a cold ``prompt``."""
        logits: Tensor = self.outputs(prompt).logits[0, -1]
        return logits

    @inference(lambda prefill: unwrapped(prefill.model))
    def outputs(self, prompt: Tensor, cache: Any = None, cached_tokens: int = 0) -> Any:
        """Returns the model's own outputs for ``prompt``, which follows what is in ``cache``; the cache grows by it."""
        total = cached_tokens + len(prompt)
        places = torch.arange(cached_tokens, total, device=prompt.device)
        return self.model(
            inputs_embeds=prompt[None],
            attention_mask=torch.ones(1, total, dtype=torch.long, device=prompt.device),
            past_key_values=cache,
            **({"position_ids": places[None]} if self._takes_places else {}),
            **self._options,
        )


def block_mask(
    model: Any, segment: Tensor, position: Tensor, dtype: torch.dtype, queries: int | None = None
) -> Tensor | dict[str, Tensor]:
    """Returns the additive mask ``"rows 1 query key"`` of sequences that hold several prompts with one beginning.

    Each token sees its own segment and what is ``COMMON`` to all, backwards; both arguments are ``"rows tokens"``,
    positions being those of each prompt alone. Only the last ``queries`` tokens ask, where that is given. Layers with a
    sliding window see the last positions only, and a model that has both kinds of layers gets both masks, by kind.

    Raises:
        ConfigError: the model has layers of another kind.
    """
    kinds = attention_kinds(model)
    if not kinds <= {"full_attention", "sliding_attention"}:
        raise ConfigError(
            f"expected a receiver of full and sliding attention to train through, got layers of {sorted(kinds)}: "
            "take a family of SUPPORT.md"
        )
    earlier = 0 if queries is None else segment.shape[1] - queries
    same = segment[:, earlier:].unsqueeze(2) == segment.unsqueeze(1)
    full = (same | (segment == COMMON).unsqueeze(1)).tril(earlier)
    seen = {"full_attention": full}
    if "sliding_attention" in kinds:
        window = int(getattr(model.config.get_text_config(), "sliding_window", None) or 0)
        seen["sliding_attention"] = full & (position[:, earlier:].unsqueeze(2) - position.unsqueeze(1) < window)
    lowest = torch.finfo(dtype).min
    masks = {
        kind: torch.zeros(seen[kind].shape, dtype=dtype, device=segment.device)
        .masked_fill(~seen[kind], lowest)
        .unsqueeze(1)
        for kind in sorted(kinds)
    }
    return masks if len(masks) > 1 else next(iter(masks.values()))


def attention_kinds(model: Any) -> set[str]:
    """Returns the kinds of the model's layers, by its configuration."""
    config = model.config.get_text_config()
    default = ("full_attention",) if getattr(config, "sliding_window", None) is None else ("sliding_attention",)
    return set(getattr(config, "layer_types", None) or default)


def answer_logits(model: Any, prompts: Sequence[Tensor], answers: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Returns float32 logits ``"rows answer vocabulary"`` that predict each answer after its embedded prompt
    ``"tokens hidden"``, and the labels ``"rows answer"``; shorter answers are padded on the left with ``PADDING``."""
    pieces = [torch.cat([prompt, embed(model, ids)]) for prompt, ids in zip(prompts, answers, strict=True)]
    keep = max(map(len, answers))
    embeds, mask = pad_left(pieces)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    wanted = {"logits_to_keep": keep + 1, "position_ids": positions, "use_cache": False}
    taken = {name: value for name, value in wanted.items() if forward_takes(model, name)}
    outputs = model(inputs_embeds=embeds, attention_mask=mask, **taken)
    return outputs.logits[:, -(keep + 1) : -1].float(), left_padded(answers).to(embeds.device)


def answer_scores(logits: Tensor, labels: Tensor, ends: Sequence[int] = ()) -> list[tuple[list[float], bool]]:
    """Returns for each row the log-likelihood of each token of its answer, and whether greedy decoding gives it.

    Args:
        logits: ``"rows answer vocabulary"``.
        labels: ``"rows answer"``, padded as ``answer_logits`` pads them.
        ends: where one of them ends an answer, any other of them ends it as well.
    """
    known = labels != PADDING
    losses = F.cross_entropy(logits.transpose(1, 2), labels.clamp(min=0), reduction="none")
    said, any_end = logits.argmax(-1), torch.tensor(ends, dtype=labels.dtype, device=labels.device)
    right = (said == labels) | ~known
    right[:, -1] |= torch.isin(said[:, -1], any_end) & torch.isin(labels[:, -1], any_end)
    exact = right.all(1)
    log_likelihoods = [(-row[own]).tolist() for row, own in zip(losses, known, strict=True)]
    return list(zip(log_likelihoods, exact.tolist(), strict=True))
