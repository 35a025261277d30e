"""What goes into a hand-off: the text a sender has read and the states it has computed.

Capture, with shapes::

    text --tokenizer--> ids --windows--> model --hidden states of chosen layers--> states "layers tokens hidden"

A text longer than the model's window is read in overlapping windows; of each overlap the later window keeps the second
half, so that every token is captured once and (but for the first tokens of the text) with at least that much context.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ilcp.errors import EncodeError

__all__ = ["Context", "capture_batch", "read_ids", "read_outputs", "window_tokens"]

OVERLAP_SHARE = 4  # windows overlap by a quarter: half of it is context only, half is kept
FALLBACK_WINDOW_TOKENS = 2048  # for a configuration that states no limit


@dataclass(frozen=True)
class Context:
    """What the sender has read and computed.

    ``states`` is ``"layers tokens hidden"`` float32, or None where the codec reads text only; ``text`` is None where
    only ids or states were given; ``windows`` says in how many passes the text was read.
    """

    text: str | None = None
    states: Tensor | None = None
    windows: int = 1

    @property
    def tokens(self) -> int:
        """How many tokens were captured; 0 where no states were."""
        return 0 if self.states is None else self.states.shape[1]


def window_tokens(model: Any) -> int:
    """How many tokens ``model`` can read at once, by its configuration."""
    limit = getattr(model.config, "max_position_embeddings", None)
    return int(limit) if limit else FALLBACK_WINDOW_TOKENS


@torch.no_grad()
def capture_batch(model: Any, ids: Tensor, mask: Tensor, layers: Sequence[int]) -> Tensor:
    """Hidden states ``"batch layers tokens hidden"`` in float32 of one forward pass; layer 0 is the embedding.

    ``ids`` and ``mask`` are ``"batch tokens"``, padded on the right.
    """
    outputs = getattr(model, "base_model", model)(input_ids=ids, attention_mask=mask, output_hidden_states=True)
    return torch.stack([outputs.hidden_states[layer] for layer in layers], dim=1).float()


def read_ids(model: Any, ids: Sequence[int], layers: Sequence[int]) -> tuple[Tensor, int]:
    """States ``"layers tokens hidden"`` of a token sequence of any length, and the number of windows it took.

    Raises:
        EncodeError: there are no ids, or an id is none of the model's.
    """
    vocabulary = model.get_input_embeddings().num_embeddings
    if len(ids) == 0:
        raise EncodeError("expected at least one token, got none: there is nothing to hand off")
    if min(ids) < 0 or max(ids) >= vocabulary:
        raise EncodeError(
            f"expected token ids from 0 to {vocabulary - 1}, got {min(ids)} to {max(ids)}: "
            "the tokenizer does not belong to this model"
        )
    window = window_tokens(model)
    overlap = window // OVERLAP_SHARE
    pieces, start = [], 0
    while True:
        row = torch.tensor([ids[start : start + window]], device=model.device)
        states = capture_batch(model, row, torch.ones_like(row), layers)[0]
        pieces.append(states if start == 0 else states[:, overlap // 2 :])
        if start + window >= len(ids):
            return torch.cat(pieces, dim=1), len(pieces)
        pieces[-1] = pieces[-1][:, : -(overlap - overlap // 2)]
        start += window - overlap


def read_outputs(outputs: Any, layers: Sequence[int]) -> Tensor:
    """States ``"layers tokens hidden"`` out of a finished ``forward`` or ``generate`` call: no second pass.

    Raises:
        EncodeError: the call was made without ``output_hidden_states=True``, or for more than one sequence.
    """
    hidden = getattr(outputs, "hidden_states", None)
    if not hidden:
        raise EncodeError(
            f"expected model outputs with hidden states, got {type(outputs).__name__} without them: "
            "call forward or generate with output_hidden_states=True (and return_dict_in_generate=True)"
        )
    steps = [hidden] if isinstance(hidden[0], Tensor) else list(hidden)
    if steps[0][0].shape[0] != 1:
        raise EncodeError(
            f"expected the outputs of one sequence, got a batch of {steps[0][0].shape[0]}: encode row by row"
        )
    if max(layers) >= len(steps[0]):
        raise EncodeError(
            f"expected the states of layer {max(layers)}, got {len(steps[0])} layers: not this codec's sender"
        )
    return torch.stack([torch.cat([step[layer][0] for step in steps]) for layer in layers]).float()
