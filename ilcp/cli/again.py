"""``ilcp measure --again``: the cases of a codec's evidence once more, and whether it still holds."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ilcp.cli.common import EMBEDDED, out
from ilcp.errors import ConfigError, UnmeasuredError
from ilcp.evidence import Evidence

if TYPE_CHECKING:
    from ilcp.measure import Report

__all__ = ["Before", "as_before"]


@dataclass(frozen=True)
class Before:
    """What a codec was measured to be worth, and the cases of then."""

    evidence: Evidence
    task: str | None

    @property
    def cases(self) -> tuple[str | None, int, int]:
        """The task, how many cases, and their seed."""
        return self.task, self.evidence.n, self.evidence.seed

    def compared(self, report: "Report") -> None:
        """Says what was measured now beside what was then.

        Raises:
            UnmeasuredError: the content gain is no longer within the interval of then.
        """
        was, found = self.evidence, report.evidence()
        when = (
            time.strftime("%d %B %Y", time.gmtime(was.measured_unix_s)) if was.measured_unix_s else "at no known time"
        )
        with_release = f"transformers {was.transformers}" if was.transformers else "an unknown release of transformers"
        interval = "" if was.low is None or was.high is None else f" [{was.low:.3f}, {was.high:.3f}]"
        then = f"{was.content_gain:.3f}{interval}, {when} with {with_release}"
        low, high = (was.low, was.high) if interval else (was.content_gain, was.content_gain)
        if low is None or high is None or not low <= found.content_gain <= high:
            raise UnmeasuredError(
                f"expected a content gain as in the evidence ({then}), got {found.content_gain:.3f}: models, codec or "
                "their packages have changed; use the ones of then, or train anew. --attach replaces the evidence"
            )
        out.print(f"as before: content gain {found.content_gain:.3f}, then {then}", highlight=False, soft_wrap=True)


def as_before(codecs: Sequence[str], task: str | None, n: int | None) -> Before:
    """Returns the evidence of the one codec that is to be measured again.

    Raises:
        ConfigError: there are several, it has none, or the cases named are others.
        StorageError, UnmeasuredError: the folder is damaged, or its evidence is.
    """
    from ilcp.codec.folder import evidence_of
    from ilcp.embedded import HERE
    from ilcp.tasks.load import CASE_FILES

    if len(codecs) != 1:
        raise ConfigError(f"expected one codec to measure --again, got {len(codecs)}: measure them one by one")
    folder = HERE / "codec" if codecs[0] == EMBEDDED else Path(codecs[0])
    evidence = evidence_of(folder)
    if evidence is None:
        raise ConfigError(f"expected a codec that was measured, got {codecs[0]}, which was not: leave --again out")
    name = evidence.task.split(" (trained on")[0]
    if (task is not None and os.path.basename(task) != name) or n not in (None, evidence.n):
        raise ConfigError(f"expected the {evidence.n} cases of {name} for --again, got others: name that file, or none")
    return Before(evidence, CASE_FILES if name == CASE_FILES else task)
