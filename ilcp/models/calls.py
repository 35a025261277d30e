"""Records of the calls of a model: each forward call of the backbone, and the ``generate`` calls that made them.

A forward call outside of any ``generate`` counts as a ``GenerateCall`` of its own, which generated nothing. Only a
``generate`` tells which tokens were generated, and where a row had ended while the others went on.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ilcp.errors import EncodeError
from ilcp.models.reading import Writer

__all__ = ["UNKNOWN", "ForwardCall", "GenerateCall", "new_generate_call", "starts_with"]

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
    """One call of the backbone, with ids and mask ``"rows tokens"``.

    ``past`` says how many tokens its KV cache held; UNKNOWN where the cache does not say.
    """

    ids: Tensor
    mask: Tensor
    past: int
    writer: Writer


@dataclass(slots=True)
class GenerateCall:
    """The forward calls of one ``generate``, or one forward call outside of any.

    ``end_ids`` are the tokens that end a row. ``first_tokens`` is how many the first call read; ``generated`` is how
    many tokens at the end were generated, in the longest row.
    """

    end_ids: frozenset[int] = frozenset()
    pad_id: int | None = None
    calls: list[ForwardCall] = field(default_factory=list)
    first_tokens: int = 0
    generated: int = 0

    def add(self, call: ForwardCall) -> None:
        """Adds the next forward call.

        Raises:
            EncodeError: it reads everything again, and other tokens than before.
        """
        self.first_tokens = self.first_tokens or call.ids.shape[1]
        if self.calls and not call.past:  # generated without a cache: each step reads everything again
            if not starts_with(call.ids, [known.ids for known in self.calls]):
                raise EncodeError(
                    "expected each step of a generate to continue the one before, got one that reads other tokens: "
                    "this way to generate cannot be captured; generate first, then encode the text"
                )
            self.calls.clear()
        self.calls.append(call)

    def finish(self, result: Any, given: dict[str, Any]) -> None:
        """Tells generated tokens from the prompt's: a step feeds one token, and what more was fed is prompt.

        Raises:
            EncodeError: the result has tokens that no call was seen to read.
        """
        sizes = [call.ids.shape[1] for call in self.calls]
        sequences = getattr(result, "sequences", result)
        length = sequences.shape[1] if isinstance(sequences, Tensor) and sequences.ndim == 2 else None
        if not sizes:
            return
        past, fed = self.calls[0].past, sum(sizes)
        by_ids = past != UNKNOWN and bool((self.calls[0].ids != UNKNOWN).all())
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
        """Returns the mask ``"rows tokens"`` of what is a row's own: no padding, nothing from the row's end on."""
        mask = torch.cat([call.mask for call in self.calls], dim=1).cpu()
        prompt_tokens = mask.shape[1] - self.generated
        for row, ids in enumerate(self.ids()[:, prompt_tokens:].tolist()):
            mask[row, prompt_tokens + self._end(ids, alone=len(mask) == 1) :] = False
        return mask

    def ids(self) -> Tensor:
        """Returns the ids that were read, ``"rows tokens"``."""
        return torch.cat([call.ids for call in self.calls], dim=1).cpu()

    def _end(self, ids: list[int], alone: bool) -> int:
        end = next((place for place, token in enumerate(ids) if token in self.end_ids), len(ids))
        while end and not alone and ids[end - 1] == self.pad_id:  # ended by something else, such as a stop string
            end -= 1
        return end


def new_generate_call(given: dict[str, Any], model: Any) -> GenerateCall:
    """Returns the empty record of a ``generate``, with the settings that transformers will find for it.

    Raises:
        EncodeError: it is one of the ways to generate that cannot be captured.
    """
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


def starts_with(ids: Tensor, known: list[Tensor]) -> bool:
    """Says whether ``ids`` ``"rows tokens"`` start with the known ones; where those were embeddings, nothing does."""
    read = torch.cat(known, dim=1).to(ids.device)
    return bool((read != UNKNOWN).all()) and torch.equal(ids[:, : read.shape[1]], read)
