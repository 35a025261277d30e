"""The codec that a training makes: by its name in the recipe, or the one for such cases."""

from collections.abc import Sequence
from typing import Any

from ilcp.codec.protocols import is_trainable
from ilcp.codec.registry import codec_class
from ilcp.errors import ConfigError
from ilcp.records import refuse_unknown
from ilcp.tasks.cases import Case
from ilcp.training.batch import Models
from ilcp.training.config import TrainingConfig
from ilcp.training.facts import topics_of

__all__ = ["chosen", "learns_facts", "untrained"]

FACTS, ANYTHING = "facts", "vae"  # the codecs for questions that come again, and for whatever else


def chosen(config: TrainingConfig, cases: Sequence[Case]) -> Any:
    """Returns the class of the codec: by name, or else the one for such cases.

    Raises:
        ConfigError: there is none of that name, it does not learn, or has no such setting.
    """
    name = config.codec.get("name") or _usual(config, cases)
    method = codec_class(name)
    if not is_trainable(method):
        raise ConfigError(f"expected a codec that learns, got {name!r}, which has nothing to train: use it as it is")
    refuse_unknown(settings(config), method.settings(), "[codec]")
    return method


def _usual(config: TrainingConfig, cases: Sequence[Case]) -> str:
    """Returns the codec for such cases; a recipe that sets what only the other one has means that."""
    facts, anything = (set(codec_class(name).settings()) for name in (FACTS, ANYTHING))
    given = settings(config).keys()
    return FACTS if topics_of(cases) and (given <= facts or not given <= anything) else ANYTHING


def learns_facts(method: Any) -> bool:
    """Says whether the training cases decide the shape of such a codec: it has ``untrained_for``."""
    return hasattr(method, "untrained_for")


def untrained(method: Any, config: TrainingConfig, models: Models, cases: Sequence[Case]) -> Any:
    """Returns the network before it is trained.

    Raises:
        ConfigError: the settings contradict each other, the models or the cases.
    """
    if learns_facts(method):
        return method.untrained_for(models, settings(config), cases)
    return method.untrained(models.sender, models.receiver, settings(config))


def settings(config: TrainingConfig) -> dict[str, Any]:
    """Returns what the recipe sets of the codec, without its name."""
    given = {name: value for name, value in config.codec.items() if name != "name"}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
