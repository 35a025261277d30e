"""The input of a hand-off: the text a sender has read and the states it has computed."""

from dataclasses import dataclass

from torch import Tensor

from ilcp.codec.keys_values import KeysValues

__all__ = ["Context"]


@dataclass(frozen=True)
class Context:
    """All that the sender has read and computed.

    ``states`` is ``"layers tokens hidden"`` in the dtype that the model computes in, or None where the codec reads text
    only; ``text`` is None where only ids or states were given; ``windows`` says in how many passes the text was read.
    ``kv`` is for codecs of caches; where such a codec has questions, ``attended`` is how much each token was looked at,
    ``"heads held"`` of each layer (``ilcp.models.attended``).
    """

    text: str | None = None
    states: Tensor | None = None
    windows: int = 1
    kv: KeysValues | None = None
    attended: tuple[Tensor, ...] | None = None

    @property
    def tokens(self) -> int:
        """The number of tokens that were captured; 0 where no states were."""
        return 0 if self.states is None else self.states.shape[1]
