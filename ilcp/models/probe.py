"""What a model makes of one fixed sentence: it tells configurations apart that the weights do not, such as another base
of the rotary positions, epsilon of a norm, activation, or a window of attention that is shorter than the sentence.

The configuration itself is not compared: its keys change from release to release of transformers, and many of them
decide nothing.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ilcp.identity import LARGEST
from ilcp.models.adapter import unwrapped
from ilcp.models.prompt import continuation
from ilcp.models.reading import backbone, depth, read_ids, reading
from ilcp.models.state import PLAIN, saved_state
from ilcp.models.support import forward_takes
from ilcp.nn.inference import inference

__all__ = ["heard", "sentence_states"]

SENTENCE = (
    "The lift was stopped on Tuesday at 9:40, and the engineer, who had been called from Leeds, found two worn cables; "
    "she asked for new ones, wrote down what each would cost, and left the key with the porter until the part arrives."
)
TOKENS = 48
NUMBERS = 32
PACKED = (torch.int8, torch.uint8, torch.int32)


def sentence_states(model: Any, tokenizer: Any) -> str:
    """Returns numbers from the last layer's state of the sentence's last token, in the model's own precision.

    Empty where they are not to be had: the model's layers are not found, which a receiver may do without, its tokenizer
    has no such words, a state is not finite or too large to be kept. Empty, too, where weights are quantised: a step
    more or less in what is rounded between the layers makes other numbers of the same model.
    """
    quantised = any(map(_is_quantised, saved_state(model).values()))
    return "" if quantised else _numbers(_state, model, tokenizer)


def heard(model: Any, tokenizer: Any) -> tuple[str, str]:
    """Returns numbers of the last state and of the logits behind it, to be compared in this process: of quantised
    models too, which here round alike. Each is empty where it is not to be had."""
    return _numbers(_state, model, tokenizer), _numbers(_logits, model, tokenizer)


def _numbers(read: Callable[[Any, Sequence[int]], Tensor], model: Any, tokenizer: Any) -> str:
    try:
        ids = continuation(tokenizer, SENTENCE)[0][:TOKENS]
        with torch.autocast(model.device.type, enabled=False):
            found = read(model, ids).tolist()
    except Exception:  # whatever a model of any family may raise: what cannot be used is refused elsewhere, and by name
        return ""
    chosen = [found[place * len(found) // NUMBERS] for place in range(NUMBERS)]
    return " ".join(f"{value:.5g}" for value in chosen) if all(abs(value) < LARGEST for value in chosen) else ""


def _state(model: Any, ids: Sequence[int]) -> Tensor:
    return read_ids(model, ids, [depth(backbone(model))])[0][0, -1]


@inference(unwrapped)
def _logits(model: Any, ids: Sequence[int]) -> Tensor:
    row = torch.tensor([list(ids)], device=model.device)
    places = {"position_ids": torch.arange(len(ids), device=model.device)[None]}
    given = {"attention_mask": torch.ones_like(row)} | (places if forward_takes(model, "position_ids") else {})
    with reading(object()):  # it is no call that a capture waits for
        logits: Tensor = model(input_ids=row, **given).logits[0, -1]
    return logits


def _is_quantised(value: Any) -> bool:
    """Says whether something that a module saves is packed, or a matrix of whole numbers (a mask has one bit each)."""
    return type(value) not in PLAIN or (value.dtype in PACKED and value.ndim > 1)
