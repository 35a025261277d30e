"""Answers and scores of a receiver's language model to prompts that are embedded already.

::

    prompts "tokens hidden" --padded on the left, generate--> texts
    prompts "tokens hidden", answers in ids --one forward pass--> Score of each answer
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ilcp.errors import ConfigError, EncodeError
from ilcp.models.forward import answer_logits, answer_scores, pad_left, require_room
from ilcp.models.generate_options import before_stop, end_ids, neutral
from ilcp.models.prompt import answer_ids

__all__ = ["Score", "answered", "require_prompt", "scored"]


@dataclass(frozen=True, slots=True)
class Score:
    """The log-likelihood of each token of one answer in nats, and whether greedy decoding gives that answer."""

    token_nats: tuple[float, ...]
    exact: bool

    @property
    def log_likelihood_nats(self) -> float:
        """The log-likelihood of the whole answer."""
        return sum(self.token_nats)


def require_prompt(model: Any, prompt: Tensor, answer_tokens: int) -> None:
    """Refuses a prompt ``"tokens hidden"`` that says nothing, or leaves no room for an answer.

    Raises:
        EncodeError: with what is missing.
    """
    if len(prompt) == 0:
        raise EncodeError("expected a message, a context or a question, got none of them")
    require_room(model, len(prompt), answer_tokens)


@torch.no_grad()
def answered(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Tensor],
    max_new_tokens: int,
    options: Mapping[str, Any],
    cache: Any = None,
) -> list[str]:
    """Returns the model's answer to each prompt ``"tokens hidden"``.

    Args:
        options: for transformers' ``generate``, as ``require_options`` lets pass; without any the answer is greedy.
        cache: keys and values of the first tokens of the one prompt, which this call writes into.

    Raises:
        EncodeError: a prompt is empty, or leaves no room for an answer.
        ConfigError: transformers refuses an option.
    """
    for prompt in prompts:
        require_prompt(model, prompt, max_new_tokens)
    embeds, mask = pad_left(prompts)
    more = {**neutral(model), **options, **({} if cache is None else {"past_key_values": cache})}
    end = tokenizer.eos_token_id
    try:
        ids = model.generate(
            inputs_embeds=embeds,
            attention_mask=mask,
            max_new_tokens=max_new_tokens,
            pad_token_id=end if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
            tokenizer=tokenizer,  # for stop strings
            **more,
        )
    except (TypeError, ValueError) as error:
        if not options:  # then it is no option's fault
            raise
        raise ConfigError(
            f"expected options that transformers' generate takes, got {', '.join(sorted(options))}: {error}"
        ) from error
    texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
    return [before_stop(str(text), options.get("stop_strings")).strip() for text in texts]


@torch.no_grad()
def scored(model: Any, tokenizer: Any, prompts: Sequence[Tensor], answers: Sequence[str], *, end: bool) -> list[Score]:
    """Returns the score of each prompt's ``"tokens hidden"`` answer, teacher-forced in one pass.

    Raises:
        EncodeError: an answer is empty, or does not fit into the window behind its prompt.
    """
    ids = [answer_ids(tokenizer, answer, end=end) for answer in answers]
    for prompt, answer, row in zip(prompts, answers, ids, strict=True):
        if not answer or not row:
            raise EncodeError("expected an answer to score, got an empty one")
        require_prompt(model, prompt, len(row))
    logits, labels = answer_logits(model, prompts, ids)
    ends = end_ids(model) if end else ()
    return [Score(tuple(token_nats), exact) for token_nats, exact in answer_scores(logits, labels, ends)]
