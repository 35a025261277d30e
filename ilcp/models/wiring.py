"""What decides a loaded model's function beside what it saves, and a look that says fast whether any of it has moved.

The wiring is, module by module: its class, its own attributes (numbers, methods put over those of the class, its
configuration, its attention's kind), its hooks, its buffers that are not saved, such as the frequencies of rotary
positions; then the forward of each class, the functions of the file it is from, and the kinds of attention that are
registered. Objects are known by being the same ones, and looked into; short buffers by their numbers.

What it does to the function, no mark says: where the wiring is another, a sentence is read (``ilcp.models.probe``).
"""

import sys
from collections.abc import Iterable, Iterator, MutableSequence, MutableSet, Sequence, Set
from functools import partial
from itertools import chain
from operator import attrgetter, itemgetter
from types import CellType, FunctionType, MethodType, ModuleType
from typing import Any, Final
from weakref import ref

from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.modules import module as everywhere

from ilcp.models.adapter import unwrapped
from ilcp.models.state import CODE, PLAIN, SAID, Same, tensor_marks

__all__ = ["Heard", "Listening", "Wiring"]

HOOKS = ("_forward_hooks", "_forward_pre_hooks")
HELD = ("_modules", "_parameters", "_buffers", *HOOKS)
BARE: Final = frozenset(vars(nn.Module()))  # what every module has
GLOBAL_HOOKS = ("_global_forward_hooks", "_global_forward_pre_hooks")
REGISTRY = "_global_mapping"  # of transformers' kinds of attention and of masks
DEPTH = 6  # of objects in objects that are looked into
EMPTY: Final = CellType()
SHORT = 1024  # numbers of a buffer, or things in a list: more are not looked at one by one


class Listening:
    """Marks a callable of ilcp's own, put into a model for a while: it only listens, so the function stays as it is."""


class Heard(Listening, partial[Any]):
    """A hook that only listens."""


class Wiring:
    """The wiring of a model as it is now; equal to another that was found the same.

    It keeps no module and no tensor alive. ``unchanged`` takes about a microsecond a module; a new one, twenty.
    """

    def __init__(self, model: Any):
        walk = _Walk(list(unwrapped(model).modules()))
        self._found, self._kept = walk.found, walk.seen
        try:
            self._look: _Look | None = _Look(walk)
        except RuntimeError:  # tensors that count no writes
            self._look = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Wiring) and self._found == other._found

    __hash__ = None  # type: ignore[assignment]

    def unchanged(self, model: Any) -> bool:
        """Says that nothing has moved since, neither wiring nor weights; False where that is not known."""
        return self._look is not None and self._look.same(unwrapped(model))


class _Walk:
    """What is found in a model, and the places to look at again."""

    def __init__(self, modules: Sequence[Any]):
        self.found: list[Any] = []
        self.seen: dict[
            int, Any
        ] = {}  # objects that were looked into; kept, so that no other gets an address of theirs
        self.dicts: list[dict[Any, Any]] = []
        self.lists: list[Iterable[Any]] = []
        self.cells: list[Any] = []
        self.tensors: list[Tensor] = []
        self.short: list[Tensor] = []
        self.modules = modules
        for module in modules:
            self._module(module)
        self._classes(dict.fromkeys(map(type, modules)))

    def _module(self, module: Any) -> None:
        own = [(name, value) for name, value in list(vars(module).items()) if name not in BARE]
        own = [each for each in own if not isinstance(each[1], Listening)]
        hooks = [
            each for name in HOOKS for each in list(vars(module)[name].values()) if not isinstance(each, Listening)
        ]
        self.found += [ref(module), type(module), [name for name, _ in own], len(hooks)]
        for value in (*(value for _, value in own), *hooks):
            self._value(value, DEPTH)
        self.tensors += [each for each in module._parameters.values() if each is not None]
        for name, buffer in module._buffers.items():
            if buffer is None or name not in module._non_persistent_buffers_set:
                self.tensors += [] if buffer is None else [buffer]
            elif type(buffer) in PLAIN and buffer.numel() <= SHORT and not buffer.is_meta:
                self.short.append(buffer)
                self.found += [name, buffer.dtype, buffer.tolist()]
            else:
                self._value(buffer, DEPTH)

    def _classes(self, classes: Iterable[Any]) -> None:
        homes = {kind.__module__ for kind in classes if not kind.__module__.startswith("torch.")}
        files = [vars(sys.modules[name]) for name in sorted(homes) if name in sys.modules]
        registries = {id(each): each for file in files for each in list(file.values()) if _is_registry(each)}
        named = [vars(everywhere)[name] for name in GLOBAL_HOOKS]
        named += [kinds for each in registries.values() for kinds in (getattr(each, REGISTRY), *vars(each).values())]
        self.dicts += (named := [*files, *(each for each in named if isinstance(each, dict))])
        for each in named:
            self.found += [(name, Same(value)) for name, value in list(each.items()) if callable(value)]
        self.found += [Same(getattr(kind, "forward", None)) for kind in classes]

    def _value(self, value: Any, depth: int, called: bool = False) -> None:
        if isinstance(value, SAID):
            self.found.append(value)
        elif isinstance(value, Tensor):
            self.tensors.append(value)
            self.found += tensor_marks(value, DEPTH)
        elif isinstance(value, nn.Module):
            self.found.append(ref(value))
        elif not isinstance(value, Listening):
            self.found.append(Same(value))
            if depth and id(value) not in self.seen:
                self.seen[id(value)] = value
                called = called or callable(value)
                for each in self._inside(value, called):
                    self._value(each, depth - 1, called)

    def _inside(self, value: Any, called: bool) -> list[Any]:
        """Returns what an object holds that can be another by the next look; of what is called, not what it collects
        in lists and dicts, as recorders do."""
        if isinstance(value, MethodType):
            return [value.__self__]
        if called and isinstance(value, dict | MutableSequence | MutableSet):
            return []
        if isinstance(value, FunctionType):
            cells = [cell for cell in value.__closure__ or () if cell != EMPTY]
            self.cells += cells
            return [cell.cell_contents for cell in cells]
        if isinstance(value, dict):
            self.found.append([*map(str, value)])
            self.dicts.append(value)
            return list(value.values())
        if isinstance(value, Sequence | Set):
            self.found.append(len(value))
            self.lists.append(value)
            return list(value) if len(value) <= SHORT else []
        if not hasattr(value, "__dict__") or isinstance(value, (*CODE, ModuleType)):
            return []
        self.dicts.append(vars(value))
        self.found.append([*vars(value)])
        parts = [value.func, *value.args, *value.keywords.values()] if isinstance(value, partial) else []
        return [*vars(value).values(), *parts]


class _Look:
    """Looks at the same places again, in the order of the walk: all that is compared are addresses and counts."""

    def __init__(self, walk: _Walk):
        if any(type(each) not in PLAIN for each in walk.tensors):
            raise RuntimeError("expected plain tensors, got others, which hold what no version counts")
        self._modules = [ref(module) for module in walk.modules]
        self._own = [itemgetter(*HELD, *(vars(module).keys() - BARE)) for module in walk.modules]
        self._kinds: list[Any] = list(dict.fromkeys(map(type, walk.modules)))
        self._places = walk.dicts, walk.lists, walk.cells
        self._tensors, self._short = ([ref(tensor) for tensor in some] for some in (walk.tensors, walk.short))
        self._storages = [StorageWeakRef(tensor.untyped_storage()) for tensor in walk.tensors]
        values = list(self._values())
        self._kept = [each for each in values if not isinstance(each, Tensor | nn.Module)]
        self._before = self._now()

    def same(self, model: Any) -> bool:
        try:
            return self._modules[0]() is model and self._now() == self._before
        except Exception:  # something is gone, or is written to at this moment
            return False

    def _values(self) -> Iterator[Any]:
        dicts, lists, cells = self._places
        rows = [own(vars(module())) for own, module in zip(self._own, self._modules, strict=True)]
        held = chain.from_iterable(map(itemgetter(slice(len(HELD))), rows))
        return chain(
            chain.from_iterable(map(itemgetter(slice(len(HELD), None)), rows)),
            chain.from_iterable(map(dict.values, chain(held, dicts))),
            chain.from_iterable(lists),
            map(attrgetter("cell_contents"), cells),
        )

    def _now(self) -> tuple[Any, ...]:
        modules = [module() for module in self._modules]
        tensors: list[Any] = [tensor() for tensor in self._tensors]
        return (
            [*map(type, modules)],
            [*map(len, map(vars, modules))],
            [*map(id, self._values())],
            [kind.forward for kind in self._kinds],
            [tensor._version for tensor in tensors],
            [tensor.untyped_storage()._cdata for tensor in tensors],
            [*map(Tensor.storage_offset, tensors)],
            [*map(Tensor.stride, tensors)],
            [tensor.shape for tensor in tensors],
            [tensor.dtype for tensor in tensors],
            [tensor().tolist() for tensor in self._short],  # type: ignore[union-attr]
        )


def _is_registry(value: Any) -> bool:
    return isinstance(getattr(type(value), REGISTRY, None), dict)
