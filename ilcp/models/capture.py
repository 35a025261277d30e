"""Captures what a model reads and writes while somebody else calls it: the sender pays no second pass.

::

    with recording(model, tokenizer, layers) as capture:
        model.generate(...)      # or forward; greedy, sampled or streamed; one row or a padded batch; several calls
    capture.rows                 # one Context per row: states "layers tokens hidden", and the tokens as text

Every call of the backbone is one ``ForwardCall``: ids and mask ``"rows tokens"``, states
``"rows layers tokens hidden"``. A ``GenerateCall`` holds those of one ``generate``.

Tokens that were never fed back are not in a capture: the last token of a generation, for one, has no states.

A capture's are the calls of the thread that opened it, and of those that were started since, such as a streamer's; two
at a time are refused. Threads that ran before, such as the other workers of a server, may use the model meanwhile, with
captures of their own, and so may every ``Sender``: those calls are neither held up nor recorded. Start no thread for
somebody else while a capture is open. A model compiled by torch.compile runs past the hooks: its calls are not seen.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from functools import update_wrapper
from inspect import signature
from threading import Lock, Thread, current_thread, get_ident
from threading import enumerate as running_threads
from typing import Any, Final
from weakref import WeakSet

import torch
from torch import Tensor

from ilcp.codec.context import Context
from ilcp.errors import EncodeError
from ilcp.models.adapter import unwrapped
from ilcp.models.calls import UNKNOWN, ForwardCall, GenerateCall, new_generate_call, starts_with
from ilcp.models.reading import Writer, is_reading, reading_part, tapped
from ilcp.models.wiring import Heard, Listening
from ilcp.nn.inference import lock_of

__all__ = ["Capture", "recording"]

STEP = "prepare_inputs_for_generation"  # which a ``generate`` calls on the model before each of its passes

# Those that are open here, and in threads that run in a copy of this context, such as those of asyncio.to_thread.
_OPEN: Final[ContextVar[frozenset[int]]] = ContextVar("open", default=frozenset())


class Capture:
    """The computations of one model inside ``with sender.capture() as capture``: one Context per row of its calls.

    ``len`` is the number of rows. While the calls run, their states are kept as they come; ``rows`` joins those of each
    row, and for that moment holds them twice where a row has several calls.
    """

    def __init__(self, model: Any, tokenizer: Any, layers: tuple[int, ...], require: Callable[[], Any] = tuple):
        self.model, self.tokenizer, self.layers, self._require = model, tokenizer, layers, require
        self._owner = unwrapped(model)
        self._finished: list[GenerateCall] = []
        self._rows: tuple[Context, ...] | None = None
        self._lock = Lock()
        self._bystanders: WeakSet[Thread] = WeakSet(running_threads())
        self._bystanders.discard(current_thread())
        self._thread: int | None = None  # the one whose call is running
        self._generate: GenerateCall | None = None  # the ``generate`` that is running
        self._forward: ForwardCall | None = None  # the pass of the backbone that is running
        self._count = 0
        self._recording = False
        self._names = tuple(signature(reading_part(model).forward).parameters)

    def __len__(self) -> int:
        return self._count

    @property
    def rows(self) -> tuple[Context, ...]:
        """The Contexts, one per row: padding is left out, and so is what was fed to a row after its end.

        Raises:
            EncodeError: the ``with`` has not ended, or the model was not called inside it.
        """
        if self._recording:
            raise EncodeError("expected a finished capture, got one that is recording: use it after its `with`")
        with self._lock:
            if self._rows is None:
                self._rows = self._joined()
                self._finished.clear()
            return self._rows

    def _joined(self) -> tuple[Context, ...]:
        if not self._finished:
            raise EncodeError(
                "expected a capture with at least one call of the sender's model, got none: call the model's generate "
                "or forward inside `with sender.capture()`, in its thread or in one started there; the calls of a "
                "model that is compiled (torch.compile) are not seen: call the plain one"
            )
        ids = torch.cat([generate.ids() for generate in self._finished], dim=1)
        kept = torch.cat([generate.kept() for generate in self._finished], dim=1)
        calls = [call for generate in self._finished for call in generate.calls]
        return tuple(self._row(row, ids[row], kept[row], calls) for row in range(self._count))

    def _row(self, row: int, ids: Tensor, kept: Tensor, calls: list[ForwardCall]) -> Context:
        """Returns the Context of a row; ``ids`` and ``kept`` are ``"tokens"``, of all calls in their order."""
        read = ids[kept].tolist()
        if not read:
            raise EncodeError(f"expected tokens in every row, got none in row {row}: all of it is padding")
        text = None if UNKNOWN in read else self.tokenizer.decode(read, skip_special_tokens=True)
        if not self.layers:
            return Context(text=text)
        parts = []
        for call, span in zip(calls, kept.split([call.ids.shape[1] for call in calls]), strict=True):
            if bool(span.any()):
                states = call.writer.states()[row]
                parts.append(states if bool(span.all()) else states[:, span.to(states.device)])
        return Context(text=text, states=parts[0] if len(parts) == 1 else torch.cat(parts, dim=1))

    def _is_own(self) -> bool:
        """Says whether the call that runs here is one of the capture's."""
        return not is_reading() and (id(self) in _OPEN.get() or current_thread() not in self._bystanders)

    def _enter(self, part: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> None:
        """Opens the record of a pass of the backbone, which counts once the pass has ended."""
        if kwargs is None or not self._is_own():  # torch forgets them in others' calls while a hook comes or goes
            return
        if part.training:
            raise EncodeError(
                "expected a model in evaluation mode inside `with sender.capture()`, got one in training mode, whose "
                "dropout gives one text many messages: call model.eval() first"
            )
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
        writer = Writer(len(self.layers), rows, [(0, 0, tokens)])
        call = ForwardCall(read, _new_mask(given.get("attention_mask"), read), _past_tokens(given), writer)
        if not self._is_generating():
            self._require()
            self._claim()
            self._check_single(call)
        self._forward = call

    def _is_generating(self) -> bool:
        """Says whether a watched ``generate`` is running in this thread."""
        return self._generate is not None and self._thread == get_ident()

    def _claim(self) -> None:
        """Makes the capture this thread's, for one call.

        Raises:
            EncodeError: another call is running.
        """
        with self._lock:
            if self._generate is not None or self._thread not in (None, get_ident()):
                raise EncodeError(
                    "expected one call of the model at a time inside `with sender.capture()`, got a second one while "
                    "the first is running: the model must not serve others meanwhile"
                )
            self._thread = get_ident()

    def _check_step(self) -> None:
        """Refuses the step of a ``generate`` that is not watched: which of its tokens end a row would not be known."""
        if self._is_own() and not self._is_generating():
            raise EncodeError(
                "expected calls of the model that belong to `with sender.capture()`, got prepare_inputs_for_generation "
                "outside of its `generate`, as from one that was taken from it before: call model.generate itself "
                "inside the `with`, or make the inputs of a step of your own without it"
            )

    def _check_single(self, call: ForwardCall) -> None:
        """Refuses a call outside of any ``generate`` that would be captured wrongly."""
        known = [earlier.ids for generate in self._finished for earlier in generate.calls]
        tokens = sum(ids.shape[1] for ids in known)
        if call.past > tokens:
            said = f"a cache of {call.past} tokens, of which {tokens} were captured: begin inside the `with`"
        elif known and not call.past and starts_with(call.ids, known):
            said = "one that reads again all that was captured: continue its cache, or call model.generate"
        else:
            return
        self._thread = None
        raise EncodeError(f"expected calls of the model that belong to `with sender.capture()`, got {said}")

    def _write(self, place: int, state: Tensor) -> None:
        if self._forward is not None and self._thread == get_ident() and not is_reading():
            self._forward.writer(place, state)

    def _leave(self, _: Any, __: Any, outputs: Any) -> None:
        """Closes the record of a pass of the backbone; one that failed leaves no outputs, and is forgotten."""
        if self._forward is None or self._thread != get_ident():
            return
        call, self._forward = self._forward, None
        if self._generate is None:
            self._thread = None
        if outputs is None:
            return
        if self._generate is None:
            self._finished.append(GenerateCall(calls=[call]))
        else:
            self._generate.add(call)
        self._count = len(call.ids)

    @contextmanager
    def _generating(self, given: dict[str, Any]) -> Iterator[GenerateCall]:
        """Keeps the record of a ``generate`` that runs inside this ``with``, in this thread."""
        generate = new_generate_call(given, self._owner)
        self._require()
        self._claim()
        self._generate = generate
        try:
            yield generate
        finally:
            if generate.calls:
                self._finished.append(generate)
            self._generate = self._forward = self._thread = None


class _Watch(Listening):
    """A model's ``generate`` as it was, but that it tells each open capture when it begins and when it has ended.

    A ``generate`` that was taken from the model earlier does not come through here. But transformers' ``generate`` asks
    the model itself for the inputs of each step, by ``prepare_inputs_for_generation``: there such a one is refused.
    """

    def __init__(self, owner: Any):
        update_wrapper(self, owner.generate)  # first: it copies attributes, which may be those of another watch
        self.captures: list[Capture] = []
        self._generate: Callable[..., Any] = owner.generate
        self._names = tuple(signature(getattr(type(owner), "generate", owner.generate)).parameters)[1:]
        self._methods: dict[str, Any] = {"generate": self}
        if hasattr(owner, STEP):
            self._methods[STEP] = self._watched_step(getattr(owner, STEP))
        self._before = {name: vars(owner).get(name) for name in self._methods}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        given = dict(zip(self._names, args, strict=False)) | kwargs
        with ExitStack() as running:
            own = [capture for capture in tuple(self.captures) if capture._is_own()]  # others may end
            begun = [running.enter_context(capture._generating(given)) for capture in own]
            result = self._generate(*args, **kwargs)
            for generate in begun:
                generate.finish(result, given)
        return result

    def _watched_step(self, prepare: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **kwargs: Any) -> Any:
            for capture in tuple(self.captures):
                capture._check_step()
            return prepare(*args, **kwargs)

        return update_wrapper(Heard(step), prepare)  # transformers reads the names of its arguments

    def install(self, owner: Any) -> None:
        """Puts itself in the place of the model's own methods."""
        for name, method in self._methods.items():
            setattr(owner, name, method)

    def put_back(self, owner: Any) -> None:
        """Leaves the model with the methods that it had; one that somebody put over these stays."""
        for name, method in self._methods.items():
            if vars(owner).get(name) is not method:
                continue
            if self._before[name] is None:
                delattr(owner, name)
            else:
                setattr(owner, name, self._before[name])


@contextmanager
def _watched(capture: Capture, owner: Any) -> Iterator[None]:
    """Keeps one watch per model for as long as any capture of it is open: captures may end in any order."""
    with lock_of(owner):
        found = vars(owner).get("generate")
        watch = found if isinstance(found, _Watch) else _Watch(owner)
        if watch is not found:
            watch.install(owner)
        watch.captures.append(capture)
    try:
        yield
    finally:
        with lock_of(owner):
            watch.captures.remove(capture)
            if not watch.captures:
                watch.put_back(owner)


@contextmanager
def recording(
    model: Any, tokenizer: Any, layers: tuple[int, ...], require: Callable[[], Any] = tuple
) -> Iterator[Capture]:
    """Captures every pass of ``model`` inside the ``with``; afterwards the model is as it was.

    ``require`` is called before each ``generate``, or pass outside of one, and may refuse it.

    Raises:
        ConfigError: the model has no such layer, or its blocks are not found.
        EncodeError: inside the ``with``, where a call cannot be captured: beam search and other ways to generate that
            reorder or take back, another number of rows, a call while another is running, a ``generate`` taken from the
            model before, a call that reads all again.
    """
    capture = Capture(model, tokenizer, layers, require)
    outer, owner = reading_part(model), capture._owner
    with ExitStack() as stack:
        stack.enter_context(tapped(model, layers, capture._write))
        for handle in (
            outer.register_forward_pre_hook(Heard(capture._enter), with_kwargs=True),
            outer.register_forward_hook(Heard(capture._leave), always_call=True),
        ):
            stack.callback(handle.remove)
        if hasattr(owner, "generate"):
            stack.enter_context(_watched(capture, owner))
        capture._recording = True
        _OPEN.set(_OPEN.get() | {id(capture)})
        try:
            yield capture
        finally:
            _OPEN.set(_OPEN.get() - {id(capture)})
            capture._recording = False


def _new_mask(mask: Any, ids: Tensor) -> Tensor:
    """Returns which of ``ids`` ``"rows tokens"`` are no padding; the mask given covers the KV cache as well."""
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
    """Returns how many tokens the KV cache of a call holds; UNKNOWN for a cache that does not say."""
    cache = given.get("past_key_values")
    if cache is None:
        return 0
    return int(cache.get_seq_length()) if hasattr(cache, "get_seq_length") else UNKNOWN
