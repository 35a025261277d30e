"""``ilcp train`` and ``ilcp.train``: from two models to a measured codec.

::

    config --> models --> cases (a file, or written by the sender) --> training, validation, test
         --> tune, where the receiver is adapted --> states on disk --> learn_facts, where the codec does
         --> fit --> codec --> folder
         --> measured on the test cases, with every control --> evidence and card in the folder

A run keeps its checkpoint, its log, its test cases and the sender's states in ``<out>.run``, beside the codec's folder,
which appears when the codec is trained, and is measured after that. A run that was stopped goes on with ``resume``.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ilcp.codec.folder import load
from ilcp.codec.protocols import Codec
from ilcp.errors import ConfigError
from ilcp.files import require_writable
from ilcp.measure import provenance
from ilcp.measure.fitting import Fitting
from ilcp.models.adapter import begun_adapter, new_adapter, require_adapter
from ilcp.models.fingerprint import identify
from ilcp.models.loading import load_model
from ilcp.models.prompt import MEMORY_HERE
from ilcp.models.support import require_receiver, require_sender
from ilcp.nn.attention import many_shapes
from ilcp.nn.distributed import all_reduce, init_device, is_main, same_everywhere
from ilcp.nn.half import round_to_half
from ilcp.tasks.cases import Case, read_jsonl
from ilcp.tasks.load import own_test
from ilcp.tasks.written import merged, write_jsonl
from ilcp.training.batch import Models, frozen
from ilcp.training.begun import KEPT, STUDY, refuse_taken, same_config
from ilcp.training.checkpoint import alone, has_checkpoint
from ilcp.training.choice import chosen, learns_facts, untrained
from ilcp.training.config import TrainingConfig, read_config
from ilcp.training.data import Shuffled, Split, require_enough, split
from ilcp.training.estimate import estimate
from ilcp.training.finish import STATES, Job, finish, shows, tell
from ilcp.training.forget import require_latent, with_values
from ilcp.training.hyperparameters import Hyperparameters
from ilcp.training.lesson import facts_stage, learn_facts
from ilcp.training.log import Log
from ilcp.training.loop import Result, fit, require_share
from ilcp.training.objective import FactNetwork, calibrate
from ilcp.training.pace import length_text
from ilcp.training.phrasebook import kept_phrasebook
from ilcp.training.reader import Reader, StateStore
from ilcp.training.selfstudy import study
from ilcp.training.topics import with_topics
from ilcp.training.tuning import reading_stage, tune, tuned
from ilcp.training.validation import Validator

__all__ = ["train", "train_codec"]

VALIDATION = 64  # cases by which the learning is watched, at most
CALIBRATION = 64
LOCK = "run.lock"  # of the whole run; a stage holds its checkpoints besides
GIGA = 1e9


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
        ConfigError: the models, the data or the configuration cannot be used, ``config.out`` or ``config.work`` holds
            another codec or run, or another process works there; the text says what to do.
        TrainingError: the receiver cannot answer from the full text, the codec collapsed, or a number is not finite.
        StorageError: the disk is full or not to be written to, or a file of the run is damaged.
        MissingExtraError: a package that the configuration needs is not installed.
        Interrupted: Ctrl-C or SIGTERM, after a checkpoint.
    """
    refuse_taken(config, resume)
    given = None if config.data is None else _read(config)  # before the models: they load longer
    method = chosen(config, given or ())
    device = init_device(config.device)
    with alone(config.work, LOCK), many_shapes():
        require_writable(config.work / KEPT)
        return _trained(config, given, method, device, resume)


def _trained(
    config: TrainingConfig, given: list[Case] | None, method: Any, device: torch.device, resume: bool
) -> Codec:
    """Trains in folders that were looked at, and are held."""
    models, made_by = _models(config, device), provenance()
    identities = (
        identify(models.sender, models.sender_tokenizer),
        identify(models.receiver, models.receiver_tokenizer),
    )
    halved = same_config(config, identities, device)
    cases = _written(config, models) if given is None else given
    hyperparameters = replace(config.hyperparameters(_answers_end(cases), facts=learns_facts(method)), bfloat16=halved)
    hyperparameters = with_values(hyperparameters, cases)
    job = Job(config, hyperparameters, models, _fitting(config, models, cases, hyperparameters), made_by)
    torch.manual_seed(config.seed)
    network = untrained(method, config, models, job.cases.training).to(device)
    if isinstance(network, FactNetwork):
        job = replace(job, hyperparameters=replace(hyperparameters, topics=network.topics))
    _require_batches(job, network)
    result = _train(job, network, resume)
    network.round_to_half()
    round_to_half(models.adapted())
    receiver = identify(models.receiver, models.receiver_tokenizer)
    codec: Codec = method.from_network(network.cpu(), identities[0], receiver)
    if is_main():
        finish(job, codec, result)
    all_reduce(0.0, device)  # no process is done before the folder is there
    return load(config.out)


def _read(config: TrainingConfig) -> list[Case]:
    """Reads the cases; a question that names no topic gets that of those which ask the same."""
    assert config.data is not None
    cases = merged(read_jsonl(config.data))
    _answers_end(cases)
    marked = next((case.id for case in cases for question in case.questions if MEMORY_HERE in question.text), None)
    if marked is not None:
        raise ConfigError(
            f"expected questions without ilcp.MEMORY_HERE to train on, got one in case {marked!r}: in a training the "
            "memory stands before the question; take the marker out"
        )
    require_enough(len(cases))
    return with_topics(cases)


def _models(config: TrainingConfig, device: torch.device) -> Models:
    if config.adapter is not None:
        require_adapter(config.adapter)
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
    return merged(study(models, config.self_study, file, seed=config.seed, progress=shows()))


def _answers_end(cases: Sequence[Case]) -> bool:
    """Says whether answers end; questions and continuations are not learned together."""
    found = {bool(question.text) for case in cases for question in case.questions}
    if len(found) > 1:
        raise ConfigError("expected either questions or continuations, got both in one file: train on one of them")
    return found.pop() if found else True


def _fitting(config: TrainingConfig, models: Models, cases: Sequence[Case], hyperparameters: Hyperparameters) -> Split:
    """Splits the cases that the receiver can read in full into three parts."""
    fitting = Fitting(models.receiver, models.receiver_tokenizer, answers_end=hyperparameters.answers_end)
    kept, beyond = [], []
    for case in cases:
        said = fitting.misfit(case)
        kept.append(case) if said is None else beyond.append(said)
    if beyond and config.too_long == "refuse" and config.data is not None:
        raise ConfigError(f"{beyond[0]}. So it is with {len(beyond)} of {len(cases)} cases")
    if beyond:
        tell(f"{len(beyond)} of {len(cases)} cases are longer than the receiver's window and left out")
    parts = split(kept, validation=VALIDATION, test=config.test_cases, seed=config.seed)
    if is_main():
        write_jsonl(own_test(config.out), parts.test)  # ilcp measure asks these, unless it is told others
    return parts


def _require_batches(job: Job, network: Any) -> None:
    """Refuses, before the sender reads everything, batches that cannot be made or shared.

    Raises:
        ConfigError: with what to change.
    """
    wanted, cases = job.hyperparameters, len(job.cases.training)
    if wanted.forget:
        require_latent(network, wanted)
    sizes = {"contexts": wanted.contexts}
    sizes |= {"reader_contexts": wanted.reader_contexts} if job.models.adapter is not None else {}
    sizes |= {"facts_contexts": wanted.facts_contexts} if isinstance(network, FactNetwork) else {}
    for name, size in sizes.items():
        if size > cases:
            raise ConfigError(f"expected {name} of at most the {cases} cases to learn from, got {size}: lower it")
    require_share(wanted)


def _train(job: Job, network: Any, resume: bool) -> Result:
    config, models, cases = job.config, job.models, job.cases
    texts = [case.context for case in (*cases.training, *cases.validation)]
    store = StateStore(config.work / STATES, models, network.layers, job.hyperparameters, int(config.states_gb * GIGA))
    tell(f"{len(cases.training)} cases to learn from, {len(cases.validation)} to watch, {len(cases.test)} to measure")
    need = estimate(models, network, store, texts, config.work, job.hyperparameters) if is_main() else None
    tell(f"{need}; {length_text(job.hyperparameters, _before(job, network))}")
    reader = Reader(models, network.layers, job.hyperparameters, store)
    lengths = [len(case.context) for case in cases.training]  # tokens tell too much: they made batches alike in answers
    source = Shuffled(cases.training, lengths, config.seed)
    validator = _teacher(job, source, reader, resume)  # before the sender reads everything
    phrasebook = None
    if not isinstance(network, FactNetwork):
        phrasebook = kept_phrasebook(models, source, job.hyperparameters, config.work)
    if not has_checkpoint(config.work):
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


def _before(job: Job, network: Any) -> dict[str, Hyperparameters]:
    """Returns the hyperparameters of the stages before the codec is trained through the receiver, in words."""
    wanted = job.hyperparameters
    reads = job.models.adapter is not None and wanted.reader_share
    learns = isinstance(network, FactNetwork) and wanted.facts_steps
    stages = {"learning to read": reading_stage(wanted)} if reads else {}
    return stages | ({"learning facts": facts_stage(wanted)} if learns else {})


def _teacher(job: Job, source: Shuffled, reader: Reader, resume: bool) -> Validator:
    """Returns a validator that has heard the receiver read the full text, tuned for it where it is adapted.

    Raises:
        TrainingError: it reads too badly to teach a codec anything.
    """
    models, wanted, work = job.models, job.hyperparameters, job.config.work
    validator = Validator(models, job.cases.validation[: wanted.validation_contexts], wanted, reader)
    begun = has_checkpoint(work)
    if models.adapter is not None and wanted.reader_share and (not begun or tuned(work)):
        brought = tune(models, source, validator, wanted, work, resume=resume)
        if not begun and is_main():
            log = Log(work)
            log.forget_after(-1)  # a run that ended here said so already
            log.write({"step": 0, "reader": brought})
    else:
        with frozen(models):
            validator.read()
    tell(validator.said())
    if not begun:
        validator.require_teacher()
    return validator


def _left(job: Job) -> Hyperparameters:
    """Returns the hyperparameters with the minutes that the first stage left; it never has more than its share."""
    wanted, brought = job.hyperparameters, tuned(job.config.work)
    if brought is None or wanted.minutes == float("inf"):
        return wanted
    return replace(wanted, minutes=wanted.minutes - min(brought["minutes"], wanted.reader_share * wanted.minutes))
