"""A task by its name: the embedded case files, or a file of your own."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from ilcp.errors import ConfigError
from ilcp.tasks.case_files import case_files
from ilcp.tasks.cases import Case, read_jsonl, thin
from ilcp.tasks.written import merged

__all__ = ["CASE_FILES", "RUN", "Task", "own_test", "task"]

CASE_FILES = "case-files"
RUN, TEST = ".run", "test.jsonl"  # of a training: its folder beside the codec's, and the cases there that it tested on
PER_KIND = {"lookup": 4, "join": 3, "absent": 2, "code": 1}  # questions asked per dossier: a part stands for the rest
USUAL = 500  # cases of a measurement, where nobody says how many
SAMPLES = 4000  # dossiers of the training split that a text codec's dictionary may be fitted to


@dataclass(frozen=True)
class Task:
    """Cases to measure, whether their answers end, and texts of the same kind that no case is made of."""

    name: str
    cases: tuple[Case, ...]
    answers_end: bool
    samples: Callable[[], Iterable[str]] = field(repr=False, default=tuple)


def own_test(codec: str | Path) -> Path:
    """Names the file of the cases that the training of the codec in this folder kept apart, to measure it on."""
    folder = Path(codec).absolute()
    return folder.with_name(folder.name + RUN) / TEST


def task(name: str, *, n: int | None, seed: int, samples: str | Path | None = None) -> Task:
    """Loads ``n`` cases of ``"case-files"`` (test split of that seed), or the first ``n`` of a JSONL file.

    Without ``n``, 500 of them, or as many as the file has. Lines about one context are one case.

    Args:
        samples: a JSONL file of other cases, whose texts are like those of these; case files bring their own.

    Raises:
        ConfigError: a file cannot be read, has fewer cases, or mixes questions and continuations; or a sample is the
            text of a case.
    """
    found = _task(name, n, seed)
    if samples is None:
        return found
    texts = tuple(dict.fromkeys(case.context for case in read_jsonl(samples)))
    if not texts:
        raise ConfigError(f"expected cases in {samples}, got none: a dictionary, or a codec, is fitted to their texts")
    if asked := {case.context for case in found.cases} & {*texts}:
        raise ConfigError(
            f"expected samples that are no text of {name}, got {len(asked)} in {samples}: what is fitted to the very "
            "texts that it is measured on proves nothing"
        )
    return replace(found, samples=lambda: texts)


def _task(name: str, n: int | None, seed: int) -> Task:
    wanted = n
    n = USUAL if n is None else n
    if n < 2:
        raise ConfigError(f"expected n to be at least 2 (another case's message is a control), got {n}")
    if name == CASE_FILES:
        cases = [thin(case, PER_KIND, number) for number, case in enumerate(case_files("test", seed, n))]
        return Task(name, tuple(cases), True, lambda: (c.context for c in case_files("train", seed, SAMPLES)))
    cases = merged(read_jsonl(name))[:n]
    least = 2 if wanted is None else n
    if len(cases) < least:
        way_out = "add cases" if wanted is None else "lower n"
        raise ConfigError(f"expected at least n={least} cases in {name}, got {len(cases)}: {way_out}")
    answers_end = {bool(question.text) for case in cases for question in case.questions}
    if len(answers_end) > 1:
        raise ConfigError(f"expected either questions or continuations in {name}, got both: measure them apart")
    return Task(Path(name).name, tuple(cases), answers_end.pop())
