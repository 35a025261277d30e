"""The codecs that a command line names: folders, hub ids, the embedded one, and presets that are made of a model.

::

    NAME or NAME:BUDGET, a loaded model, texts, questions --for_model--> codec, both ends on that model
    anything else --load_pair--> codec, with the two models that it names
"""

import os
import re
from collections import Counter
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
    offered = method in codec_names() and all(hasattr(codec_class(method), n) for n in ("for_model", "require_budget"))
    return offered and not os.path.exists(name)


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

    Presets, and codecs of the same model's cache, stand on the receiver of the first codec that is none of them, or
    else on ``receiver``, or ``sender``.

    Raises:
        ConfigError: as ``load_pair``; or there is no model for a preset, or their receivers differ.
    """
    from ilcp.codec.folder import folder_of, load_to_measure
    from ilcp.codec.registry import codec_class
    from ilcp.embedded import Pair, load_pair
    from ilcp.handoff import Receiver, Sender

    presets = [name for name in codecs if is_preset(name)]
    for name in presets:
        method, _, budget = name.partition(":")
        codec_class(method).require_budget(budget)
    options: dict[str, Any] = {"sender": sender, "receiver": receiver, "device": device, "allow_unmeasured": True}
    methods = {name: None if name == EMBEDDED else load_to_measure(name) for name in codecs if name not in presets}
    loaded: dict[str, Pair] = {}
    for name, codec in sorted(methods.items(), key=lambda one: one[1] is not None and one[1].spec.reads == "cache"):
        ends = _receiver_of(loaded)
        if ends and codec and codec.spec.reads == "cache" and codec.trained.sender == ends.codec.trained.receiver:
            own = ends.model, ends.tokenizer, codec  # a cache of the very receiver that is loaded, adapter and all
            loaded[name] = Pair(Sender(*own), Receiver(*own, allow_unmeasured=True), folder_of(codec))
        else:
            loaded[name] = load_pair(None if codec is None else name, allow_download=allow_download, **options)
    for name in presets:
        loaded[name] = _made(name, _receiver_of(loaded), receiver or sender, device, task)
    for name, pair in loaded.items():
        if pair.receiver.codec.trained.receiver != _receiver_of(loaded).codec.trained.receiver:
            raise ConfigError(
                f"expected codecs of one receiver, got {next(iter(loaded))} and {name}, whose receivers differ: "
                "recovery is a share of what each knows from the full text; measure them apart"
            )
    return [loaded[name] for name in codecs]


def _receiver_of(loaded: "dict[str, Pair]") -> Any:
    """Returns the first receiver there is, None where there is none."""
    return next((pair.receiver for pair in loaded.values()), None)


def _made(name: str, beside: Any, model: str | None, device: str, task: "Task") -> "Pair":
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
    questions = Counter(question.text for case in task.cases for question in case.questions)
    common = [text for text, _ in questions.most_common()]
    codec = codec_class(method).for_model(*ends, budget, texts=task.samples(), questions=common)
    return Pair(Sender(*ends, codec), Receiver(*ends, codec, allow_unmeasured=True), Path(name))
