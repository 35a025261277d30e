"""``ilcp train`` and ``ilcp.train``: from two models to a measured codec.

::

    config --> models --> cases (a file, or written by the sender) --> training, validation, test
         --> tune, where the receiver is adapted --> states on disk --> learn_facts, where the codec does
         --> fit --> codec
         --> measured on the test cases, with every control --> folder

A run keeps its checkpoint, its log and the sender's states in ``<out>.run``, beside the codec's folder, which appears
when all is done. A run that was stopped goes on with ``resume``.
"""

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import torch
from rich.console import Console
from safetensors import SafetensorError

from ilcp.codec.folder import ADAPTER, CONFIG, load, save
from ilcp.codec.protocols import Codec
from ilcp.errors import ConfigError, StorageError
from ilcp.files import write_whole
from ilcp.handoff import Receiver, Sender
from ilcp.identity import ModelIdentity, digest
from ilcp.measure import Report, equal_texts, run
from ilcp.models.adapter import begun_adapter, new_adapter, save_adapter
from ilcp.models.fingerprint import identify
from ilcp.models.loading import load_model
from ilcp.models.support import require_receiver, require_sender
from ilcp.nn.distributed import all_reduce, any_rank, init_device, is_main, same_everywhere, world
from ilcp.nn.half import round_to_half
from ilcp.tasks.cases import Case, read_jsonl
from ilcp.training.batch import Models, frozen, misfit, require_fitting
from ilcp.training.card import write_card
from ilcp.training.choice import chosen, learns_facts, untrained
from ilcp.training.config import TrainingConfig, read_config
from ilcp.training.data import Shuffled, Split, merged, split
from ilcp.training.estimate import estimate
from ilcp.training.hyperparameters import Hyperparameters, renamed
from ilcp.training.lesson import learn_facts
from ilcp.training.log import CURVE, LOG, Log, flat
from ilcp.training.loop import CHECKPOINT, Result, fit
from ilcp.training.objective import FactNetwork, calibrate
from ilcp.training.phrasebook import kept_phrasebook
from ilcp.training.precision import in_bfloat16
from ilcp.training.reader import Reader, StateStore
from ilcp.training.selfstudy import study
from ilcp.training.topics import with_topics
from ilcp.training.tuning import FOLDER, tune, tuned
from ilcp.training.validation import Validator

__all__ = ["train", "train_codec"]

VALIDATION = 64  # cases by which the learning is watched, at most
CALIBRATION = 64
TEXTS = ("head", "tail", "zstd")  # an LM codes text in minutes per case where the LM is large: ilcp measure adds it
KEPT, STUDY, STATES = "plan.json", "self-study.jsonl", "states"  # in the run's folder, named as ever
CHECKPOINTS = (CHECKPOINT, f"{FOLDER}/{CHECKPOINT}")  # of the codec, and of the receiver's first stage
HALVED = "in bfloat16"
GIGA = 1e9


@dataclass(frozen=True, slots=True)
class _Job:
    """One training with what it works on."""

    config: TrainingConfig
    hyperparameters: Hyperparameters
    models: Models
    cases: Split


def train(recipe: str | Path | None = None, *, resume: bool = False, **changes: Any) -> Codec:
    """Trains a codec for two models of your own, measures it, saves it, and returns it.

    >>> import ilcp
    >>> codec = ilcp.train(sender="model-a", receiver="model-b", data="cases.jsonl", out="my-codec")  # doctest: +SKIP

    Args:
        recipe: a TOML file; see ``ilcp.training.config``.
        resume: goes on with what an earlier call left beside ``out``.
        changes: fields of ``TrainingConfig`` (``sender``, ``receiver``, ``data`` or ``self_study=True``, ``out``, ...),
            ``steps`` and ``minutes``; they go before the file.

    Raises:
        ConfigError, StorageError, TrainingError, MissingExtraError, Interrupted: as ``train_codec``.
    """
    return train_codec(read_config(None if recipe is None else Path(recipe), **changes), resume=resume)


def train_codec(config: TrainingConfig, *, resume: bool = False) -> Codec:
    """Trains the codec that ``config`` describes, measures it, saves it in ``config.out``, and returns it.

    Args:
        resume: goes on with what an earlier call of the same configuration left in ``config.work``.

    Raises:
        ConfigError: the models, the data or the configuration cannot be used, or ``config.out`` or ``config.work``
            holds another codec or run; the text says what to do.
        TrainingError: the receiver cannot answer from the full text, the codec collapsed, or a number is not finite.
        StorageError: the disk is full or not to be written to, or a file of the run is damaged.
        MissingExtraError: a package that the configuration needs is not installed.
        Interrupted: Ctrl-C or SIGTERM, after a checkpoint.
    """
    _refuse_taken(config, resume)
    given = None if config.data is None else _read(config)  # before the models: they load longer
    method = chosen(config, given or ())
    device = init_device(config.device)
    models = _models(config, device)
    try:
        config.work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"expected room for the run in {config.work}, got: {error}; choose another --out") from error
    identities = (
        identify(models.sender, models.sender_tokenizer),
        identify(models.receiver, models.receiver_tokenizer),
    )
    halved = _same_config(config, identities, device)
    cases = _written(config, models) if given is None else given
    hyperparameters = replace(config.hyperparameters(_answers_end(cases), facts=learns_facts(method)), bfloat16=halved)
    job = _Job(config, hyperparameters, models, _fitting(config, models, cases, hyperparameters))
    torch.manual_seed(config.seed)
    network = untrained(method, config, models, job.cases.training).to(device)
    if isinstance(network, FactNetwork):
        job = replace(job, hyperparameters=replace(hyperparameters, topics=network.topics))
    result = _train(job, network, resume)
    network.round_to_half()
    round_to_half(models.adapted())
    receiver = identify(models.receiver, models.receiver_tokenizer)
    codec: Codec = method.from_network(network.cpu(), identities[0], receiver)
    if is_main():
        _finish(job, codec, result, _measure(job, codec))
    all_reduce(0.0, device)  # no process is done before the folder is there
    return load(config.out)


def _refuse_taken(config: TrainingConfig, resume: bool) -> None:
    """Refuses to overwrite what is finished, and to begin anew what is begun."""
    out = config.out
    if out.is_symlink() or out.is_mount():
        raise ConfigError(f"expected a plain folder for the codec, got a link or mount at {out}: name one inside")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        holds = "holds a codec already" if (out / CONFIG).exists() else "is not empty"
        raise ConfigError(f"expected a new folder for the codec, got {out}, which {holds}: choose another --out")
    if any((config.work / name).exists() for name in CHECKPOINTS) and not resume:
        raise ConfigError(
            f"expected no run in {config.work}, got one with a checkpoint: pass --resume to go on with it, remove it, "
            "or choose another --out"
        )


def _read(config: TrainingConfig) -> list[Case]:
    """Reads the cases; a question that names no topic gets that of those which ask the same."""
    assert config.data is not None
    return with_topics(merged(read_jsonl(config.data)))


def _models(config: TrainingConfig, device: torch.device) -> Models:
    sender = load_model(config.sender, dtype=config.dtype, device=device, encoder=True)
    receiver = load_model(config.receiver, dtype=config.dtype, device=device, encoder=True)
    require_sender(sender[0])
    require_receiver(receiver[0])
    if not config.adapt_receiver:
        return Models(*sender, *receiver)
    torch.manual_seed(config.seed)
    if config.adapter is None:
        adapter = new_adapter(receiver[0], config.adapter_rank)
    else:
        adapter = begun_adapter(receiver[0], config.adapter)
    return Models(*sender, adapter.get_base_model(), receiver[1], adapter)


def _written(config: TrainingConfig, models: Models) -> list[Case]:
    """Lets the sender write the cases."""
    assert config.self_study is not None  # a configuration has the one or the other
    file = config.work / STUDY
    return merged(study(models, config.self_study, file, seed=config.seed, progress=_shows()))


def _answers_end(cases: Sequence[Case]) -> bool:
    """Says whether answers end; questions and continuations are not learned together."""
    found = {bool(question.text) for case in cases for question in case.questions}
    if len(found) > 1:
        raise ConfigError("expected either questions or continuations, got both in one file: train on one of them")
    return found.pop() if found else True


def _fitting(config: TrainingConfig, models: Models, cases: Sequence[Case], hyperparameters: Hyperparameters) -> Split:
    """Splits the cases that the receiver can read in full into three parts."""
    if config.too_long == "refuse":
        require_fitting(models, cases, hyperparameters)
        kept = cases
    else:
        kept = [case for case in cases if misfit(models, case, hyperparameters) is None]
    if len(kept) < len(cases):
        _say(f"{len(cases) - len(kept)} of {len(cases)} cases are longer than the receiver's window and left out")
    return split(kept, validation=VALIDATION, test=config.test_cases, seed=config.seed)


def _same_config(config: TrainingConfig, identities: Sequence[ModelIdentity], device: torch.device) -> bool:
    """Says whether the models compute in bfloat16: decided once for all processes and parts of a run, and kept.

    Raises:
        ConfigError: another configuration began the run; the text has every key that differs, with both values.
    """
    names = dict(zip(("sender identity", "receiver identity"), map(asdict, identities), strict=True))
    data = None if config.data is None else _digest(config.data)
    record = json.loads(json.dumps(config.to_dict() | names | {"data digest": data}, default=str))
    file, halved = config.work / KEPT, False
    if is_main():
        begun = file.exists() and any((config.work / name).exists() for name in (*CHECKPOINTS, STUDY))
        before = _kept(file) if begun else {}
        halved = bool(before.pop(HALVED, in_bfloat16(device, config.hyperparameters(True))))
        now, old = flat(record, "."), flat(before, ".")
        differs = [name for name in sorted(now.keys() | old.keys()) if now.get(name) != old.get(name)]
        if begun and differs:
            shown = "; ".join(f"{name} (was {old.get(name)!r}, is {now.get(name)!r})" for name in differs)
            raise ConfigError(
                f"expected the run that {config.work} holds, got a difference in {shown}: take it back, or choose "
                "another --out"
            )
        if not begun:
            write_whole(file, json.dumps(record | {HALVED: halved}, indent=2) + "\n")
    return any_rank(halved, device)


def _kept(file: Path) -> dict[str, Any]:
    """Reads the configuration that began a run; it is compared key by key, so no key is refused."""
    try:
        record = msgspec.convert(json.loads(file.read_text(encoding="utf-8")), dict[str, Any])
        return record | {"training": renamed(msgspec.convert(record.get("training"), dict[str, Any]))}
    except (OSError, ValueError, msgspec.MsgspecError) as error:
        raise StorageError(
            f"expected the configuration of a run in {file}, got: {error}; remove {file.parent}"
        ) from error


def _digest(file: Path) -> str:
    try:
        return digest(file.read_bytes()).hex()
    except OSError as error:
        raise ConfigError(f"expected a readable file of cases, got {file}: {error.strerror}") from error


def _train(job: _Job, network: Any, resume: bool) -> Result:
    config, models, cases = job.config, job.models, job.cases
    texts = [case.context for case in (*cases.training, *cases.validation)]
    store = StateStore(config.work / STATES, models, network.layers, job.hyperparameters, int(config.states_gb * GIGA))
    _say(f"{len(cases.training)} cases to learn from, {len(cases.validation)} to watch, {len(cases.test)} to measure")
    need = estimate(models, network, store, texts, config.work, job.hyperparameters) if is_main() else None
    _say(str(need))
    reader = Reader(models, network.layers, job.hyperparameters, store)
    lengths = [len(case.context) for case in cases.training]  # tokens tell too much: they made batches alike in answers
    source = Shuffled(cases.training, lengths, config.seed)
    validator = _teacher(job, source, reader, resume)  # before the sender reads everything
    phrasebook = None
    if not isinstance(network, FactNetwork):
        phrasebook = kept_phrasebook(models, source, job.hyperparameters, config.work)
    if not (config.work / CHECKPOINT).exists():
        few = (cases.training + cases.validation)[:CALIBRATION]
        calibrate(network, models, few, job.hyperparameters, phrasebook)
        same_everywhere(network)
    store.fill(reader, texts)
    left = _left(job)
    if isinstance(network, FactNetwork) and left.facts_steps:
        lesson = learn_facts(network, models, source, validator, left, config.work, store=store, resume=resume)
        left = replace(left, minutes=left.minutes - min(lesson.minutes, left.facts_share * left.minutes))
    return fit(
        network,
        models,
        source,
        validator,
        left,
        config.work,
        phrasebook=phrasebook,
        store=store,
        resume=resume,
        tensorboard=config.tensorboard,
        announced_bytes=None if need is None else need.memory_bytes,
    )


def _teacher(job: _Job, source: Shuffled, reader: Reader, resume: bool) -> Validator:
    """Returns a validator that has heard the receiver read the full text, tuned for it where it is adapted.

    Raises:
        TrainingError: it reads too badly to teach a codec anything.
    """
    models, wanted, work = job.models, job.hyperparameters, job.config.work
    validator = Validator(models, job.cases.validation[: wanted.validation_contexts], wanted, reader)
    begun = (work / CHECKPOINT).exists()
    if models.adapter is not None and wanted.reader_share and (not begun or tuned(work)):
        brought = tune(models, source, validator, wanted, work, resume=resume)
        if not begun and is_main():
            log = Log(work)
            log.forget_after(-1)  # a run that ended here said so already
            log.write({"step": 0, "reader": brought})
    else:
        with frozen(models):
            validator.read()
    _say(validator.said())
    if not begun:
        validator.require_teacher()
    return validator


def _left(job: _Job) -> Hyperparameters:
    """Returns the hyperparameters with the minutes that the first stage left; it never has more than its share."""
    wanted, brought = job.hyperparameters, tuned(job.config.work)
    if brought is None or wanted.minutes == float("inf"):
        return wanted
    return replace(wanted, minutes=wanted.minutes - min(brought["minutes"], wanted.reader_share * wanted.minutes))


def _measure(job: _Job, codec: Codec) -> Report:
    """Measures the codec and every control on the test cases; what is done is kept as it goes."""
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
        keep=job.config.work / "report.json",
        progress=_shows(),
    )


def _finish(job: _Job, codec: Codec, result: Result, report: Report) -> None:
    """Writes the codec's folder whole: weights, configuration, card, curve, and the receiver's adapter."""
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
        "provenance": report.provenance,
    }
    made |= {"reader": brought} if (brought := tuned(job.config.work)) else {}
    made = json.loads(json.dumps(made, default=str))
    codec.evidence = report.evidence()
    draft = job.config.work / "codec"
    shutil.rmtree(draft, ignore_errors=True)
    save(codec, draft, card=write_card(codec, made, report), training=made)
    try:
        for name in (CURVE, LOG):
            if (job.config.work / name).exists():
                shutil.copyfile(job.config.work / name, draft / name)
        if job.models.adapter is not None:
            save_adapter(job.models.adapter, draft / ADAPTER)
    except (OSError, SafetensorError) as error:
        raise StorageError(f"expected room for the codec in {draft}, got: {error}; free space, then resume") from error
    try:
        if job.config.out.is_dir():
            job.config.out.rmdir()  # it was empty: that was seen to at the start
        job.config.out.parent.mkdir(parents=True, exist_ok=True)
        draft.replace(job.config.out)
    except OSError as error:
        raise StorageError(
            f"expected to put the codec at {job.config.out}, got: {error}; it is whole in {draft}"
        ) from error
    shutil.rmtree(job.config.work / STATES, ignore_errors=True)  # the largest part of it, and made again within minutes
    _say(report.verdict())


def _shows() -> bool:
    return sys.stderr.isatty() and is_main()


def _say(text: str) -> None:
    if is_main():
        Console(stderr=True, soft_wrap=True).print(text, highlight=False)
