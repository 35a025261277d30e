"""A pipeline of writers: who they are, how many steps they take by which rule, and what of it is handed over."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from ilcp.codec.keys_values import KeysValues
from ilcp.errors import ConfigError
from ilcp.records import read_record
from ilcp_codecs.trace.rules import RULES, Rule
from ilcp_codecs.trace.trace import MAX_ROLE, MAX_SEGMENTS, MAX_STEPS
from ilcp_codecs.trace.writer import RULE, STEPS, TEXT_HERE, Writer

__all__ = ["KEEPS", "Plan", "chosen", "step_places"]

KEEPS = ("all", "steps")


@dataclass(frozen=True, slots=True)
class Plan:
    """A pipeline of writers over one model.

    ``agents`` are their roles, in turn; a text is cut into as many parts, and each reads its own behind those before.
    ``keep`` is what the reader gets: ``"all"``, or the ``"steps"`` alone, without the prompts' keys and values.

    Raises:
        ConfigError: a field is not as that says.
    """

    agents: tuple[str, ...] = ("first", "second")
    steps: int = STEPS
    rule: str = RULE
    prompt: str = TEXT_HERE
    keep: str = "all"

    def __post_init__(self) -> None:
        agents: Any = self.agents
        if not isinstance(agents, list | tuple) or not all(isinstance(role, str) for role in agents):
            raise ConfigError(f"expected agents as a tuple of roles, such as ('planner', 'critic'), got {agents!r}")
        object.__setattr__(self, "agents", tuple(agents))
        if not 1 <= len(self.agents) <= MAX_SEGMENTS or not all(
            0 < len(role) <= MAX_ROLE and role.isprintable() for role in self.agents
        ):
            raise ConfigError(
                f"expected agents as 1 to {MAX_SEGMENTS} roles of at most {MAX_ROLE} printable characters, got "
                f"{str(self.agents)[:80]}"
            )
        if type(self.steps) is not int or not 0 <= self.steps <= MAX_STEPS:
            raise ConfigError(f"expected 0 to {MAX_STEPS} steps, got {self.steps!r}")
        if self.rule not in RULES:
            raise ConfigError(f"expected a rule of {', '.join(RULES)}, got {self.rule!r}")
        if str(self.prompt).count(TEXT_HERE) != 1:
            raise ConfigError(f"expected a prompt with {TEXT_HERE} in it once, got {self.prompt!r}")
        if self.keep not in KEEPS or (self.keep == "steps" and not self.steps):
            got = f"{self.keep!r} and {self.steps} steps"
            raise ConfigError(f"expected to keep 'all', or 'steps' where there are some, got {got}: say how many")

    @classmethod
    def from_dict(cls, record: Mapping[str, Any], where: str) -> Self:
        """Reads the plan that ``to_dict`` wrote; raises ``ConfigError`` where it is none."""
        return read_record(cls, record, where)

    def to_dict(self) -> dict[str, Any]:
        """Returns the plan as JSON takes it."""
        return asdict(self) | {"agents": list(self.agents)}

    def writers(self, model: Any, tokenizer: Any, rule: Rule | None = None) -> list[Writer]:
        """Returns the agents; raises as ``Writer``."""
        shared = rule or Rule(self.rule, model)
        return [
            Writer(model, tokenizer, role=role, steps=self.steps, rule=shared, prompt=self.prompt)
            for role in self.agents
        ]

    def kept(self, kv: KeysValues, tokens: list[int]) -> KeysValues:
        """Returns what is handed over of keys and values of no position.

        Args:
            tokens: of each agent's prompt.

        Raises:
            ConfigError: of a model with sliding windows, the steps alone are wanted.
        """
        if self.keep == "all":
            return kv
        if kv.tokens == sum(tokens):  # a control left the steps out: there is nothing to hand over
            return chosen(kv, [])
        return chosen(kv, step_places(tokens, self.steps))


def step_places(prompts: Sequence[int], steps: int) -> list[int]:
    """Returns the places of all steps, where each agent read so many tokens and took ``steps``."""
    places, at = list[int](), 0
    for own in prompts:
        places += range(at + own, at + own + steps)
        at += own + steps
    return places


def chosen(kv: KeysValues, places: list[int]) -> KeysValues:
    """Returns keys and values of some places, of no position, one behind the other.

    Raises:
        ConfigError: a layer has a sliding window, which does not hold them all.
    """
    if any(kv.windows):
        raise ConfigError("expected a model without sliding windows to hand over the steps alone, got one: keep all")
    kv = kv.at(None)
    keys, values = (tuple(each[:, places] for each in side) for side in (kv.keys, kv.values))
    return KeysValues(keys, values, len(places), None, kv.ropes, kv.windows)
