"""The facts codec: what was said about each topic, as a latent whose bytes become words in the receiver's own space.

::

    states "layers tokens hidden"
      --Extractor-->  which topics were said, and the words of each value "facts places width"
      --latent-->     z_hat: one bit a dimension, some for the value as a whole, some for each token of it
      --Agenda-->     payload: topics by their chances, then the first bit of every fact, the second, ...
      --Speller-->    memory "vectors hidden": for each fact its topic, then the expected embedding of each word

It fits cases whose questions come again: what a customer settled, what a form asks for. The bits go to what was said
and to nothing else, so a payload is as long as its facts need, and any prefix of it is a coarser code of all of them.
Slots per fact and the training by what was said follow dialogue state tracking (TRADE, arXiv 1905.08743: it, too,
points at the words of a value); the discrete latent is this library's.
"""

from ilcp_codecs.facts.codec import FactsCodec
from ilcp_codecs.facts.config import FactsConfig
from ilcp_codecs.facts.network import FactsNetwork

__all__ = ["FactsCodec", "FactsConfig", "FactsNetwork"]
