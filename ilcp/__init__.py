"""Hands an agent's working context to the next agent as a learned message of about 100 bytes.

>>> import ilcp
>>> pair = ilcp.load_pair()                        # two small models and a codec, inside the package: no download
>>> document = "Mara owns the ticket. The affected region is Bergen. The root cause was expiry."
>>> message = pair.sender.encode(document)         # bytes: what crosses the hop
>>> len(message)
100
>>> memory = pair.receiver.decode(message)         # vectors that the receiver attends to; serves any number of calls
>>> memory.shape[1] == pair.receiver.model.config.hidden_size
True
>>> answer = pair.receiver.generate(message, "Which region is affected?")
>>> nothing = pair.receiver.generate(None, "Which region is affected?")
>>> ceiling = pair.receiver.generate(None, "Which region is affected?", context=document)

Your own two models take the same names: ``Sender(model, tokenizer, codec)``, ``Receiver(model, tokenizer, codec)``;
``train(sender=..., receiver=..., data=..., out=...)`` makes a codec for them, ``load(folder_or_hub_id)`` fetches one,
and ``adapt(model, codec)`` gives the receiver the adapter of a codec that was trained with one. ``connect(address)``
hands messages on between processes (``ilcp.transport``), a ``KeyRing`` seals them, a ``ReplayCache`` lets each in once.
``Message`` is the wire format, a ``Memory`` (``SoftPrompt`` or ``TextMemory``) what comes out of one.
``import ilcp``, ``connect``, ``KeyRing``, ``ReplayCache``, ``Message`` load no torch.
"""

from importlib import import_module, metadata
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from ilcp import errors
from ilcp.message import Message

if TYPE_CHECKING:
    from ilcp.codec.folder import load, save
    from ilcp.codec.memory import Memory, SoftPrompt, TextMemory
    from ilcp.embedded import load_pair
    from ilcp.handoff import Receiver, Sender
    from ilcp.message.keys import KeyRing
    from ilcp.message.replay import ReplayCache
    from ilcp.models.adapter import adapt
    from ilcp.models.prompt import MEMORY_HERE
    from ilcp.training.job import train
    from ilcp.transport import connect

__all__ = [
    "MEMORY_HERE",
    "KeyRing",
    "Memory",
    "Message",
    "Receiver",
    "ReplayCache",
    "Sender",
    "SoftPrompt",
    "TextMemory",
    "adapt",
    "connect",
    "errors",
    "load",
    "load_pair",
    "save",
    "train",
]

_LAZY = {  # most need torch, which takes seconds to import; the others, what not every program needs
    "KeyRing": "ilcp.message.keys",
    "MEMORY_HERE": "ilcp.models.prompt",
    "Memory": "ilcp.codec.memory",
    "Receiver": "ilcp.handoff",
    "ReplayCache": "ilcp.message.replay",
    "Sender": "ilcp.handoff",
    "SoftPrompt": "ilcp.codec.memory",
    "TextMemory": "ilcp.codec.memory",
    "adapt": "ilcp.models.adapter",
    "connect": "ilcp.transport",
    "load": "ilcp.codec",
    "load_pair": "ilcp.embedded",
    "save": "ilcp.codec",
    "train": "ilcp.training.job",
}


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    if name == "__version__":
        return metadata.version("ilcp")
    if not name.startswith("_") and find_spec(f"ilcp.{name}"):  # every room is reachable after ``import ilcp``
        return import_module(f"ilcp.{name}")
    raise AttributeError(f"module 'ilcp' has no attribute {name!r}")
