"""A random sender and a receiver that was taught one thing: to copy the name that stands in its prompt.

Small enough to train a codec between them within seconds; the receiver answers from the text and from nothing else.
"""

import json
import random
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from ilcp.models.adapter import new_adapter
from ilcp.tasks import Case, Question
from ilcp.training import Hyperparameters, Models
from ilcp.training.batch import Batcher
from ilcp.training.packed import text_logits
from ilcp_codecs.vae import VaeConfig, VaeNetwork
from tests.helpers import make_model, make_tokenizer

WORDS = ("Mara", "Jonas", "Ilse", "Tomas")


def cases(start: int, n: int) -> list[Case]:
    """Makes one-fact documents, each with a context of its own: who it is."""
    chosen = [(number, random.Random(number).choice(WORDS)) for number in range(start, start + n)]
    return [Case(str(n), f"Note {n}: it was {word}.", (Question("Who?", word),)) for n, word in chosen]


def write_cases(file: Path, n: int, start: int = 0) -> Path:
    """Writes the same as a JSONL file."""
    lines = (
        json.dumps({"context": case.context, "question": "Who?", "answer": case.questions[0].answer})
        for case in cases(start, n)
    )
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def make_models() -> Models:
    """Makes the pair, the same at every call: the receiver is taught once per session."""
    return deepcopy(_taught())


def make_blurred(noise: float = 0.08) -> Models:
    """Makes the same pair with noise on the receiver, which then answers nothing right, and an adapter around it."""
    models = make_models()
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in models.receiver.model.layers.parameters():
            parameter.add_(noise * torch.randn_like(parameter))
    torch.manual_seed(0)
    adapter = new_adapter(models.receiver, 4)
    return replace(models, receiver=adapter.get_base_model(), adapter=adapter)


@cache
def _taught() -> Models:
    sender_tokenizer, receiver_tokenizer = make_tokenizer(300), make_tokenizer(320)
    sender, receiver = make_model(len(sender_tokenizer), 32, seed=1), make_model(len(receiver_tokenizer), 48, seed=2)
    models = Models(sender, sender_tokenizer, receiver, receiver_tokenizer)
    _teach(models)
    return models


def make_network(layers: tuple[int, ...] = (0, 1, 2)) -> VaeNetwork:
    """Makes a small codec between them, the same at every call."""
    torch.manual_seed(0)
    config = VaeConfig(layers, 32, 48, slots=4, dims=8, prefixes=(2, 4), width=32, heads=4, projector_width=64)
    return VaeNetwork(config)


def make_hyperparameters(**changes: Any) -> Hyperparameters:
    """Makes those of a tiny run."""
    tiny = dict(steps=10, questions=1, contexts=8, validation_contexts=8, bfloat16=False)
    return Hyperparameters(**(tiny | changes))


def save_models(models: Models, folder: Path) -> tuple[Path, Path]:
    """Saves both models, and returns the folders of sender and receiver."""
    sides = (
        ("sender", models.sender, models.sender_tokenizer),
        ("receiver", models.receiver, models.receiver_tokenizer),
    )
    for name, model, tokenizer in sides:
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder / "sender", folder / "receiver"


def _teach(models: Models, steps: int = 120) -> None:
    receiver = models.receiver.train()
    optimizer = torch.optim.AdamW(receiver.parameters(), lr=3e-3)
    batcher = Batcher(models, Hyperparameters(steps=1, questions=1))
    for step in range(steps):
        batch = batcher.batch(cases(32 * step, 32), random.Random(step))
        logits, labels = text_logits(models, batch.rows, _texts(batch.texts, batch.rows))
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    receiver.eval().requires_grad_(False)


def _texts(texts: Sequence[str], rows: Sequence) -> list[str]:
    return [texts[row.context] for row in rows]
