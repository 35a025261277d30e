"""What a model reads and writes while somebody else calls it: the sender pays no second pass.

::

    with recording(model, tokenizer, layers) as capture:
        model.generate(...)      # or forward; greedy, sampled or streamed; one row or a padded batch; several calls
    capture.rows                 # one Context per row: states "layers tokens hidden", and the tokens as text

Every call of the backbone is one piece: ids and mask ``"rows tokens"``, states ``"rows layers tokens hidden"``
(``ilcp.models.calls`` says which pieces belong together).

What was never fed back is not here: the last token of a generation, for one, has no states.

The model must not serve others meanwhile: every call of it inside the ``with``, whoever makes it, is one of the
capture's. Calls one after the other may come from several threads, such as that of a streamer; two at a time are
refused. A model compiled by torch.compile runs past the hooks, and its calls are not seen.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import update_wrapper
from inspect import currentframe, signature, unwrap
from threading import Lock, get_ident
from typing import Any

import torch
from torch import Tensor

from ilcp.codec.context import Context
from ilcp.errors import EncodeError
from ilcp.models.adapter import unwrapped
from ilcp.models.calls import UNKNOWN, ForwardCall, GenerateCall, begins, new_generate_call
from ilcp.models.reading import Writer, reading_part, tapped

__all__ = ["Capture", "recording"]


class Capture:
    """What one model computed inside ``with sender.capture() as capture``, one Context per row of its calls.

    ``len`` says how many rows there are. While the calls run, their states are kept as they come; ``rows`` puts each
    row's together, and for that moment holds them twice where a row has several pieces.
    """

    def __init__(self, model: Any, tokenizer: Any, layers: tuple[int, ...]):
        self.model, self.tokenizer, self.layers = model, tokenizer, layers
        self._owner = unwrapped(model)
        self._turns: list[GenerateCall] = []
        self._rows: tuple[Context, ...] | None = None
        self._lock = Lock()
        self._thread: int | None = None  # the one whose call is running
        self._turn: GenerateCall | None = None
        self._open: ForwardCall | None = None
        self._count = 0
        self._recording = False
        self._names = tuple(signature(reading_part(model).forward).parameters)

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
                    "call the model's generate or forward inside `with sender.capture()`; the calls of a model that is "
                    "compiled (torch.compile) are not seen: call the plain one"
                )
            ids = torch.cat([turn.ids() for turn in self._turns], dim=1)
            kept = torch.cat([turn.kept() for turn in self._turns], dim=1)
            pieces = [piece for turn in self._turns for piece in turn.pieces]
            self._rows = tuple(self._row(row, ids[row], kept[row], pieces) for row in range(self._count))
            self._turns.clear()
        return self._rows

    def _row(self, row: int, ids: Tensor, kept: Tensor, pieces: list[ForwardCall]) -> Context:
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
        piece = ForwardCall(read, _new_mask(given.get("attention_mask"), read), _past_tokens(given), write)
        if self._turn is None or self._thread != get_ident():
            self._claim()
            self._check_single(piece)
        self._open = piece

    def _claim(self) -> None:
        """Makes the capture this thread's, for one call."""
        with self._lock:
            if self._turn is not None or self._thread not in (None, get_ident()):
                raise EncodeError(
                    "expected one call of the model at a time inside `with sender.capture()`, got a second one while "
                    "the first is running: the model must not serve others meanwhile"
                )
            self._thread = get_ident()

    def _check_single(self, piece: ForwardCall) -> None:
        """Refuses a call outside of any watched ``generate`` that would be captured wrongly."""
        known = [earlier.ids for turn in self._turns for earlier in turn.pieces]
        tokens = sum(ids.shape[1] for ids in known)
        if _is_generating(self._owner):
            said = "a `generate` that was taken from it before: call model.generate itself inside the `with`"
        elif piece.past > tokens:
            said = f"a cache of {piece.past} tokens, of which {tokens} were captured: begin inside the `with`"
        elif known and not piece.past and begins(piece.ids, known):
            said = "one that reads again all that was captured: continue its cache, or call model.generate"
        else:
            return
        self._thread = None
        raise EncodeError(f"expected calls of the model that belong to `with sender.capture()`, got {said}")

    def _write(self, place: int, state: Tensor) -> None:
        if self._open is not None and self._thread == get_ident():
            self._open.write(place, state)

    def _leave(self, _: Any, __: Any, outputs: Any) -> None:
        """A pass of the backbone has ended, or failed, which leaves no outputs."""
        if self._open is None or self._thread != get_ident():
            return
        piece, self._open = self._open, None
        if self._turn is None:
            self._thread = None
        if outputs is None:
            return
        if self._turn is None:
            self._turns.append(GenerateCall(pieces=[piece]))
        else:
            self._turn.add(piece)
        self._count = len(piece.ids)

    @contextmanager
    def _generating(self, given: dict[str, Any]) -> Iterator[GenerateCall]:
        """The turn of a ``generate`` that runs inside this ``with``, in this thread."""
        turn = new_generate_call(given, self._owner)
        self._claim()
        self._turn = turn
        try:
            yield turn
        finally:
            if turn.pieces:
                self._turns.append(turn)
            self._turn = self._open = self._thread = None


class _Watch:
    """A model's ``generate`` as it was, but that it says to each open capture when it begins and when it is over."""

    def __init__(self, owner: Any):
        update_wrapper(self, owner.generate)  # first: it copies attributes, which may be those of another watch
        self.captures: list[Capture] = []
        self._before = vars(owner).get("generate")
        self._generate: Callable[..., Any] = owner.generate
        self._names = tuple(signature(getattr(type(owner), "generate", owner.generate)).parameters)[1:]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        given = dict(zip(self._names, args, strict=False)) | kwargs
        with ExitStack() as turns:
            begun = [turns.enter_context(capture._generating(given)) for capture in self.captures]
            result = self._generate(*args, **kwargs)
            for turn in begun:
                turn.finish(result, given)
        return result

    def put_back(self, owner: Any) -> None:
        """Leaves the model with the ``generate`` that it had; one that somebody put over this stays."""
        if vars(owner).get("generate") is not self:
            return
        if self._before is None:
            del owner.generate
        else:
            owner.generate = self._before


@contextmanager
def _watched(capture: Capture, owner: Any) -> Iterator[None]:
    """One watch per model, for as long as any capture of it is open: captures may end in any order."""
    found = vars(owner).get("generate")
    watch = found if isinstance(found, _Watch) else _Watch(owner)
    owner.generate = watch
    watch.captures.append(capture)
    try:
        yield
    finally:
        watch.captures.remove(capture)
        if not watch.captures:
            watch.put_back(owner)


@contextmanager
def recording(model: Any, tokenizer: Any, layers: tuple[int, ...]) -> Iterator[Capture]:
    """A Capture of every pass of ``model`` inside the ``with``; afterwards the model is as it was.

    Raises:
        EncodeError: the model has no such layer, or its blocks are not found; inside the ``with``, where a call cannot
            be captured: beam search and other ways to generate that reorder or take back, another number of rows, a
            call while another is running, a ``generate`` taken from the model before, a call that reads all again.
    """
    capture = Capture(model, tokenizer, layers)
    outer, owner = reading_part(model), capture._owner
    with ExitStack() as stack:
        stack.enter_context(tapped(model, layers, capture._write))
        for handle in (
            outer.register_forward_pre_hook(capture._enter, with_kwargs=True),
            outer.register_forward_hook(capture._leave, always_call=True),
        ):
            stack.callback(handle.remove)
        if hasattr(owner, "generate"):
            stack.enter_context(_watched(capture, owner))
        capture._recording = True
        try:
            yield capture
        finally:
            capture._recording = False


def _is_generating(model: Any) -> bool:
    """Whether a ``generate`` of the model is running in this thread: then it is among those that called."""
    code = getattr(unwrap(getattr(type(model), "generate", _is_generating)), "__code__", None)
    frame = currentframe()
    while frame is not None:
        if frame.f_code is code and frame.f_locals.get("self") is model:
            return True
        frame = frame.f_back
    return False


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


def _past_tokens(given: dict[str, Any]) -> int:
    """How many tokens the KV cache of a call holds; UNKNOWN for a cache that does not say."""
    cache = given.get("past_key_values")
    if cache is None:
        return 0
    return int(cache.get_seq_length()) if hasattr(cache, "get_seq_length") else UNKNOWN
