"""The codecs that a command line names: folders, hub ids, the embedded one, and presets that are made of a model.

::

    NAME or NAME:BUDGET, a loaded model, texts, questions --for_model--> codec, both ends on that model
    anything else --load_pair--> codec, with the two models that it names
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ilcp.cli.common import EMBEDDED
from ilcp.errors import ConfigError

if TYPE_CHECKING:
    from ilcp.embedded import Pair
    from ilcp.tasks import Task

__all__ = ["file_names", "is_preset", "pairs_of"]

UNFIT = re.compile(r"[^\w.%-]+")  # what a file's name does without
SHOWN = 50  # characters of a codec's name in a file's, which have room in any


def is_preset(name: str) -> bool:
    """Tells whether a name is that of an installed codec which a loaded model is enough for; a folder goes first."""
    from ilcp.codec.registry import codec_class, codec_names

    method = name.partition(":")[0]
    return not os.path.exists(name) and method in codec_names() and hasattr(codec_class(method), "for_model")


def file_names(codecs: Sequence[str]) -> list[str]:
    """Returns what to call the file of each codec, without its ending.

    Raises:
        ConfigError: two have the same.
    """
    names = [(UNFIT.sub("-", Path(codec).name)[:SHOWN]) or "codec" for codec in codecs]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(
            f"expected codecs of different names, got {twice[0]!r} twice: rename a folder, or name it once"
        )
    return names


def pairs_of(
    codecs: Sequence[str],
    *,
    sender: str | None,
    receiver: str | None,
    device: str,
    allow_download: bool,
    task: "Task",
) -> "list[Pair]":
    """Returns both ends of each codec, those of a preset made for the questions and samples of ``task``.

    Presets stand on the receiver of the first codec that is none, or else on ``receiver``, or ``sender``.

    Raises:
        ConfigError: as ``load_pair``; or there is no model for a preset.
    """
    from ilcp.embedded import Pair, load_pair

    models: dict[str, Any] = {"sender": sender, "receiver": receiver}
    options: dict[str, Any] = {"device": device, "allow_download": allow_download, "allow_unmeasured": True}
    load = {name: (None if name == EMBEDDED else name) for name in codecs if not is_preset(name)}
    loaded: dict[str, Pair] = {}
    for name in (*load, *(name for name in codecs if name not in load)):
        if name in load:
            loaded[name] = load_pair(load[name], **models, **options)
        else:
            ends = loaded[next(iter(loaded))].receiver if loaded else None
            loaded[name] = _made(name, ends, receiver or sender, device, task)
    return [loaded[name] for name in codecs]


def _made(
    name: str,
    beside: Any,
    model: str | None,
    device: str,
    task: "Task",
) -> "Pair":
    """Makes a preset: of the receiver ``beside`` it, or of the model named."""
    from ilcp.codec.registry import codec_class
    from ilcp.embedded import Pair
    from ilcp.handoff import Receiver, Sender
    from ilcp.models.loading import load_model

    if beside is not None:
        ends = beside.model, beside.tokenizer
    elif model is not None:
        ends = load_model(model, device=device, download=True)
    else:
        raise ConfigError(f"expected a model for {name}, got none: name it with --receiver, or a codec before it")
    method, _, budget = name.partition(":")
    questions = list(dict.fromkeys(question.text for case in task.cases for question in case.questions))
    codec = codec_class(method).for_model(*ends, budget, texts=task.samples(), questions=questions)
    return Pair(Sender(*ends, codec), Receiver(*ends, codec, allow_unmeasured=True), Path(name))
