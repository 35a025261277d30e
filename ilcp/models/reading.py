"""Reads a text with a model and keeps the hidden states of chosen layers.

Capture, with shapes::

    text --tokenizer--> ids --windows--> backbone --hooks on chosen layers--> states "layers tokens hidden"

Layers count as transformers' ``hidden_states`` do: 0 is what enters the first block, k what enters block k, and the
last is ``last_hidden_state``. Only the layers asked for are kept, each written straight into the result; no logits are
computed. Where the last is not among them, a pass ends with the uppermost: the blocks above it are never run.
``ilcp.models.capture`` uses the same hooks to record calls that somebody else makes, which run to their end.

Any number of threads may read with one model: they take turns, and hooks know their own pass by a context variable.
A call of somebody else's runs beside them, to its end, and leaves nothing in what is read.

A text longer than the model's window is read in overlapping windows; of each overlap the later window keeps the second
half, so that every token is captured once and (but for the first tokens of the text) with at least that much context.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from inspect import signature
from typing import Any, Final

import torch
from torch import Tensor, nn

from ilcp.errors import ConfigError, EncodeError
from ilcp.models.adapter import innermost, plain, vocabulary_size
from ilcp.models.wiring import Heard
from ilcp.nn.inference import evaluating, lock_of

__all__ = [
    "MAX_TOKENS",
    "Writer",
    "backbone",
    "capture_batch",
    "depth",
    "is_reading",
    "padded_ids",
    "read_ids",
    "read_outputs",
    "reading",
    "reading_part",
    "require_ids",
    "run_ids",
    "tapped",
    "window_tokens",
]

OVERLAP_SHARE = 4  # windows overlap by a quarter: half of it is context only, half is kept
FALLBACK_WINDOW_TOKENS = 2048  # for a configuration that states no limit
MAX_TOKENS = 1 << 17  # of one text: a book of 300 pages; the states of more, at once, are gigabytes

_PASS: Final[ContextVar[object]] = ContextVar("pass", default=None)  # the one that this thread reads by, if any


def is_reading() -> bool:
    """Says whether the call that runs here is a pass of ``read_ids``, ``capture_batch`` or ``run_ids``."""
    return _PASS.get() is not None


def backbone(model: Any) -> Any:
    """Returns the part of ``model`` that computes hidden states: no head, no peft wrapper, no vision tower; LoRA stays.

    Raises:
        ConfigError: the adapter is a learned prompt, which no pass of the backbone alone contains.
    """
    outer = reading_part(model)
    return plain(getattr(outer, "language_model", outer))


def reading_part(model: Any) -> Any:
    """Returns the part of ``model`` that takes the tokens: the backbone, or what holds it beside a vision tower.

    Raises:
        ConfigError: the adapter is a learned prompt, which no pass of the backbone alone contains.
    """
    model = plain(model)
    if hasattr(model, "get_base_model"):
        adapter = getattr(model, "active_peft_config", None)
        if getattr(adapter, "is_prompt_learning", False):
            raise ConfigError(
                f"expected an adapter inside the model's layers, such as LoRA, got {type(adapter).__name__}: "
                "a learned prompt is not part of the model that is read; merge or remove it"
            )
        model = plain(model.get_base_model())
    base = plain(getattr(model, "base_model", model))
    decoder_only = not getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    if base is model and decoder_only and hasattr(model, "get_decoder"):
        decoder = model.get_decoder()  # Gemma 3 in transformers 4 keeps its backbone elsewhere than it says
        holders = (part for part in model.children() if any(module is decoder for module in part.modules()))
        return next(holders, decoder)
    return base


def window_tokens(model: Any) -> int:
    """Returns how many tokens ``model`` can read at once, by its configuration."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if not limit or limit < 0:  # XLNet says -1: none
        return FALLBACK_WINDOW_TOKENS
    return int(limit) - _first_position(model)


def _first_position(model: Any) -> int:
    """Returns the first position of a model: RoBERTa and its kin count on from their padding's."""
    for name, module in model.named_modules():
        table = innermost(module)  # of what peft put around it
        if name.endswith("position_embeddings") and isinstance(table, nn.Embedding) and table.padding_idx is not None:
            return table.padding_idx + 1
    return 0


@contextmanager
def tapped(model: Any, layers: Sequence[int], sink: Callable[[int, Tensor], None]) -> Iterator[None]:
    """Hooks ``layers`` for the length of the ``with``: every pass of the backbone calls ``sink`` for each of them.

    ``sink`` gets the layer's index in ``layers`` and its states ``"batch tokens hidden"``, which are the model's own
    and may change later: copy them.

    Raises:
        ConfigError: the model has no such layer, or its blocks are not found.
    """
    base = backbone(model)
    blocks = _blocks(base) if layers else []
    if layers and not 0 <= min(layers) <= max(layers) <= len(blocks):
        raise ConfigError(
            f"expected layers from 0 to {len(blocks)} of {type(base).__name__}, got {min(layers)} to {max(layers)}: "
            "not this codec's sender"
        )
    handles = []
    try:
        with lock_of(base):
            for place, layer in enumerate(layers):
                if layer < len(blocks):
                    entering = Heard(_entering, sink, place)
                    handles.append(blocks[layer].register_forward_pre_hook(entering, with_kwargs=True))
                else:
                    handles.append(base.register_forward_hook(Heard(_leaving, sink, place)))
        yield
    finally:
        with lock_of(base):
            for handle in handles:
                handle.remove()


def _entering(
    sink: Callable[[int, Tensor], None], place: int, _: Any, args: Any, kwargs: Mapping[str, Any] | None = None
) -> None:
    if kwargs is not None:  # torch forgets them in another thread's call while a hook comes or goes
        sink(place, args[0] if args else kwargs["hidden_states"])


def _leaving(sink: Callable[[int, Tensor], None], place: int, _: Any, __: Any, outputs: Any) -> None:
    sink(place, outputs[0] if isinstance(outputs, tuple) else outputs.last_hidden_state)


def depth(base: Any) -> int:
    """Returns how many blocks the configuration says; 0 where it does not."""
    return int(getattr(getattr(base, "config", None), "num_hidden_layers", None) or 0)


def _blocks(base: Any) -> list[nn.Module]:
    """Finds the blocks in their order: the one outermost list of modules that is as long as the model is deep."""
    deep = depth(base)
    found = [module for module in base.modules() if isinstance(module, nn.ModuleList) and len(module) == deep]
    inner = {id(module) for outer in found for module in outer.modules() if module is not outer}
    outermost = [module for module in found if id(module) not in inner]
    if len(outermost) != 1:
        raise ConfigError(
            f"expected one stack of {deep} blocks in {type(base).__name__}, got {len(outermost)}: its layers cannot "
            "be captured; call it with output_hidden_states=True and encode the outputs"
        )
    return list(outermost[0])


class Writer:
    """Collects the states of ``layers`` layers in one tensor, made when the first state says width, dtype and device.

    ``places`` holds ``(start, first, last)`` for each pass to come: the pass reads tokens from ``start`` on, and those
    from ``first`` to ``last`` are kept.
    """

    def __init__(self, layers: int, batch: int, places: Sequence[tuple[int, int, int]]):
        self.shape = batch, layers, places[-1][2]
        self._places = places
        self._states: Tensor | None = None
        self._written = 0

    def __call__(self, place: int, state: Tensor) -> None:
        """Copies one layer's states ``"batch tokens hidden"`` of the running pass."""
        state = state.detach()
        if self._states is None:
            self._states = state.new_empty(*self.shape, state.shape[-1])
        start, first, last = self._places[self._written // self.shape[1]]
        self._states[:, place, first:last].copy_(state[:, first - start : last - start])
        self._written += 1

    def states(self) -> Tensor:
        """Returns the states ``"batch layers tokens hidden"``.

        Raises:
            ConfigError: the model did not run each of the layers once.
        """
        expected = len(self._places) * self.shape[1]
        if self._states is None or self._written != expected:
            raise ConfigError(
                f"expected the model to run each of its blocks once, got {self._written} of {expected} states: "
                "call it with output_hidden_states=True and encode the outputs"
            )
        return self._states


@torch.no_grad()
def capture_batch(model: Any, ids: Tensor, mask: Tensor, layers: Sequence[int]) -> Tensor:
    """Returns hidden states ``"batch layers tokens hidden"`` of one forward pass, in the model's own dtype.

    ``ids`` and ``mask`` are ``"batch tokens"``, padded on either side; states of padding mean nothing. Beyond the
    same pass without capture it takes the memory of its result and no more: no other layer is kept, no KV cache is
    built, no logits are computed.

    Raises:
        ConfigError: the model has no such layer, or its blocks are not found.
    """
    tokens = ids.shape[1]
    return _capture(model, ids, mask, layers, [(0, 0, tokens)])


def padded_ids(rows: Sequence[Sequence[int]], device: Any) -> tuple[Tensor, Tensor]:
    """Returns ids and mask ``"rows tokens"`` of rows of any length, padded on the right.

    With padding on that side every family counts positions as it does for a row alone.
    """
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)  # any id: padding is masked
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row)
        mask[index, : len(row)] = 1
    return ids.to(device), mask.to(device)


def read_ids(model: Any, ids: Sequence[int], layers: Sequence[int]) -> tuple[Tensor, int]:
    """Returns states ``"layers tokens hidden"`` of a token sequence of any length, and the number of windows it took.

    Beyond the pass of one window without capture it takes the memory of its result and no more.

    Raises:
        ConfigError: the model has no such layer.
        EncodeError: there are no ids, or one is not in the model's vocabulary.
    """
    require_ids(model, ids)
    places = _windows(len(ids), window_tokens(model))
    row = torch.tensor([ids], device=model.device)
    return _capture(model, row, torch.ones_like(row), layers, places)[0], len(places)


def require_ids(model: Any, ids: Sequence[int]) -> None:
    """Refuses ids that ``model`` cannot read.

    Raises:
        EncodeError: there are none or too many, or one is not in the model's vocabulary.
    """
    vocabulary = vocabulary_size(model)
    if len(ids) == 0:
        raise EncodeError("expected at least one token, got none: there is nothing to hand off")
    if len(ids) > MAX_TOKENS:
        raise EncodeError(
            f"expected at most {MAX_TOKENS:,} tokens, got {len(ids):,}: encode the text's parts one by one"
        )
    if min(ids) < 0 or max(ids) >= vocabulary:
        raise EncodeError(
            f"expected token ids from 0 to {vocabulary - 1}, got {min(ids)} to {max(ids)}: "
            "the tokenizer does not belong to this model"
        )


def _windows(tokens: int, window: int) -> list[tuple[int, int, int]]:
    """Returns for each window where it starts, and the first and last token whose states are kept."""
    overlap = window // OVERLAP_SHARE
    places = [(0, 0, tokens)]
    while places[-1][0] + window < tokens:
        start, first, _ = places.pop()
        cut = start + window - (overlap - overlap // 2)
        places += [(start, first, cut), (start + window - overlap, cut, tokens)]
    return places


def run_ids(model: Any, ids: Sequence[int], layers: Sequence[int]) -> None:
    """Runs the passes of ``read_ids`` as far up as it does, and keeps nothing: what reading costs without capture."""
    row = torch.tensor([ids], device=model.device)
    _run(model, row, torch.ones_like(row), layers, _windows(len(ids), window_tokens(model)), lambda *_: None)


def _capture(
    model: Any, ids: Tensor, mask: Tensor, layers: Sequence[int], places: Sequence[tuple[int, int, int]]
) -> Tensor:
    write = Writer(len(layers), len(ids), places)
    _run(model, ids, mask, layers, places, write)
    return write.states()


class _AllRead(Exception):
    """Leaves a pass whose states are all there."""


@torch.no_grad()
def _run(
    model: Any,
    ids: Tensor,
    mask: Tensor,
    layers: Sequence[int],
    places: Sequence[tuple[int, int, int]],
    sink: Callable[[int, Tensor], None],
) -> None:
    """Runs the backbone over each window, up to the uppermost of ``layers``; ``sink`` gets what it computes there."""
    base = backbone(model)
    accepted = signature(base.forward).parameters
    options: dict[str, Any] = {"use_cache": False} if "use_cache" in accepted else {}
    window = window_tokens(model) if len(places) > 1 else ids.shape[1]
    with lock_of(base), evaluating(base):
        own, stops, heard = object(), _may_stop(model, base, layers), 0

        def hear(place: int, state: Tensor) -> None:
            nonlocal heard
            if _PASS.get() is not own:  # somebody else's call of the same model
                return
            sink(place, state)
            heard += 1
            if stops and heard % len(layers) == 0:
                raise _AllRead

        with tapped(model, layers, hear), reading(own):
            for start, _, _ in places:
                seen = mask[:, start : start + window]
                if "position_ids" in accepted and not bool(seen[:, 0].all()):  # no plain forward derives them from it
                    options["position_ids"] = (seen.long().cumsum(1) - 1).clamp(min=0) + _first_position(base)
                with suppress(_AllRead):
                    base(input_ids=ids[:, start : start + window], attention_mask=seen, **options)


@contextmanager
def reading(own: object) -> Iterator[None]:
    """Marks what runs inside the ``with``, in this thread, as the pass ``own``."""
    before = _PASS.set(own)
    try:
        yield
    finally:
        _PASS.reset(before)


def _may_stop(model: Any, base: Any, layers: Sequence[int]) -> bool:
    """Says whether a pass may end below its last state, because nobody else waits for its end.

    Others' hooks do (a capture's do not, but look the same); so does transformers 4, which patches the blocks of a
    model that is configured to report, and puts them back when all have run.
    """
    heard = any(part._forward_hooks or part._forward_pre_hooks for part in (base, reading_part(model)))
    reports = any(getattr(base.config, f"output_{what}", False) for what in ("hidden_states", "attentions"))
    return max(layers, default=0) < depth(base) and not heard and not reports


@torch.no_grad()
def read_outputs(outputs: Any, layers: Sequence[int]) -> Tensor:
    """Returns states ``"layers tokens hidden"`` from the outputs of a finished ``forward`` or ``generate`` call.

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
            f"expected the outputs of one sequence, got a batch of {steps[0][0].shape[0]}: encode row by row, "
            "or make the call inside `with sender.capture()`"
        )
    if max(layers) >= len(steps[0]):
        raise EncodeError(
            f"expected the states of layer {max(layers)}, got {len(steps[0])} layers: not this codec's sender"
        )
    if len(steps) > 1 and steps[-1][0].shape[1] > 1:
        steps = steps[-1:]  # generated without a cache: each step read everything again
    first = steps[0][layers[0]]
    states: Tensor = first.new_empty(len(layers), sum(step[0].shape[1] for step in steps), first.shape[-1])
    for place, layer in enumerate(layers):
        torch.cat([step[layer][0].to(first) for step in steps], out=states[place])
    return states
