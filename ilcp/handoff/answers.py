"""Answers and scores of a receiver's language model to prompts that are embedded already.

::

    prompts "tokens hidden" --padded on the left, generate--> texts
    prompts "tokens hidden", answers in ids --one forward pass--> Score of each answer
    the same of many prompts about few memories --packed, each memory read once--> texts, Scores
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from ilcp.errors import ConfigError, EncodeError
from ilcp.handoff.passes import Limits, packed, passes, sequences
from ilcp.models.adapter import unwrapped, vocabulary_size
from ilcp.models.forward import answer_logits, answer_scores, embed, left_padded, pad_left, require_room
from ilcp.models.generate_options import before_stop, end_ids, neutral
from ilcp.models.packing import greedy, read
from ilcp.models.prompt import answer_ids
from ilcp.nn.inference import inference

__all__ = ["Group", "Score", "answered", "answered_packed", "require_prompt", "scored", "scored_packed"]

# What transformers makes of an option that it does not take, or cannot do here: for want of a GPU, or of a package.
REFUSALS = (TypeError, ValueError, AssertionError, AttributeError, ImportError, LookupError, NotImplementedError)


class Group(NamedTuple):
    """Numbers of prompts that begin alike, these, made when it is read, and a cache of what they begin with, if any."""

    numbers: Sequence[int]
    prompts: Iterable[Tensor]
    cache: Any = None


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


@inference(unwrapped)
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
    except REFUSALS as error:
        if not options:  # then it is no option's fault
            raise
        raise ConfigError(
            f"expected options that transformers' generate takes, got {', '.join(sorted(options))}: "
            f"{str(error) or type(error).__name__}"
        ) from error
    texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
    return [before_stop(str(text), options.get("stop_strings")).strip() for text in texts]


@inference(unwrapped)
def answered_packed(
    model: Any, tokenizer: Any, groups: Iterable[Group], max_new_tokens: int, batch: int
) -> dict[int, str]:
    """Returns the model's greedy answers, as ``answered`` without options, by the prompts' numbers.

    Raises:
        EncodeError: as ``answered``.
    """
    limits = Limits(batch, vocabulary_size(model), max_new_tokens)
    nothing = embed(model, ())
    asked = (
        sequence
        for numbers, prompts, cache in groups
        for sequence in sequences(
            numbers, _fitting(model, prompts, [max_new_tokens] * len(numbers)), [nothing] * len(numbers), limits, cache
        )
    )
    found: dict[int, str] = {}
    for part in passes(asked, limits):
        ids = greedy(model, packed(part), end_ids(model), max_new_tokens)
        texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
        found |= zip((number for each in part for number in each.numbers), (str(t).strip() for t in texts), strict=True)
    return found


def _fitting(model: Any, prompts: Iterable[Tensor], answer_tokens: Sequence[int]) -> Iterator[Tensor]:
    for prompt, tokens in zip(prompts, answer_tokens, strict=True):
        require_prompt(model, prompt, tokens)
        yield prompt


@inference(unwrapped)
def scored(model: Any, tokenizer: Any, prompts: Sequence[Tensor], answers: Sequence[str], *, end: bool) -> list[Score]:
    """Returns the score of each prompt's ``"tokens hidden"`` answer, teacher-forced in one pass.

    Raises:
        EncodeError: an answer is empty, or does not fit into the window behind its prompt.
    """
    ids = _answers_ids(tokenizer, answers, end=end)
    logits, labels = answer_logits(model, list(_fitting(model, prompts, list(map(len, ids)))), ids)
    ends = end_ids(model) if end else ()
    return [Score(tuple(token_nats), exact) for token_nats, exact in answer_scores(logits, labels, ends)]


@inference(unwrapped)
def scored_packed(
    model: Any, tokenizer: Any, groups: Iterable[Group], answers: Sequence[str], *, end: bool, batch: int
) -> dict[int, Score]:
    """Returns the scores of all ``answers``, as ``scored``, by the prompts' numbers.

    Raises:
        EncodeError: as ``scored``.
    """
    ids = _answers_ids(tokenizer, answers, end=end)
    limits = Limits(batch, vocabulary_size(model))
    asked = (
        sequence
        for numbers, prompts, cache in groups
        for sequence in sequences(
            numbers,
            _fitting(model, prompts, [len(ids[number]) for number in numbers]),
            [embed(model, ids[number][:-1]) for number in numbers],
            limits,
            cache,
        )
    )
    found: dict[int, Score] = {}
    ends = end_ids(model) if end else ()
    for part in passes(asked, limits):
        together = packed(part)
        logits, _ = read(model, together)
        labels = left_padded([ids[number] for each in part for number in each.numbers]).to(logits.device)
        for at, each in enumerate(part):  # one by one, so that few logits lie in float32 at once
            own = together.owner == at
            scores = answer_scores(logits[at][together.at[own]].float(), labels[own], ends)
            found |= {
                number: Score(tuple(nats), exact) for number, (nats, exact) in zip(each.numbers, scores, strict=True)
            }
    return found


def _answers_ids(tokenizer: Any, answers: Sequence[str], *, end: bool) -> list[tuple[int, ...]]:
    ids = [answer_ids(tokenizer, answer, end=end) for answer in answers]
    if not (all(answers) and all(ids)):
        raise EncodeError("expected an answer to score, got an empty one")
    return ids
