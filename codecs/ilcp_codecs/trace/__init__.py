"""Latent traces: agents write their keys and values and latent steps in turn, and the last one is tuned to read.

>>> from ilcp_codecs.trace import Reader, TraceCodec, Writer
>>> planner = Writer(model, tokenizer, role="planner")                 # doctest: +SKIP
>>> trace = planner.write("The goal is ...")                           # doctest: +SKIP
"""

from ilcp_codecs.trace.codec import TraceCodec
from ilcp_codecs.trace.plan import Plan
from ilcp_codecs.trace.reader import Reader
from ilcp_codecs.trace.rules import RULES, Rule
from ilcp_codecs.trace.trace import Segment, Trace
from ilcp_codecs.trace.writer import Writer, cut, written

__all__ = ["RULES", "Plan", "Reader", "Rule", "Segment", "Trace", "TraceCodec", "Writer", "cut", "written"]
