"""Tiny random models of the families that people use: one table for every test that goes through all of them.

Nothing is downloaded, and importing this needs no transformers. The ids are those of ``tests.helpers.make_tokenizer``:
0 begins, 1 ends and pads.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

SLIDING_TOKENS = 16  # shorter than the prompts of the tests, so that a window left out of account shows
INIT_STD = 0.3  # with the usual 0.02 every prompt would get nearly the same answer


@dataclass(frozen=True, slots=True)
class Family:
    """One family: its configuration's class in transformers, and what its tiny model needs beyond what all have."""

    config: str
    receiver: bool = True  # False: an encoder, which can send and cannot answer
    sliding: bool = False  # some layers see the last SLIDING_TOKENS only
    settings: Mapping[str, Any] = field(default_factory=dict)


GROUPED = {"num_key_value_heads": 2}
HEADS = GROUPED | {"head_dim": 8}
# Untied: a random model that reads words by the matrix that it says them with repeats its last word for ever.
ALTERNATING = {
    "sliding_window": SLIDING_TOKENS,
    "layer_types": ["sliding_attention", "full_attention"],
    "query_pre_attn_scalar": 8,
    "tie_word_embeddings": False,
}

FAMILIES: dict[str, Family] = {
    "llama": Family("LlamaConfig", settings=GROUPED),
    "qwen2": Family("Qwen2Config", settings=GROUPED),
    "qwen3": Family("Qwen3Config", settings=HEADS),
    "mistral": Family("MistralConfig", sliding=True, settings=HEADS | {"sliding_window": SLIDING_TOKENS}),
    "gemma2": Family("Gemma2Config", sliding=True, settings=HEADS | ALTERNATING),
    "gemma3_text": Family("Gemma3TextConfig", sliding=True, settings=HEADS | ALTERNATING),
    "phi3": Family("Phi3Config", settings=GROUPED),
    "olmo2": Family("Olmo2Config", settings=GROUPED),
    "gpt2": Family("GPT2Config", settings={"tie_word_embeddings": False}),
    "gpt_neox": Family("GPTNeoXConfig"),
    "bert": Family("BertConfig", receiver=False),
}


def build(
    family: str,
    vocabulary: int,
    dtype: torch.dtype = torch.float32,
    hidden: int = 32,
    layers: int = 2,
    window: int = 256,
    seed: int = 0,
) -> Any:
    """Makes a random model of the family in evaluation mode: for causal language modelling, or the bare encoder.

    ``hidden`` is a multiple of 8; every family has 4 heads, but those with a head width of their own, 8.
    """
    import transformers

    chosen = FAMILIES[family]
    settings = dict(chosen.settings)
    if "layer_types" in settings:
        settings["layer_types"] = [settings["layer_types"][layer % 2] for layer in range(layers)]
    config = getattr(transformers, chosen.config)(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=window,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        initializer_range=INIT_STD,
        **settings,
    )
    maker = transformers.AutoModelForCausalLM if chosen.receiver else transformers.AutoModel
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return maker.from_config(config, dtype=dtype).eval()


def reconfigured(model: Any, changes: Mapping[str, Any]) -> Any:
    """Returns a model of the same weights under a configuration that is changed here and there."""
    config = copy.deepcopy(model.config)
    for name, value in changes.items():
        rotary = getattr(config, "rope_parameters", None) or {}  # transformers 5 keeps the base of positions in it
        if name in rotary:
            rotary[name] = value
        else:
            setattr(config, name, value)
    other = type(model)(config).to(model.dtype).eval()
    other.load_state_dict(model.state_dict())
    return other
