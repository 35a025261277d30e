"""What one ``generate`` does to a model: the calls that it makes of the backbone, and where its rows end.

Every call is a *piece*; the pieces of one ``generate`` make a *turn*, and so does a call outside of any. Only of a
``generate`` is it known what was generated, and where a row had ended while the others went on.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ilcp.errors import EncodeError
from ilcp.models.reading import Writer

__all__ = ["UNKNOWN", "ForwardCall", "GenerateCall", "begins", "new_generate_call"]

UNKNOWN = -1  # the id of what was fed as an embedding

# Ways to generate that run the model over other rows or tokens than those of the text they return.
BRANCHING = {
    "assistant_model": "assisted generation",
    "prompt_lookup_num_tokens": "prompt lookup",
    "assistant_early_exit": "assisted generation",
    "use_mtp": "assisted generation",
    "penalty_alpha": "contrastive search",
    "constraints": "constrained beam search",
    "force_words_ids": "constrained beam search",
    "custom_generate": "a loop of its own",
}


@dataclass(slots=True)
class ForwardCall:
    """One call of the backbone; ``past`` says how many tokens its KV cache held, UNKNOWN where that does not say."""

    ids: Tensor
    mask: Tensor
    past: int
    write: Writer


@dataclass(slots=True)
class GenerateCall:
    """The pieces of one ``generate``, or one call outside of any; ``ends`` are the tokens that end a row.

    ``first_tokens`` is how many the first call read; ``generated`` is how many tokens at the end were generated, in the
    longest row.
    """

    ends: frozenset[int] = frozenset()
    pad: int | None = None
    pieces: list[ForwardCall] = field(default_factory=list)
    first_tokens: int = 0
    generated: int = 0

    def add(self, piece: ForwardCall) -> None:
        """Takes the next call of a ``generate``."""
        self.first_tokens = self.first_tokens or piece.ids.shape[1]
        if self.pieces and not piece.past:  # generated without a cache: each step reads everything again
            if not begins(piece.ids, [known.ids for known in self.pieces]):
                raise EncodeError(
                    "expected each step of a generate to continue the one before, got one that reads other tokens: "
                    "this way to generate cannot be captured; generate first, then encode the text"
                )
            self.pieces.clear()
        self.pieces.append(piece)

    def finish(self, result: Any, given: dict[str, Any]) -> None:
        """Tells what was generated from the prompt: a step feeds one token, and what more was fed is prompt.

        Raises:
            EncodeError: the result has tokens that no call was seen to read.
        """
        sizes = [piece.ids.shape[1] for piece in self.pieces]
        sequences = getattr(result, "sequences", result)
        length = sequences.shape[1] if isinstance(sequences, Tensor) and sequences.ndim == 2 else None
        if not sizes:
            return
        past, fed = self.pieces[0].past, sum(sizes)
        by_ids = past != UNKNOWN and bool((self.pieces[0].ids != UNKNOWN).all())
        if by_ids and length is not None and past + fed < length - 1:  # the last one is not fed back
            raise EncodeError(
                f"expected the states of {length - 1} tokens from this generate, got {past + fed}: the others ran "
                "past the capture, as in a model compiled by torch.compile (or by a static cache); do not compile"
            )
        if len(sizes) == 1:
            self.generated = fed - self.first_tokens
            return
        chunks = max((place + 1 for place, size in enumerate(sizes) if size > 1), default=1)
        self.generated = sum(sizes[chunks:])
        ids = next((given[name] for name in ("inputs", "input_ids") if isinstance(given.get(name), Tensor)), None)
        if length is not None and ids is not None and (chunks > 1 or sizes[0] == 1):  # a last chunk of one token
            self.generated = max(0, min(self.generated, length - ids.shape[1] - 1))

    def kept(self) -> Tensor:
        """Which tokens are a row's own, ``"rows tokens"``: no padding, nothing from the row's end on."""
        mask = torch.cat([piece.mask for piece in self.pieces], dim=1).cpu()
        prompt_tokens = mask.shape[1] - self.generated
        for row, ids in enumerate(self.ids()[:, prompt_tokens:].tolist()):
            mask[row, prompt_tokens + self._end(ids, alone=len(mask) == 1) :] = False
        return mask

    def ids(self) -> Tensor:
        """``"rows tokens"``."""
        return torch.cat([piece.ids for piece in self.pieces], dim=1).cpu()

    def _end(self, ids: list[int], alone: bool) -> int:
        end = next((place for place, token in enumerate(ids) if token in self.ends), len(ids))
        while end and not alone and ids[end - 1] == self.pad:  # ended by something else, such as a stop string
            end -= 1
        return end


def new_generate_call(given: dict[str, Any], model: Any) -> GenerateCall:
    """What the settings of a ``generate`` say about its rows, as transformers looks them up."""
    sources = (given.get("generation_config"), getattr(model, "generation_config", None))

    def setting(name: str) -> Any:
        found = (given.get(name), *(getattr(source, name, None) for source in sources))
        return next((value for value in found if value is not None), None)

    said = [why for name, why in BRANCHING.items() if setting(name)]
    said += ["beam search"] if (setting("num_beams") or 1) > 1 else []
    said += ["classifier-free guidance"] if (setting("guidance_scale") or 1) != 1 else []
    if said:
        raise EncodeError(
            f"expected greedy search or sampling inside `with sender.capture()`, got {said[-1]}: it runs the model "
            "over rows or tokens that are not in its answer; generate first, then encode the text"
        )
    ends = setting("eos_token_id")
    listed = torch.as_tensor([] if ends is None else ends).reshape(-1).long().tolist()
    pad = setting("pad_token_id")
    return GenerateCall(frozenset(listed), int(pad) if pad is not None else next(iter(listed), None))


def begins(ids: Tensor, known: list[Tensor]) -> bool:
    """Whether ``ids`` ``"rows tokens"`` begin with the known pieces; what was fed as embeddings begins nothing."""
    read = torch.cat(known, dim=1).to(ids.device)
    return bool((read != UNKNOWN).all()) and torch.equal(ids[:, : read.shape[1]], read)
