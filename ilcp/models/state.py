"""The state of a model that decides what it computes: all that its modules save, as bytes to hash; and marks of it, by
which a change shows without reading a weight.

Beside parameters and buffers that is what quantised modules and tensors hold: packed weights, scales, zero points. A
change by way of ``tensor.data`` in place, or of memory that is shared with another library, leaves no mark; ``Samples``
finds those that are of a whole weight.
"""

import functools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from itertools import cycle
from types import BuiltinFunctionType, FunctionType
from typing import Any, Final
from weakref import ref

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from ilcp.errors import ConfigError
from ilcp.models.adapter import bare_name, unwrapped

__all__ = ["Same", "Samples", "hashed", "marks", "saved_state", "tensor_marks"]

PLAIN = (Tensor, nn.Parameter, nn.Buffer)
SAID = (bool, int, float, str, bytes, torch.dtype, torch.layout, torch.memory_format, Enum, type(None))
FLATTEN = "__tensor_flatten__"  # by which a tensor that holds others shows them
CODE = (type, FunctionType, BuiltinFunctionType)
SAMPLE = 32  # numbers of a weight, evenly spaced
DEPTH = 8  # of objects in objects that are looked through for tensors


def saved_state(model: Any) -> dict[str, Any]:
    """Returns every parameter, saved buffer and whatever else the modules save, by the names of the model without
    wrappers. What is tied counts once.

    Raises:
        ConfigError: a tensor is of a kind that may hold what nobody saves; the text names it.
    """
    model = unwrapped(model)
    for name, module in model.named_modules():
        if getattr(module, "support_avx512bf16_for_cpu", False) and module.weight.device.type == "cpu":
            raise ConfigError(
                f"expected weights that stay as they are, got {name}, which bitsandbytes packs anew for this processor "
                "at its first use, losing digits: put the model on a GPU, or set support_avx512bf16_for_cpu = False "
                "in each of its 4-bit layers"
            )
        for key, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None and type(tensor) not in PLAIN and not hasattr(tensor, FLATTEN) and not _saves(module):
                raise _cannot_be_hashed(f"{name}.{key}", tensor)
    state = model.state_dict()
    found: dict[str, Any] = dict(model.named_parameters())
    found |= {name: buffer for name, buffer in model.named_buffers() if name in state}
    named = model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)
    known = {name for some in named for name, _ in some}
    found |= {name: value for name, value in state.items() if name not in known}
    return {bare_name(name): value for name, value in found.items()}


def _saves(module: nn.Module) -> bool:
    """Says whether a module saves more, or something else, than its parameters and buffers."""
    return type(module)._save_to_state_dict is not nn.Module._save_to_state_dict


def hashed(name: str, value: Any) -> Iterator[bytes | memoryview]:
    """Yields what is hashed of a saved value: of a plain tensor a header, with its name, and its bytes.

    Raises:
        ConfigError: it is of a kind that cannot be hashed; the text names it.
    """
    if isinstance(value, Tensor):
        yield from _tensor(name, value)
    elif isinstance(value, tuple | list):
        for index, each in enumerate(value):
            yield from hashed(f"{name}[{index}]", each)
    else:
        yield f"{name} {_said(name, value)}".encode()


def _tensor(name: str, tensor: Any) -> Iterator[bytes | memoryview]:
    tensor = tensor.detach()
    header = f"{name} {tensor.dtype} {tuple(tensor.shape)}"
    if hasattr(tensor, FLATTEN):
        parts, context = tensor.__tensor_flatten__()
        yield f"{header} {type(tensor).__qualname__} {_said(name, context)}".encode()
        for part in parts:
            yield from _tensor(f"{name}.{part}", getattr(tensor, part))
    elif tensor.is_quantized:
        yield f"{header} {tensor.qscheme()}".encode()
        yield from _tensor(f"{name}.int_repr", tensor.int_repr())
        if tensor.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
            yield f"{tensor.q_scale()} {tensor.q_zero_point()}".encode()
        else:
            yield f"{tensor.q_per_channel_axis()}".encode()
            yield from _tensor(f"{name}.scales", tensor.q_per_channel_scales())
            yield from _tensor(f"{name}.zero_points", tensor.q_per_channel_zero_points())
    elif tensor.layout is not torch.strided or tensor.is_meta or tensor.is_nested:
        raise _cannot_be_hashed(name, tensor)
    else:
        yield header.encode()
        yield tensor.reshape(-1).cpu().contiguous().view(torch.uint8).numpy().data


def _said(name: str, value: Any) -> str:
    """Returns a text that is the same for equal values and in every process; where they lie does not count.

    Raises:
        ConfigError: it is of a kind that may say something else the next time.
    """
    if isinstance(value, SAID):
        return repr(value)
    if isinstance(value, torch.device):
        return "device"
    if isinstance(value, tuple | list):
        return f"({', '.join(_said(name, each) for each in value)})"
    if isinstance(value, Mapping):
        return f"{{{', '.join(sorted(f'{_said(name, key)}: {_said(name, each)}' for key, each in value.items()))}}}"
    if isinstance(value, CODE):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, functools.partial):
        return _said(name, (value.func, value.args, value.keywords))
    if is_dataclass(value):
        held = {field.name: getattr(value, field.name) for field in fields(value)}
        return f"{type(value).__qualname__}{_said(name, held)}"
    raise _cannot_be_hashed(name, value)


def _cannot_be_hashed(name: str, value: Any) -> ConfigError:
    kind = type(value).__qualname__ + (f" ({value.layout})" if isinstance(value, Tensor) else "")
    return ConfigError(
        f"expected weights that a model can be known by, got {name} as a {kind}, which cannot be hashed: "
        "load the model unquantised, or quantised by a method that SUPPORT.md lists"
    )


def marks(model: Any) -> list[Any]:
    """Returns what differs once a tensor of ``saved_state`` was written to, moved or replaced: no weight is read.

    The marks hold no tensor, so that a model that moves leaves nothing behind, but for packed weights.
    """
    found: list[Any] = []
    for module in unwrapped(model).modules():
        buffers = (buffer for name, buffer in module._buffers.items() if name not in module._non_persistent_buffers_set)
        held = [*module._parameters.values(), *buffers]
        if _saves(module):
            held += [value for name, value in vars(module).items() if name not in vars(_BARE)]
        for value in held:
            found += _marks(value, DEPTH)
    return found


_BARE: Final = nn.Module()  # what it holds, every module does


def _marks(value: Any, depth: int) -> Iterator[Any]:
    if value is None or isinstance(value, SAID) or not depth:
        return
    if isinstance(value, Tensor):
        yield from tensor_marks(value, depth)
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _marks(each, depth - 1)
    elif isinstance(value, tuple | list):
        for each in value:
            yield from _marks(each, depth - 1)
    elif isinstance(value, torch.ScriptObject):
        yield Same(value)
    elif hasattr(value, "__dict__") and not isinstance(value, (*CODE, nn.Module)):
        yield from _marks(vars(value), depth - 1)


def tensor_marks(tensor: Any, depth: int) -> Iterator[Any]:
    """Yields what differs once a tensor was written to, moved or replaced, and what it holds so deep."""
    if hasattr(tensor, FLATTEN):
        yield from (mark for part in tensor.__tensor_flatten__()[0] for mark in _marks(getattr(tensor, part), depth))
        return
    version = float("nan") if tensor.is_inference() else tensor._version  # unknown: unlike itself
    if tensor.layout is torch.strided:
        storage = StorageWeakRef(tensor.untyped_storage())
        yield storage, tensor.storage_offset(), tensor.stride(), tuple(tensor.shape), tensor.dtype, version
    else:
        yield Same(tensor), version
    if type(tensor) not in PLAIN:  # bitsandbytes keeps scales beside the weight
        yield from _marks(vars(tensor), depth - 1)


class Samples:
    """Some numbers of each weight: what is written to a whole weight where no mark shows, such as through
    ``tensor.data``, is found by and by, as each call of ``same`` looks at one weight."""

    def __init__(self, weights: Iterable[Tensor]):
        plain = (each for each in weights if type(each) in PLAIN and each.is_contiguous())
        self._each = [(ref(each), _sample(each)) for each in plain if not each.is_meta and each.numel()]
        self._turns = cycle(self._each)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Samples) and [one for _, one in self._each] == [one for _, one in other._each]

    __hash__ = None  # type: ignore[assignment]

    def same(self) -> bool:
        """Says whether the next weight still holds the numbers that it held."""
        held, before = next(self._turns, (ref(self), None))
        tensor = held()
        return before is None or (isinstance(tensor, Tensor) and before == _sample(tensor))


def _sample(tensor: Tensor) -> Any:
    flat = tensor.detach().view(-1)
    return flat[:: max(1, len(flat) // SAMPLE)].contiguous().view(torch.uint8).tolist()


class Same:
    """Equals only what holds the very same object."""

    def __init__(self, held: Any):
        self._held = held

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self._held is other._held

    __hash__ = None  # type: ignore[assignment]
