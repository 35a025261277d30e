"""Self-study, training without data: the sender writes texts, and the receiver that reads them in full is the teacher.

::

    continuations   sender samples a text --cut between words--> context | continuation
    questions       sender (a chat model) writes a text, then questions about it; the receiver answers from the text

Both give cases like those of a data file, written to one as they come: a run that was stopped goes on with it. Neither
needs labels: what the receiver says with the full text is the target (``Hyperparameters.kl_weight``). A text that does
not fit the receiver's window, by the rule of ``ilcp.measure.fitting``, or that cannot be asked about, is left out.
"""

import json
import os
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.progress import track

from ilcp.errors import ConfigError, EncodeError, StorageError
from ilcp.files import write_whole
from ilcp.folders import read_whole
from ilcp.measure.fitting import Fitting
from ilcp.models.forward import embed, has_room, pad_left
from ilcp.models.prompt import text_ids
from ilcp.models.reading import window_tokens
from ilcp.nn.distributed import all_reduce, is_main
from ilcp.tasks.cases import Case, Question, read_jsonl
from ilcp.training.batch import Models

__all__ = ["SelfStudy", "cut", "study"]

SUBJECTS = (
    "an incident in a company's computer systems",
    "a meeting of a project team and what it decided",
    "the state of an investigation, with the evidence found so far",
    "a customer's complaint and what was tried",
    "a plan for a journey, with times, places and prices",
    "a medical visit and its findings",
    "a repair of a machine, step by step",
    "a scientific experiment and its outcome",
)
WRITE = "Write a report about {subject}. Name people, places, times, numbers and causes. Use {words} words at most."
ASK = "{context}\n\nWrite {questions} short questions that this text answers, one per line, and nothing else."
ANSWER_TOKENS = 32
USUAL_CHARACTERS = 4  # of a token: where a tokenizer has fewer, texts are given more tokens
FIRST = 64  # texts, of which one at least has to be of use


@dataclass(frozen=True, slots=True)
class SelfStudy:
    """The texts that the sender is to write. ``kind`` "auto" is questions where both models have a chat template."""

    kind: Literal["auto", "continuation", "question"] = "auto"
    texts: int = 4000
    tokens: int = 120  # of a text, at most; of 4 characters each: a tokenizer of shorter ones gets more of them
    context_characters: int = 150  # of a text that is cut in two: what the sender hands on, at most
    continuation_characters: int = 100  # and what the receiver goes on with, at most
    questions: int = 6  # about one text
    temperature: float = 1.0
    prompts: tuple[str, ...] = ()  # what the texts begin with (continuation), or are to be about (question)
    batch: int = 64

    def __post_init__(self) -> None:
        if self.kind not in ("auto", "continuation", "question"):
            raise ConfigError(
                f"expected the kind of self-study to be auto, continuation or question, got {self.kind!r}"
            )
        for name in ("texts", "tokens", "context_characters", "continuation_characters", "questions", "batch"):
            if getattr(self, name) < 1:
                raise ConfigError(f"expected {name} of self_study to be at least 1, got {getattr(self, name)}")
        if not self.temperature > 0:
            raise ConfigError(f"expected temperature of self_study to be positive, got {self.temperature}")

    def asks(self, models: Models) -> bool:
        """Says whether the sender writes questions.

        Raises:
            ConfigError: questions are settings of a model that has no chat template.
        """
        chats = all(getattr(t, "chat_template", None) for t in (models.sender_tokenizer, models.receiver_tokenizer))
        if self.kind == "question" and not chats:
            raise ConfigError(
                "expected two chat models for self-study with questions, got one without a chat template: "
                "choose kind = 'continuation'"
            )
        return chats if self.kind == "auto" else self.kind == "question"


def cut(text: str, context_characters: int, continuation_characters: int) -> tuple[str, str] | None:
    """Cuts a text between words into its beginning and what follows; returns None where it is too short for both."""
    text = " ".join(text.split())
    at = text.rfind(" ", 0, context_characters)
    end = text.rfind(" ", 0, at + continuation_characters)
    if at < context_characters // 2 or end < at + continuation_characters // 2:
        return None
    return text[:at], text[at + 1 : end]


def stretch(tokenizer: Any) -> int:
    """Returns how many times more tokens than usual the tokenizer needs for a text: 4 where it spells characters."""
    known = " ".join((*SUBJECTS, WRITE))
    return max(1, round(USUAL_CHARACTERS * len(_ids(tokenizer, known)) / len(known)))


def study(models: Models, settings: SelfStudy, file: Path, *, seed: int, progress: bool = False) -> list[Case]:
    """Lets the sender write cases, which are kept in ``file`` as they come.

    Raises:
        ConfigError: the sender cannot write (an encoder), has no token to begin with, or writes nothing of use.
        StorageError: the disk is full, or not to be written to, or what a run left in ``file`` is damaged.
    """
    if not hasattr(models.sender, "generate") or models.sender.get_output_embeddings() is None:
        raise ConfigError(
            f"expected a sender that writes, got {type(models.sender).__name__}: an encoder has no text of its own; "
            "give --data"
        )
    if is_main():
        _write(models, settings, file, seed, progress)
    all_reduce(0.0, models.sender.device)  # the others wait for the file
    cases = list(read_jsonl(file)) if file.stat().st_size else []
    if not cases:
        raise _nothing_of_use(settings.texts, settings)
    return cases


def _nothing_of_use(count: int, settings: SelfStudy) -> ConfigError:
    return ConfigError(
        f"expected texts of the sender's that can be cut into {settings.context_characters} characters of context and "
        f"{settings.continuation_characters} of continuation, or asked about, within the receiver's window, got none "
        f"of {count}: raise tokens, lower context_characters and continuation_characters, or give prompts"
    )


def _write(models: Models, settings: SelfStudy, file: Path, seed: int, progress: bool) -> None:
    """Writes batch by batch, each from its own seed; the number of those in the file stands beside it."""
    done = file.with_suffix(".batches")
    try:
        start = int(read_whole(done)) if os.path.exists(done) else 0
        written = read_whole(file).decode().splitlines() if os.path.exists(file) else []
        lines = [each for each in written if int(json.loads(each)["id"].split(".")[0]) < start]  # no batch twice
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise StorageError(f"expected a run's own cases in {file}, got: {error!r}; remove it, and {done}") from error
    batches = -(-settings.texts // settings.batch)
    write: Callable[..., Iterator[dict[str, Any]]] = _questions if settings.asks(models) else _continuations
    shown = range(start, batches)
    for number in track(shown, "the sender writes", console=Console(stderr=True), disable=not progress, transient=True):
        torch.manual_seed(random.Random(f"self-study {seed}/{number}").getrandbits(63))
        count = min(settings.batch, settings.texts - number * settings.batch)
        for at, record in enumerate(write(models, settings, random.Random(f"{seed}/{number}"), count)):
            if _is_of_use(models, record):
                lines.append(json.dumps({"id": f"{number}.{at}", **record}))
        tried = number * settings.batch + count
        if not lines and tried >= min(FIRST, settings.texts):
            raise _nothing_of_use(tried, settings)  # now, and not when all of them are written
        write_whole(file, "\n".join(lines) + "\n" if lines else "")
        write_whole(done, str(number + 1))


def _is_of_use(models: Models, record: dict[str, Any]) -> bool:
    """Says whether the receiver can read a case in full and be asked about it."""
    asked = record.get("questions") or [{"question": "", "answer": record["continuation"]}]
    questions = tuple(Question(each["question"], each["answer"]) for each in asked)
    case, ends = Case("", record["context"], questions), "questions" in record
    try:
        return Fitting(models.receiver, models.receiver_tokenizer, answers_end=ends).misfit(case) is None
    except EncodeError:  # a template, or a marker of ours, that the text does not go with
        return False


def _continuations(models: Models, settings: SelfStudy, rng: random.Random, count: int) -> Iterator[dict[str, Any]]:
    tokenizer = models.sender_tokenizer
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    begins = [rng.choice(settings.prompts) if settings.prompts else "" for _ in range(count)]
    prompts = [[start] * (start is not None) + _ids(tokenizer, begin) for begin in begins]
    if not all(prompts):
        raise ConfigError("expected a sender with a token to begin with, got neither bos nor eos: give prompts")
    written = _generate(models.sender, tokenizer, prompts, settings.tokens, settings.temperature)
    for begin, text in zip(begins, written, strict=True):
        halves = cut(begin + text, settings.context_characters, settings.continuation_characters)
        if halves is not None and all(halves):
            yield dict(zip(("context", "continuation"), halves, strict=True))


def _questions(models: Models, settings: SelfStudy, rng: random.Random, count: int) -> Iterator[dict[str, Any]]:
    sender, tokenizer = models.sender, models.sender_tokenizer

    def written(asked: Sequence[str], tokens: int) -> list[str]:
        prompts = [list(text_ids(tokenizer, "", text)) for text in asked]
        fits = [prompt if has_room(sender, len(prompt)) else prompts[0][:1] for prompt in prompts]
        said = _generate(sender, tokenizer, fits, tokens, settings.temperature)
        return [text if kept is prompt else "" for text, kept, prompt in zip(said, fits, prompts, strict=True)]

    subjects = [rng.choice(settings.prompts or SUBJECTS) for _ in range(count)]
    texts = written(
        [WRITE.format(subject=subject, words=settings.tokens // 2) for subject in subjects], settings.tokens
    )
    listed = written(
        [ASK.format(context=text, questions=settings.questions) for text in texts], 24 * settings.questions
    )
    for text, lines in zip(texts, listed, strict=True):
        asked = [line.strip(" -*0123456789.)\t") for line in lines.splitlines() if line.strip().endswith("?")]
        asked = list(dict.fromkeys(asked))[: settings.questions]
        if not text.strip() or not asked:
            continue
        prompts = [list(text_ids(models.receiver_tokenizer, text, question)) for question in asked]
        if not has_room(models.receiver, max(map(len, prompts)), ANSWER_TOKENS * stretch(models.receiver_tokenizer)):
            continue
        answers = _generate(models.receiver, models.receiver_tokenizer, prompts, ANSWER_TOKENS, None)
        known = [{"question": q, "answer": a.strip()} for q, a in zip(asked, answers, strict=True) if a.strip()]
        if known:
            yield {"context": text.strip(), "questions": known}


@torch.no_grad()
def _generate(
    model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], tokens: int, temperature: float | None
) -> list[str]:
    """Returns what the model goes on with after each prompt; greedy where there is no temperature."""
    embeds, mask = pad_left([embed(model, prompt) for prompt in prompts])
    how = {"do_sample": False} if temperature is None else {"do_sample": True, "temperature": temperature, "top_k": 0}
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    ids = model.generate(
        inputs_embeds=embeds,
        attention_mask=mask,
        max_new_tokens=max(1, min(tokens * stretch(tokenizer), window_tokens(model) - embeds.shape[1])),
        pad_token_id=pad,
        **how,
    )
    return [str(text) for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False).input_ids) if text else []
