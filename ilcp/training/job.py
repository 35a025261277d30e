"""From two models to a proven codec: what ``ilcp train`` and ``ilcp.train`` do.

::

    plan --> models --> cases (a file, or written by the sender) --> training, validation, test
         --> states on disk --> train --> codec --> measured on the test cases, with every control --> folder

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

import torch
from rich.console import Console

from ilcp.codec.folder import ADAPTER, CONFIG, load, save
from ilcp.codec.protocols import Codec
from ilcp.codec.registry import codec_class
from ilcp.errors import EncodeError
from ilcp.files import write_whole
from ilcp.handoff import Receiver, Sender
from ilcp.identity import ModelIdentity, digest
from ilcp.measure import Report, equal_texts, run
from ilcp.models.adapter import new_adapter, save_adapter
from ilcp.models.fingerprint import identify
from ilcp.models.loading import load_model
from ilcp.models.support import require_receiver, require_sender
from ilcp.nn.distributed import all_reduce, any_rank, init_device, is_main, same_everywhere, world
from ilcp.tasks.cases import Case, read_jsonl
from ilcp.training.batch import Models, check_room, frozen
from ilcp.training.card import write_card
from ilcp.training.config import TrainingConfig, read_config, refuse_unknown
from ilcp.training.data import Shuffled, Split, merged, split
from ilcp.training.estimate import estimate
from ilcp.training.hyperparameters import Hyperparameters
from ilcp.training.log import CURVE, LOG, flat
from ilcp.training.loop import CHECKPOINT, Result
from ilcp.training.loop import train as fit
from ilcp.training.objective import calibrate
from ilcp.training.precision import in_bfloat16
from ilcp.training.reader import Reader, StateStore
from ilcp.training.selfstudy import study
from ilcp.training.validation import Validator

__all__ = ["train", "train_codec"]

VALIDATION = 64  # cases by which the learning is watched, at most
CALIBRATION = 64
TEXTS = ("head", "tail", "zstd")  # an LM codes text in minutes per case where the LM is large: ilcp measure adds it
PLAN, STUDY, STATES = "plan.json", "self-study.jsonl", "states"  # in the run's folder
HALVED = "in bfloat16"
GIGA = 1e9


@dataclass(frozen=True, slots=True)
class _Job:
    """What a training works with."""

    plan: TrainingConfig
    recipe: Hyperparameters
    models: Models
    cases: Split


def train(recipe: str | Path | None = None, *, resume: bool = False, **changes: Any) -> Codec:
    """The codec for two models of your own, trained, measured and saved.

    >>> import ilcp
    >>> codec = ilcp.train(sender="model-a", receiver="model-b", data="cases.jsonl", out="my-codec")  # doctest: +SKIP

    Args:
        recipe: a TOML file; see ``ilcp.training.config``.
        resume: goes on with what an earlier call left beside ``out``.
        changes: fields of ``Plan`` (``sender``, ``receiver``, ``data`` or ``self_study=True``, ``out``, ...), ``steps``
            and ``minutes``; they go before the file.

    Raises:
        EncodeError, Interrupted: as ``train_codec``.
    """
    return train_codec(read_config(None if recipe is None else Path(recipe), **changes), resume=resume)


def train_codec(plan: TrainingConfig, *, resume: bool = False) -> Codec:
    """The codec that the plan describes, trained, measured and saved in ``plan.out``.

    Args:
        resume: goes on with what an earlier call of the same plan left in ``plan.work``.

    Raises:
        EncodeError: the models, the data or the recipe cannot be used, ``plan.out`` or ``plan.work`` holds another
            codec or run, the receiver cannot answer from the full text, or the codec collapsed; the text says what
            to do.
        Interrupted: Ctrl-C or SIGTERM, after a checkpoint.
    """
    _refuse_taken(plan, resume)
    given = None if plan.data is None else merged(read_jsonl(plan.data))  # before the models: they take longer to load
    device = init_device(plan.device)
    method = _method(plan)
    models = _models(plan, device)
    try:
        plan.work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EncodeError(f"expected room for the run in {plan.work}, got: {error}; choose another --out") from error
    with models.unadapted():
        identities = (
            identify(models.sender, models.sender_tokenizer),
            identify(models.receiver, models.receiver_tokenizer),
        )
    torch.manual_seed(plan.seed)
    network = method.untrained(models.sender, models.receiver, _settings(plan)).to(device)
    halved = _same_plan(plan, identities, device)
    cases = _written(plan, models) if given is None else given
    closed = _closed(cases)
    recipe = replace(plan.recipe(closed=closed), bfloat16=halved)
    job = _Job(plan, recipe, models, _fitting(plan, models, cases, closed))
    result = _train(job, network, resume)
    if hasattr(network, "round_to_half"):
        network.round_to_half()
    receiver = identify(models.receiver, models.receiver_tokenizer)
    codec: Codec = method.from_network(network.cpu(), identities[0], receiver)
    if is_main():
        _finish(job, codec, result, _measure(job, codec, closed))
    all_reduce(0.0, device)  # no process is done before the folder is there
    return load(plan.out)


def _refuse_taken(plan: TrainingConfig, resume: bool) -> None:
    """Nothing finished is overwritten, nothing begun is begun anew."""
    if plan.out.is_symlink() or plan.out.is_mount():
        raise EncodeError(f"expected a plain folder for the codec, got a link or mount at {plan.out}: name one inside")
    if plan.out.exists() and (not plan.out.is_dir() or any(plan.out.iterdir())):
        holds = "holds a codec already" if (plan.out / CONFIG).exists() else "is not empty"
        raise EncodeError(f"expected a new folder for the codec, got {plan.out}, which {holds}: choose another --out")
    if (plan.work / CHECKPOINT).exists() and not resume:
        raise EncodeError(
            f"expected no run in {plan.work}, got one with a checkpoint: pass --resume to go on with it, remove it, or "
            "choose another --out"
        )


def _method(plan: TrainingConfig) -> Any:
    """The class of the codec.

    Raises:
        EncodeError: there is none of that name, it does not learn, or has no such setting.
    """
    name = plan.codec.get("name", "vae")
    method = codec_class(name)
    if not hasattr(method, "untrained"):
        raise EncodeError(f"expected a codec that learns, got {name!r}, which has nothing to train: use it as it is")
    refuse_unknown(_settings(plan), method.settings(), "[codec]")
    return method


def _settings(plan: TrainingConfig) -> dict[str, Any]:
    settings = {name: value for name, value in plan.codec.items() if name != "name"}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}


def _models(plan: TrainingConfig, device: torch.device) -> Models:
    sender = load_model(plan.sender, dtype=plan.dtype, device=device, encoder=True)
    receiver = load_model(plan.receiver, dtype=plan.dtype, device=device, encoder=True)
    require_sender(sender[0])
    require_receiver(receiver[0])
    if not plan.adapt_receiver:
        return Models(*sender, *receiver)
    torch.manual_seed(plan.seed)
    adapter = new_adapter(receiver[0], plan.adapter_rank)
    return Models(*sender, adapter.get_base_model(), receiver[1], adapter)


def _written(plan: TrainingConfig, models: Models) -> list[Case]:
    """What the sender writes."""
    assert plan.self_study is not None  # a plan has the one or the other
    file = plan.work / STUDY
    return merged(study(models, plan.self_study, file, seed=plan.seed, progress=_shows()))


def _closed(cases: Sequence[Case]) -> bool:
    """Whether answers end; questions and continuations are not learned together."""
    found = {bool(question.text) for case in cases for question in case.questions}
    if len(found) > 1:
        raise EncodeError("expected either questions or continuations, got both in one file: train on one of them")
    return found.pop() if found else True


def _fitting(plan: TrainingConfig, models: Models, cases: list[Case], closed: bool) -> Split:
    """The cases that the receiver can read in full, in three parts."""
    recipe, kept = plan.recipe(closed=closed), []
    for case in cases:
        try:
            check_room(models, [case], recipe)
            kept.append(case)
        except EncodeError:
            if plan.too_long == "refuse":
                raise
    if len(kept) < len(cases):
        _say(f"{len(cases) - len(kept)} of {len(cases)} cases are longer than the receiver's window and left out")
    return split(kept, validation=VALIDATION, test=plan.test_cases, seed=plan.seed)


def _same_plan(plan: TrainingConfig, identities: Sequence[ModelIdentity], device: torch.device) -> bool:
    """Whether the models compute in bfloat16: decided once for all processes and all parts of a run, and kept with it.

    Raises:
        EncodeError: another plan began the run; every key that differs, with both values.
    """
    names = dict(zip(("sender identity", "receiver identity"), map(asdict, identities), strict=True))
    data = None if plan.data is None else _digest(plan.data)
    record = json.loads(json.dumps(plan.to_dict() | names | {"data digest": data}, default=str))
    file, halved = plan.work / PLAN, False
    if is_main():
        begun = file.exists() and any((plan.work / name).exists() for name in (CHECKPOINT, STUDY))
        before = _kept_plan(file) if begun else {}
        halved = bool(before.pop(HALVED, in_bfloat16(device, plan.recipe(closed=True))))
        now, old = flat(record, "."), flat(before, ".")
        differs = [name for name in sorted(now.keys() | old.keys()) if now.get(name) != old.get(name)]
        if begun and differs:
            shown = "; ".join(f"{name} (was {old.get(name)!r}, is {now.get(name)!r})" for name in differs)
            raise EncodeError(
                f"expected the run that {plan.work} holds, got a difference in {shown}: take it back, or choose "
                "another --out"
            )
        if not begun:
            write_whole(file, json.dumps(record | {HALVED: halved}, indent=2) + "\n")
    return any_rank(halved, device)


def _kept_plan(file: Path) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EncodeError(f"expected the plan of a run in {file}, got: {error}; remove {file.parent}") from error
    return record


def _digest(file: Path) -> str:
    try:
        return digest(file.read_bytes()).hex()
    except OSError as error:
        raise EncodeError(f"expected a readable file of cases, got {file}: {error.strerror}") from error


def _train(job: _Job, network: Any, resume: bool) -> Result:
    plan, models, cases = job.plan, job.models, job.cases
    texts = [case.context for case in (*cases.training, *cases.validation)]
    store = StateStore(plan.work / STATES, models, network.layers, job.recipe, int(plan.states_gb * GIGA))
    _say(f"{len(cases.training)} cases to learn from, {len(cases.validation)} to watch, {len(cases.test)} to measure")
    if is_main():
        _say(str(estimate(models, network, store, texts, plan.work, job.recipe)))
    reader = Reader(models, network.layers, job.recipe)
    if not (plan.work / CHECKPOINT).exists():
        with frozen(models):  # before the sender reads everything
            Validator(models, cases.validation, job.recipe, reader).require_teacher()
        calibrate(network, models, (cases.training + cases.validation)[:CALIBRATION], job.recipe)
        same_everywhere(network)
    store.fill(reader, texts, progress=_shows())
    lengths = [len(case.context) for case in cases.training]
    return fit(
        network,
        models,
        Shuffled(cases.training, lengths, plan.seed),
        cases.validation,
        job.recipe,
        plan.work,
        store=store,
        resume=resume,
        tensorboard=plan.tensorboard,
    )


def _measure(job: _Job, codec: Codec, closed: bool) -> Report:
    """Every control on the test cases, kept as it goes."""
    sender = Sender(job.models.sender, job.models.sender_tokenizer, codec)
    receiver = Receiver(job.models.receiver, job.models.receiver_tokenizer, codec, allow_unmeasured=True)
    texts = equal_texts(sender, [case.context for case in job.cases.training])
    return run(
        sender,
        receiver,
        job.cases.test,
        task=job.plan.data.name if job.plan.data is not None else "self-study",
        seed=job.plan.seed,
        answers_end=closed,
        texts={name: texts[name] for name in TEXTS},
        repetitions=0,
        keep=job.plan.work / "report.json",
        progress=_shows(),
    )


def _finish(job: _Job, codec: Codec, result: Result, report: Report) -> None:
    """The codec's folder, whole: weights, configuration, card, curve, and the receiver's adapter."""
    made: dict[str, Any] = {
        "plan": job.plan.to_dict(),
        "recipe": job.recipe.to_dict(),
        "cases": {name: len(getattr(job.cases, name)) for name in ("training", "validation", "test")},
        "seed": job.plan.seed,
        "processes": world(),
        "steps": result.steps,
        "minutes": result.minutes,
        "tokens_per_s": result.tokens_per_s,
        "time_shares": {part: round(share, 3) for part, share in result.shares.items()},
        "provenance": report.provenance,
    }
    made = json.loads(json.dumps(made, default=str))
    codec.evidence = report.evidence()
    draft = job.plan.work / "codec"
    shutil.rmtree(draft, ignore_errors=True)
    save(codec, draft, card=write_card(codec, made, report), training=made)
    for name in (CURVE, LOG):
        if (job.plan.work / name).exists():
            shutil.copyfile(job.plan.work / name, draft / name)
    if job.models.adapter is not None:
        save_adapter(job.models.adapter, draft / ADAPTER)
    try:
        if job.plan.out.is_dir():
            job.plan.out.rmdir()  # it was empty: that was seen to at the start
        job.plan.out.parent.mkdir(parents=True, exist_ok=True)
        draft.replace(job.plan.out)
    except OSError as error:
        raise EncodeError(
            f"expected to put the codec at {job.plan.out}, got: {error}; it is whole in {draft}"
        ) from error
    shutil.rmtree(job.plan.work / STATES, ignore_errors=True)  # the largest part of it, and made again within minutes
    _say(report.verdict())


def _shows() -> bool:
    return sys.stderr.isatty() and is_main()


def _say(text: str) -> None:
    if is_main():
        Console(stderr=True, soft_wrap=True).print(text, highlight=False)
