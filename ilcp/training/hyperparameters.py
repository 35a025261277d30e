"""The numbers that decide a training run: frozen, saved beside the weights they made."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import ilcp.records
from ilcp.errors import ConfigError

__all__ = ["FACTS_STEPS", "Hyperparameters", "renamed"]

RENAMED = {"close_answers": "answers_end"}  # in recipes and checkpoints of before
WEIGHTS = (
    "cross_entropy_weight",
    "kl_weight",
    "reconstruction_weight",
    "alignment_weight",
    "rate_weight",
    "reader_weight",
    "facts_weight",
    "forget_weight",
    "weight_decay",
)


FACTS_STEPS = 3000


@dataclass(frozen=True, slots=True)
class Hyperparameters:
    """Every number of a run. The schedule ends after ``steps`` or ``minutes``, whichever is sooner."""

    steps: int
    minutes: float = float("inf")
    contexts: int = 16  # per step
    questions: int = 8  # per context, drawn at random
    per_kind: Mapping[str, int] = field(default_factory=dict)  # at most so many of a kind, where it is named
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    weight_decay: float = 0.01
    cross_entropy_weight: float = 1.0  # of the answers
    kl_weight: float = 0.0  # KL to the same receiver reading the full text, on one question per context
    reconstruction_weight: float = 0.0  # of the cross-entropy of the context's own beginning, early in the run
    reconstruction_share: float = 0.3  # of the run that is early
    reconstruction_tokens: int = 48  # of the receiver's: how much of the beginning
    alignment_weight: float = 0.0  # of the share of the phrasebook's memory that is missing
    naming_steps: int = 0  # the first steps: memory vectors learn to name their topics' answers, nothing else
    alignment_steps: int = 0  # the steps after them: the alignment alone, still without a pass through the receiver
    topics: tuple[str, ...] = ()  # in the order of the memory vectors that are aligned to them
    facts_steps: int = (
        FACTS_STEPS  # of a codec that learns facts: so many steps teach it what was said, before the receiver
    )
    facts_share: float = 0.5  # of ``minutes`` that they take at most
    facts_contexts: int = 16  # per step of theirs
    facts_learning_rate: float = 1e-3
    facts_weight: float = 0.3  # of the same lesson, while it is trained through the receiver
    forget: tuple[
        str, ...
    ] = ()  # topics that a message is not to tell: their questions are answered as if the text did
    # not say it, and an adversary that looks for their values in the latent is driven to chance
    forget_values: Mapping[str, tuple[str, ...]] = field(
        default_factory=dict
    )  # all of each topic; ilcp train finds them
    forget_answer: str = "not said"  # as the data answer questions of the kind "absent"
    forget_weight: float = 1.0  # of the nats by which the adversary, a topic, knows more than how often a value is said
    forget_learning_rate: float = 3e-3  # of the adversary: faster than the codec, or it is outrun and proves nothing
    rate_weight: float = 0.0  # nats of loss per bit of rate that is not free
    free_bits: tuple[float, float] = (0.0, 0.0)  # free at the start and at the end, a straight line between: two equal
    # numbers are free bits, rising ones a capacity schedule
    blank_share: float = 0.125  # contexts that get a payload no sender made; their target is the no-message answer
    literals_share: float = (
        0.0  # of the contexts whose literals (``ilcp.message.literals.auto``) stand beside the memory
    )
    telling_share: float = 0.0  # of the contexts that are also asked to say what they say (``ilcp.tasks.telling``)
    telling_tokens: int = 160  # of what they say is learned
    answers_end: bool = True  # an answer ends with the end-of-sequence token; a continuation does not
    answer_tokens: int = 256  # what is beyond is not learned
    teacher_floor: float = 0.3  # exact match that the receiver must reach with the full text before the codec is
    # trained, and after a first stage; of continuations, which nobody gives word for word, it asks nothing
    validate_every: int = 250
    validation_contexts: int = 32
    patience: int = 0  # validations without a better recovery until the run ends with the best weights; 0: never
    collapse_after: float = 1.0  # share of the run after which the message has to say more than another case's
    checkpoint_minutes: float = 10.0
    reader_share: float = 0.2  # a receiver that is adapted learns to read the full text first: at most this share of
    # ``minutes``, and as many steps as this share of ``steps``, beside them; it ends sooner where it gets no better
    reader_contexts: int = 4  # per step of that first stage
    reader_learning_rate: float = 5e-4
    adapter_after: float = 0.5  # share of the run after which the adapter is trained along with the codec; 1: never
    adapter_learning_rate: float = 1e-4  # from then on
    reader_weight: float = 0.5  # of the cross-entropy behind the full text, from then on: it goes on reading
    bfloat16: bool | None = None  # autocast of the models' passes, not of the weights; None: where it is faster
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (
            ("steps", 1),
            ("contexts", 2),
            ("reader_contexts", 1),
            ("facts_contexts", 2),
            ("facts_steps", 0),
            ("questions", 1),
            ("validate_every", 1),
            ("validation_contexts", 2),
            ("answer_tokens", 1),
            ("telling_tokens", 1),
            ("reconstruction_tokens", 1),
            ("patience", 0),
            ("warmup_steps", 0),
        ):
            if getattr(self, name) < least:
                raise ConfigError(f"expected {name} to be at least {least}, got {getattr(self, name)}")
        kinds = ("", "facts_", "reader_", "adapter_", "forget_")
        for name in ("minutes", *(f"{kind}learning_rate" for kind in kinds), "checkpoint_minutes"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"expected {name} to be positive, got {getattr(self, name)}")
        for name in ("reconstruction_share", "collapse_after", "literals_share", "telling_share", "adapter_after"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"expected {name} from 0 to 1, got {getattr(self, name)}")
        for name in WEIGHTS:
            if not getattr(self, name) >= 0:
                raise ConfigError(f"expected {name} to be 0 or more, got {getattr(self, name)}")
        if any(most < 1 for most in self.per_kind.values()):
            raise ConfigError(f"expected per_kind to be at least 1 where a kind is named, got {dict(self.per_kind)}")
        if not (self.cross_entropy_weight or self.kl_weight):
            raise ConfigError(
                "expected cross_entropy_weight or kl_weight above 0, got 0 for both: nothing would be learned"
            )
        if (self.naming_steps or self.alignment_steps or self.alignment_weight) and not self.topics:
            raise ConfigError("expected topics for naming_steps, alignment_steps or alignment_weight, got none")
        if self.forget:
            self._require_forgetting()
        for name in ("blank_share", "reader_share", "facts_share"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"expected {name} from 0 to below 1, got {getattr(self, name)}")

    def _require_forgetting(self) -> None:
        if self.reconstruction_weight or self.literals_share:
            raise ConfigError(
                f"expected neither reconstruction_weight nor literals_share beside forget, got "
                f"{self.reconstruction_weight} and {self.literals_share}: both give the text back word for word"
            )
        if not self.forget_answer:
            raise ConfigError("expected forget_answer as the data say that a text does not say it, got none")

    def free_bits_at(self, done: float) -> float:
        """Returns how many bits of rate cost nothing when the share ``done`` of the run is over."""
        start, end = self.free_bits
        return start + (end - start) * min(1.0, done)

    def blanks(self, contexts: int) -> int:
        """Returns how many of so many contexts, the first ones, get a payload that no sender made."""
        return round(self.blank_share * contexts)

    def adapts_at(self, done: float) -> bool:
        """Says whether the adapter, if there is one, is trained along then."""
        return self.adapter_after <= done < 1

    def reconstructs_at(self, done: float) -> bool:
        """Says whether the loss still holds the reconstruction of the context then."""
        return self.reconstruction_weight > 0 and done < self.reconstruction_share

    def to_dict(self) -> dict[str, Any]:
        """Returns all fields as JSON takes them; an endless ``minutes`` is None."""
        record = asdict(self)
        return record | {"minutes": None if record["minutes"] == float("inf") else record["minutes"]}


def renamed(record: Mapping[str, Any]) -> dict[str, Any]:
    """Returns hyperparameters under the names that they have now; raises as ``ilcp.records.renamed``."""
    return ilcp.records.renamed(record, RENAMED, "the hyperparameters")
