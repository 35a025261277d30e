"""What a reader is given in place of a trace, to see what of it counts.

Each control changes keys and values of no position, ``"heads tokens head"`` of each layer, and nothing else: the prompt
that was read stays, unless its name says otherwise.
"""

import random
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ilcp.codec.keys_values import KeysValues
from ilcp.errors import ConfigError
from ilcp_codecs.trace.plan import chosen, step_places
from ilcp_codecs.trace.traces import Written

__all__ = ["CONTROLS", "changed"]

CONTROLS = ("shuffled steps", "another's steps", "zero steps", "no steps", "zero trace")


def changed(
    written: Written, steps: int, control: str, name: str = "", *, seed: int = 0, other: Written | None = None
) -> Written:
    """Returns a trace as a control has it.

    Args:
        steps: of each agent.
        name: of the case, or its text: what it is shuffled by, beside the seed.
        control: one of ``CONTROLS``. ``"shuffled steps"`` puts all agents' steps in another order, ``"another's
            steps"`` takes those of ``other``, ``"zero steps"`` makes them zero, ``"no steps"`` leaves them out (what
            was read behind them had seen them), ``"zero trace"`` makes all zero.

    Raises:
        ConfigError: there is no such control, no other trace, or a layer has a sliding window.
    """
    kv, places = written.kv, steps_of(written, steps)
    if any(kv.windows):
        raise ConfigError("expected a model without sliding windows to change the steps of, got one")
    match control:
        case "shuffled steps":
            order = random.Random(f"shuffled {seed} {name}").sample(places, len(places))
            return replace(written, kv=_put(kv, places, lambda each: each[:, order]))
        case "another's steps":
            if other is None:
                raise ConfigError("expected another trace to take steps of, got none")
            theirs = steps_of(other, steps)
            keys, values = ([each[:, theirs] for each in side] for side in (other.kv.keys, other.kv.values))
            return replace(written, kv=_filled(kv, places, keys, values))
        case "zero steps":
            return replace(written, kv=_put(kv, places, lambda each: torch.zeros_like(each[:, places])))
        case "no steps":
            left = [at for at in range(kv.tokens) if at not in {*places}]
            return replace(written, kv=chosen(kv, left))
        case "zero trace":
            zero = [[torch.zeros_like(each) for each in side] for side in (kv.keys, kv.values)]
            return replace(written, kv=replace(kv, keys=tuple(zero[0]), values=tuple(zero[1])))
    raise ConfigError(f"expected a control of {', '.join(CONTROLS)}, got {control!r}")


def steps_of(written: Written, steps: int) -> list[int]:
    """Returns the places of all steps."""
    return step_places(written.prompts, steps)


def _put(kv: KeysValues, places: list[int], made: Callable[[Tensor], Tensor]) -> KeysValues:
    keys, values = ([made(each) for each in side] for side in (kv.keys, kv.values))
    return _filled(kv, places, keys, values)


def _filled(kv: KeysValues, places: list[int], keys: list[Tensor], values: list[Tensor]) -> KeysValues:
    sides = []
    for side, new in ((kv.keys, keys), (kv.values, values)):
        copies = [each.clone() for each in side]
        for copy, each in zip(copies, new, strict=True):
            copy[:, places] = each
        sides.append(tuple(copies))
    return replace(kv, keys=sides[0], values=sides[1])
