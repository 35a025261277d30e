"""The end of a training: the codec is saved whole, then measured, and what came out is attached to it.

::

    codec --save_codec--> folder, unmeasured --measure_codec--> report --attach--> evidence and card in the folder

Measuring takes long, and may end in any way; what took hours to train is on the disk by then.
"""

import json
import os
import shutil
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from safetensors import SafetensorError

from ilcp.codec.folder import ADAPTER, CARD, attach_evidence, save
from ilcp.codec.protocols import Codec
from ilcp.codec.seen import write_seen
from ilcp.errors import ConfigError, StorageError
from ilcp.files import settle, sync, write_whole
from ilcp.handoff import Receiver, Sender
from ilcp.measure import Report, equal_texts, load_report, run
from ilcp.models.adapter import save_adapter
from ilcp.nn.distributed import is_main, world
from ilcp.training.batch import Models
from ilcp.training.card import write_card
from ilcp.training.config import TrainingConfig
from ilcp.training.data import Split
from ilcp.training.hyperparameters import Hyperparameters
from ilcp.training.log import CURVE, LOG
from ilcp.training.pace import say
from ilcp.training.result import Result
from ilcp.training.tuning import tuned

__all__ = ["REPORT", "STATES", "Job", "finish", "shows", "tell"]

STATES = "states"  # in the run's folder
REPORT, DRAFT, BEFORE = "report.json", "codec", "codec.before"  # as well
TEXTS = ("head", "tail", "zstd")  # an LM codes text in minutes per case where the LM is large: ilcp measure adds it


@dataclass(frozen=True, slots=True)
class Job:
    """One training with what it works on."""

    config: TrainingConfig
    hyperparameters: Hyperparameters
    models: Models
    cases: Split
    made_by: dict[str, Any]  # commit, versions, machine: asked before hours are spent


def finish(job: Job, codec: Codec, result: Result) -> None:
    """Saves the codec, measures it, and attaches what was measured.

    Raises:
        StorageError: the folder cannot be written; the text says where the codec is.
        Exception: whatever ended the measuring; the codec is saved by then, and this is said.
    """
    out = job.config.out
    made = _record(job, codec, result)
    _save(job, codec, made)
    try:
        report = _measured(job, codec)
        write_whole(out / CARD, write_card(codec, made, report))
        attach_evidence(out, report.evidence())
    except BaseException:
        tell(
            f"the trained codec is whole in {out}, but not measured: --resume goes on with that, and so does "
            f"'ilcp measure {out} --attach'"
        )
        raise
    for name in (STATES, BEFORE):  # the largest part of it, made again within minutes; what is replaced for good
        shutil.rmtree(job.config.work / name, ignore_errors=True)
    tell(report.verdict())


def _record(job: Job, codec: Codec, result: Result) -> dict[str, Any]:
    """Returns how the codec was made, as JSON takes it."""
    made: dict[str, Any] = {
        "plan": job.config.to_dict(),  # two keys of a file: their names outlive those of the classes
        "recipe": job.hyperparameters.to_dict(),
        "cases": {name: len(getattr(job.cases, name)) for name in ("training", "validation", "test")},
        "seed": job.config.seed,
        "processes": world(),
        "steps": result.steps,
        "minutes": result.minutes,
        "tokens_per_s": result.tokens_per_s,
        "time_shares": {part: round(share, 3) for part, share in result.shares.items()},
        "step_s": result.step_s,
        "receiver_pass_s": result.receiver_pass_s,
        "provenance": job.made_by | {"models": {s: getattr(codec.trained, s).exact for s in ("sender", "receiver")}},
    }
    made |= {"reader": brought} if (brought := tuned(job.config.work)) else {}
    found: dict[str, Any] = json.loads(json.dumps(made, default=str))
    return found


def _save(job: Job, codec: Codec, made: dict[str, Any]) -> None:
    """Writes the codec's folder whole: weights, configuration, card, curve, and the receiver's adapter."""
    config, draft = job.config, job.config.work / DRAFT
    shutil.rmtree(draft, ignore_errors=True)
    save(codec, draft, card=write_card(codec, made, None), training=made)
    try:
        write_seen(draft, (case.context for case in (*job.cases.training, *job.cases.validation)))
        for name in (CURVE, LOG):
            if os.path.exists(config.work / name):
                shutil.copyfile(config.work / name, draft / name)
        if job.models.adapter is not None:
            save_adapter(job.models.adapter, draft / ADAPTER)
        settle(draft)
    except (OSError, SafetensorError) as error:
        raise StorageError(f"expected room for the codec in {draft}, got: {error}; free space, then resume") from error
    try:
        if os.path.isdir(config.out) and os.listdir(config.out):  # the same run's, unmeasured: that was seen to
            shutil.rmtree(config.work / BEFORE, ignore_errors=True)
            config.out.replace(config.work / BEFORE)
        elif os.path.isdir(config.out):
            config.out.rmdir()
        config.out.parent.mkdir(parents=True, exist_ok=True)
        draft.replace(config.out)
        sync(config.out.parent)
    except OSError as error:
        raise StorageError(
            f"expected to put the codec at {config.out}, got: {error}; it is whole in {draft}"
        ) from error


def _measured(job: Job, codec: Codec) -> Report:
    """Measures the codec and every control on the test cases; what is done is kept as it goes."""
    file = job.config.work / REPORT
    done = _kept_report(file, codec, job.made_by["commit"])
    if done is not None:
        return done
    sender = Sender(job.models.sender, job.models.sender_tokenizer, codec)
    receiver = Receiver(job.models.receiver, job.models.receiver_tokenizer, codec, allow_unmeasured=True)
    texts = equal_texts(sender, [case.context for case in job.cases.training])
    return run(
        sender,
        receiver,
        job.cases.test,
        task=job.config.data.name if job.config.data is not None else "self-study",
        seed=job.config.seed,
        answers_end=job.hyperparameters.answers_end,
        texts={name: texts[name] for name in TEXTS},
        repetitions=0,
        keep=file,
        progress=shows(),
    )


def _kept_report(file: Path, codec: Codec, commit: str) -> Report | None:
    """Returns the report that an earlier end of this run finished; what another version or codec left goes."""
    if not os.path.exists(file):
        return None
    with suppress(ConfigError):  # of what is damaged, or of a version that this one does not read
        found = load_report(file)
        wanted = codec.trained.codec_id(codec.spec).hex(), commit
        if (found.codec["codec_id"], found.provenance["commit"]) == wanted:
            return found if found.complete else None
    file.unlink()
    return None


def shows() -> bool:
    """Says whether this process has a terminal to show bars on."""
    return sys.stderr.isatty() and is_main()


def tell(text: str) -> None:
    """Prints a line, once for all processes."""
    if is_main():
        say(Console(stderr=True, soft_wrap=True), text)
