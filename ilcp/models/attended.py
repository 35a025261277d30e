"""What a model looks at in its own cache while it answers questions: how much attention each token of it ever got.

::

    cache, questions --answer each, greedily, by attention that shows its weights--> "heads held" of each layer

A question alone does not tell: the words of an answer look at other tokens than the words that ask for it.
"""

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from einops import reduce
from torch import Tensor

from ilcp.codec.keys_values import KeysValues
from ilcp.errors import ConfigError
from ilcp.models.adapter import unwrapped
from ilcp.models.forward import Prefill, embed, require_room
from ilcp.models.generate_options import end_ids
from ilcp.models.kv import placed
from ilcp.models.prompt import pieces
from ilcp.nn.inference import inference

__all__ = ["attended"]

MOST_TOKENS = 16  # of an answer


@inference(unwrapped)
def attended(
    model: Any,
    tokenizer: Any,
    before: Sequence[int],
    kv: KeysValues,
    questions: Sequence[str],
    template: dict[str, Any],
) -> tuple[Tensor, ...]:
    """Returns for each layer ``"heads held"``: the largest share of a head's attention that a token of the cache got.

    Args:
        before: ids of what stands before the cache in a prompt.
        kv: keys and values of the model's own.
        questions: each is asked behind the cache, and answered.
        template: arguments for the chat template beside the messages.

    Raises:
        EncodeError: a question leaves no room for an answer in the model's window.
        ConfigError: what hangs from the model cannot be copied.
    """
    asked = [pieces(tokenizer, question, [None], template)[-1] for question in questions]
    length = len(before) + kv.tokens
    longest = max(range(len(asked)), key=lambda number: len(asked[number]))
    what = f"a cache, question {longest} of the codec and an answer"
    way_out = "hand off a shorter text, or make a codec of shorter questions"
    require_room(model, length + len(asked[longest]), MOST_TOKENS, what=what, way_out=way_out)
    cache = placed(model, [*([embed(model, before)] if before else []), kv], whole=True)
    showing = _showing(model)
    most: list[Tensor] = []
    for ids in asked:
        for weights in _answering(showing, ids, copy.deepcopy(cache), length, end_ids(model)):
            found = [_of_cache(each, keys, length) for each, keys in zip(weights, kv.keys, strict=True)]
            most = [torch.maximum(a, b) for a, b in zip(most, found, strict=True)] if most else found
    return tuple(most)


def _answering(
    model: Any, ids: Sequence[int], cache: Any, position: int, ends: Sequence[int]
) -> Iterator[tuple[Tensor, ...]]:
    """Yields each pass's weights ``"1 heads tokens places"`` of all layers, of the question, then of its answer."""
    prefill, row = Prefill(model, output_attentions=True), list(ids)
    for _ in range(MOST_TOKENS + 1):
        out = prefill.outputs(embed(model, row), cache, position)
        yield out.attentions
        position, row = position + len(row), [int(out.logits[0, -1].argmax())]
        if row[0] in ends:
            return


def _of_cache(weights: Tensor, keys: Tensor, end: int) -> Tensor:
    """Returns ``"heads held"`` out of one layer's weights; heads that share keys share what they look at."""
    heads, held, _ = keys.shape
    own = weights[0, :, :, end - held : end].float()
    return reduce(own, "(heads group) tokens held -> heads held", "max", heads=heads)


def _showing(model: Any) -> Any:
    """Returns the model with an attention that gives its weights away; the parameters are the same, nothing is copied.

    Whoever else runs the model meanwhile runs it as it was.
    """
    inner = unwrapped(model)
    same = {id(each): each for each in (*inner.parameters(), *inner.buffers())}
    try:
        twin = copy.deepcopy(inner, same)
    except TypeError as error:
        raise ConfigError(
            f"expected a model whose modules can be copied, got: {error}; take off what hangs from it, such as hooks"
        ) from error
    twin.set_attn_implementation("eager")
    return twin
