"""What a model reads and writes while somebody else calls it: the sender pays no second pass.

::

    with recording(model, tokenizer, layers) as capture:
        model.generate(...)      # or forward; greedy, sampled or streamed; one row or a padded batch; several calls
    capture.rows                 # one Context per row: states "layers tokens hidden", and the tokens as text

Every call of the backbone is one *piece*: ids and mask ``"rows tokens"``, states ``"rows layers tokens hidden"``. The
pieces of one ``generate`` make a *turn*: only of a turn is it known what was generated, and where a row had ended while
the others went on.

What was never fed back is not here: the last token of a generation, for one, has no states.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from ilcp.context import Context, Writer, backbone, tapped
from ilcp.errors import EncodeError

__all__ = ["Capture", "recording"]

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
class _Piece:
    """One call of the backbone; ``past`` says whether it continued a KV cache."""

    ids: Tensor
    mask: Tensor
    past: bool
    write: Writer


@dataclass(slots=True)
class _Turn:
    """The pieces of one ``generate``, or one call outside of any; ``ends`` are the tokens that end a row.

    ``generated`` is how many tokens at the end were generated, in the longest row.
    """

    ends: frozenset[int] = frozenset()
    pad: int | None = None
    pieces: list[_Piece] = field(default_factory=list)
    generated: int = 0

    def add(self, piece: _Piece, generating: bool) -> None:
        if generating and not piece.past:
            self.pieces.clear()  # generated without a cache: each step reads everything again
        self.pieces.append(piece)

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


class Capture:
    """What one model computed inside ``with sender.capture() as capture``, one Context per row of its calls.

    ``len`` says how many rows there are. While the calls run, their states are kept as they come; ``rows`` puts each
    row's together, and for that moment holds them twice where a row has several pieces.
    """

    def __init__(self, model: Any, tokenizer: Any, layers: tuple[int, ...]):
        self.model, self.tokenizer, self.layers = model, tokenizer, layers
        self._turns: list[_Turn] = []
        self._rows: tuple[Context, ...] | None = None
        self._open: _Piece | None = None
        self._count = 0
        self._generating = False
        self._recording = False
        self._names = tuple(signature(backbone(model).forward).parameters)

    def __len__(self) -> int:
        return self._count

    @property
    def rows(self) -> tuple[Context, ...]:
        """One Context per row: padding is left out, and so is what was fed to a row after its end.

        Raises:
            EncodeError: the ``with`` has not ended, or the model was not called inside it.
        """
        if self._recording:
            raise EncodeError("expected a finished capture, got one that is recording: use it after its `with`")
        if self._rows is None:
            if not self._turns:
                raise EncodeError(
                    "expected a capture with at least one call of the sender's model, got none: "
                    "call the model's generate or forward inside `with sender.capture()`"
                )
            ids = torch.cat([turn.ids() for turn in self._turns], dim=1)
            kept = torch.cat([turn.kept() for turn in self._turns], dim=1)
            pieces = [piece for turn in self._turns for piece in turn.pieces]
            self._rows = tuple(self._row(row, ids[row], kept[row], pieces) for row in range(self._count))
            self._turns.clear()
        return self._rows

    def _row(self, row: int, ids: Tensor, kept: Tensor, pieces: list[_Piece]) -> Context:
        """The Context of a row; ``ids`` and ``kept`` are ``"tokens"``, of all pieces in their order."""
        read = ids[kept].tolist()
        if not read:
            raise EncodeError(f"expected tokens in every row, got none in row {row}: all of it is padding")
        text = None if UNKNOWN in read else self.tokenizer.decode(read, skip_special_tokens=True)
        if not self.layers:
            return Context(text=text)
        parts = []
        for piece, span in zip(pieces, kept.split([piece.ids.shape[1] for piece in pieces]), strict=True):
            if bool(span.any()):
                states = piece.write.states()[row]
                parts.append(states if bool(span.all()) else states[:, span.to(states.device)])
        return Context(text=text, states=parts[0] if len(parts) == 1 else torch.cat(parts, dim=1))

    def _enter(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A pass of the backbone begins: what it computes counts if it ends."""
        given = dict(zip(self._names, args, strict=False)) | kwargs
        ids, embeds = given.get("input_ids"), given.get("inputs_embeds")
        source = ids if ids is not None else embeds
        if source is None:
            raise EncodeError(
                "expected a call with input_ids or inputs_embeds inside `with sender.capture()`, got none"
            )
        rows, tokens = source.shape[:2]
        if self._count and rows != self._count:
            raise EncodeError(
                f"expected {self._count} rows, as in the calls before, got {rows}: "
                "capture each batch in a `with` of its own"
            )
        read = ids.detach().clone() if ids is not None else source.new_full((rows, tokens), UNKNOWN, dtype=torch.long)
        write = Writer(len(self.layers), rows, [(0, 0, tokens)])
        self._open = _Piece(read, _new_mask(given.get("attention_mask"), read), _has_past(given), write)

    def _write(self, place: int, state: Tensor) -> None:
        if self._open is not None:
            self._open.write(place, state)

    def _leave(self, *_: Any) -> None:
        """A pass of the backbone has ended."""
        if self._open is None:
            return
        if not self._generating or not self._turns:
            self._turns.append(_Turn())
        self._turns[-1].add(self._open, self._generating)
        self._count, self._open = len(self._open.ids), None

    def _watched(self, generate: Callable[..., Any], owner: Any) -> Callable[..., Any]:
        """``generate`` as it was, but that it says when it begins, what ends a row, and when it is over."""

        @wraps(generate)
        def watched(*args: Any, **kwargs: Any) -> Any:
            bound = signature(generate).bind_partial(*args, **kwargs).arguments
            given = {**bound.pop("kwargs", {}), **bound}
            turn = _turn(given, owner)
            self._turns.append(turn)
            self._generating = True
            try:
                result = generate(*args, **kwargs)
                turn.generated = max(0, _new_tokens(result, given) - 1)  # the last one is not fed back
                return result
            finally:
                self._generating = False
                self._turns = [turn for turn in self._turns if turn.pieces]

        return watched


@contextmanager
def recording(model: Any, tokenizer: Any, layers: tuple[int, ...]) -> Iterator[Capture]:
    """A Capture of every pass of ``model`` inside the ``with``; afterwards the model is as it was.

    Raises:
        EncodeError: the model has no such layer, or its blocks are not found; inside the ``with``, where a call cannot
            be captured: beam search and other ways to generate that reorder or take back, another number of rows.
    """
    capture = Capture(model, tokenizer, layers)
    base = backbone(model)
    owner = model.get_base_model() if hasattr(model, "get_base_model") else model
    before = vars(owner).get("generate")
    with tapped(model, layers, capture._write):
        handles = [
            base.register_forward_pre_hook(capture._enter, with_kwargs=True),
            base.register_forward_hook(capture._leave),
        ]
        if hasattr(owner, "generate"):
            owner.generate = capture._watched(owner.generate, owner)
        capture._recording = True
        try:
            yield capture
        finally:
            capture._recording = False
            for handle in handles:
                handle.remove()
            if before is not None:
                owner.generate = before
            else:
                vars(owner).pop("generate", None)


def _turn(given: dict[str, Any], model: Any) -> _Turn:
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
    return _Turn(frozenset(listed), int(pad) if pad is not None else next(iter(listed), None))


def _new_tokens(result: Any, given: dict[str, Any]) -> int:
    """How many tokens a ``generate`` has made: its sequences begin with the ids of the prompt, if it had any."""
    ids = next((given[name] for name in ("inputs", "input_ids") if given.get(name) is not None), None)
    if ids is not None:
        prompt_tokens = ids.shape[1]
    else:
        prompt_tokens = 0 if given.get("inputs_embeds") is not None else 1
    sequences = getattr(result, "sequences", result)
    return sequences.shape[1] - prompt_tokens if isinstance(sequences, Tensor) else 0


def _new_mask(mask: Any, ids: Tensor) -> Tensor:
    """Which of ``ids`` ``"rows tokens"`` are no padding: a mask covers what is in the KV cache as well."""
    rows, tokens = ids.shape
    if isinstance(mask, Tensor) and mask.ndim == 2:
        return mask[:, -tokens:].detach().bool().to(ids.device)
    if mask is None or rows == 1:
        return torch.ones_like(ids, dtype=torch.bool)
    shown = f"shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
    raise EncodeError(
        f"expected a mask 'rows tokens' for a batch of {rows} rows, got {shown}: "
        "generate with the default cache, or capture row by row"
    )


def _has_past(given: dict[str, Any]) -> bool:
    cache = given.get("past_key_values")
    return cache is not None and (not hasattr(cache, "get_seq_length") or bool(cache.get_seq_length() > 0))
