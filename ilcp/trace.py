"""A trace that agents write together: each reads its part behind what the others left, and takes latent steps.

::

    Writer.write(text) -> Trace -> Writer.write(text, on=trace) -> Trace -> Reader.generate(trace, question)

>>> import ilcp
>>> from ilcp.trace import Plan, Reader, TraceCodec
>>> end = ilcp.load_pair().receiver                               # a small model inside the package
>>> plan = Plan(agents=("planner", "critic"), steps=2, prompt=" {text}")
>>> codec = TraceCodec.of(end.model, end.tokenizer, plan)
>>> planner, critic = plan.writers(end.model, end.tokenizer)
>>> trace = critic.write("The root cause was expiry.", on=planner.write("Mara owns the ticket."))
>>> [(segment.role, segment.prompt_tokens > 0, segment.steps) for segment in trace.segments]
[('planner', True, 2), ('critic', True, 2)]
>>> reader = Reader(end.model, end.tokenizer, codec, allow_unmeasured=True)
>>> answer = reader.generate(trace, "Who owns the ticket?")

The names are those of the codec ``trace``, wherever it is installed from; ``ilcp trace train`` tunes a reader.
"""

from importlib import import_module
from typing import Any

PLACES = {
    "": ("Plan", "Reader", "Rule", "Segment", "Trace", "TraceCodec", "Writer", "cut", "written"),
    ".config": ("TraceConfig", "read_trace_config"),
    ".job": ("measure", "train"),
    ".tuning": ("SWEEP", "tune"),
    ".worth": ("steps_worth",),
}
NAMES = {name: place for place, names in PLACES.items() for name in names}

__all__ = ["NAMES"]


def __dir__() -> list[str]:
    return sorted({*globals(), *NAMES})


def __getattr__(name: str) -> Any:
    if name in NAMES:
        from ilcp.codec.registry import codec_class  # late: it loads torch

        return getattr(import_module(codec_class("trace").__module__.rpartition(".")[0] + NAMES[name]), name)
    raise AttributeError(f"module 'ilcp.trace' has no attribute {name!r}")
