"""Options of transformers' ``generate``: what a caller may choose, and a ``generation_config`` may not.

A receiver answers greedily, with one str, unless its caller says otherwise. How a model samples where its caller asks
for sampling (``temperature``, ``top_p``) is the model's to say; that it samples, searches, penalises or stops is not.
"""

from collections.abc import Mapping, Sequence
from typing import Any, SupportsIndex

from ilcp.errors import ConfigError

__all__ = ["before_stop", "end_ids", "neutral", "require_count", "require_options"]

_PROMPT = "the prompt is made from the message and the question"
_ONE = "the answer is one str"
_IDS = "it needs a prompt of token ids, and a memory has none"
_CODE = "transformers does this only with code from elsewhere, which does not know where a memory sits"
DECIDED = {  # options of transformers' generate that are not the caller's, and why
    **dict.fromkeys(("inputs", "input_ids", "inputs_embeds", "attention_mask", "position_ids"), _PROMPT),
    **dict.fromkeys(("cache_position", "token_type_ids"), _PROMPT),
    **dict.fromkeys(("num_return_sequences", "return_dict_in_generate"), _ONE),
    **dict.fromkeys(("output_scores", "output_logits", "output_attentions", "output_hidden_states"), _ONE),
    **dict.fromkeys(("assistant_model", "prompt_lookup_num_tokens", "prefill_chunk_size"), _IDS),
    **dict.fromkeys(("guidance_scale", "negative_prompt_ids", "negative_prompt_attention_mask"), _IDS),
    **dict.fromkeys(("assistant_early_exit", "token_healing"), _IDS),
    **dict.fromkeys(("encoder_repetition_penalty", "encoder_no_repeat_ngram_size"), _IDS),
    **dict.fromkeys(("is_assistant", "num_assistant_tokens", "assistant_confidence_threshold"), _IDS),
    **dict.fromkeys(("decoder_start_token_id", "bos_token_id", "decoder_input_ids"), _PROMPT),
    **dict.fromkeys(("penalty_alpha", "dola_layers", "constraints", "force_words_ids", "num_beam_groups"), _CODE),
    "diversity_penalty": _CODE,
    "adapter_names": "the codec is for the adapters that are active: switch them before",
    "past_key_values": "pass it as cache=, so that it is copied",
    "cache": "it is one prompt's; pass it to generate, question by question",
    **dict.fromkeys(("custom_generate", "trust_remote_code"), "code from elsewhere does not know where a memory sits"),
    "max_length": "pass max_new_tokens=, which does not count the prompt",
    "min_length": "pass min_new_tokens=, which does not count the prompt",
    "tokenizer": "the receiver passes its own",
    "pad_token_id": "the receiver pads with its tokenizer's",
    "generation_config": "pass its fields one by one",
}
NEUTRAL = {  # what a generation_config is overruled with
    **dict.fromkeys(("num_return_sequences", "num_beams", "num_beam_groups"), 1),
    **dict.fromkeys(("repetition_penalty", "encoder_repetition_penalty", "length_penalty"), 1.0),
    **dict.fromkeys(("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "min_length"), 0),
    **dict.fromkeys(("output_scores", "output_logits", "output_attentions", "output_hidden_states"), False),
    **dict.fromkeys(("return_dict_in_generate", "early_stopping", "renormalize_logits", "token_healing"), False),
    **dict.fromkeys(("min_new_tokens", "max_time", "stop_strings", "bad_words_ids", "sequence_bias")),
    **dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id", "suppress_tokens", "begin_suppress_tokens")),
    **dict.fromkeys(("exponential_decay_length_penalty", "guidance_scale", "watermarking_config")),
    **dict.fromkeys(("prompt_lookup_num_tokens", "assistant_early_exit", "prefill_chunk_size", "penalty_alpha")),
    **dict.fromkeys(("dola_layers", "constraints", "force_words_ids", "cache_implementation")),
    "diversity_penalty": 0.0,
    "do_sample": False,
}


def neutral(model: Any) -> dict[str, Any]:
    """Returns options that undo what the model's ``generation_config`` would do to a plain greedy answer."""
    config = getattr(model, "generation_config", None)
    found = {name: getattr(config, name, None) for name in NEUTRAL}
    asked = {name for name, value in found.items() if value is not None and value != NEUTRAL[name]}
    return {name: value for name, value in NEUTRAL.items() if name in asked or name == "do_sample"}


def end_ids(model: Any) -> tuple[int, ...]:
    """Returns the tokens at which the model's ``generate`` ends an answer."""
    ends = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    return () if ends is None else (int(ends),) if isinstance(ends, SupportsIndex) else tuple(map(int, ends))


def require_options(options: Mapping[str, Any], rows: int, *, cached: bool) -> None:
    """Refuses options that are not the caller's to choose.

    Raises:
        ConfigError: with the names, and for each what to do instead.
    """
    decided = sorted(DECIDED.keys() & options.keys())
    if decided:
        reasons = "; ".join(f"{name}: {DECIDED[name]}" for name in decided)
        raise ConfigError(f"expected options that are the caller's to choose, got {', '.join(decided)} ({reasons})")
    if cached and options.get("cache_implementation") is not None:
        raise ConfigError(
            f"expected either a cache or the kind of one, got cache= and "
            f"cache_implementation={options['cache_implementation']!r}: leave one of them out"
        )
    if options.get("streamer") is not None and rows > 1:
        raise ConfigError(
            f"expected one answer to stream, got {rows}: a streamer follows one; pass batch=1 or generate"
        )


def require_count(name: str, count: Any) -> None:
    """Refuses what is no count.

    Raises:
        ConfigError: it is no whole number from 1.
    """
    if not isinstance(count, SupportsIndex) or count.__index__() < 1:
        raise ConfigError(f"expected {name} to be a whole number from 1, got {count!r}")


def before_stop(text: str, stop_strings: str | Sequence[str] | None) -> str:
    """Returns the text up to the first stop string."""
    stops = [stop_strings] if isinstance(stop_strings, str) else list(stop_strings or ())
    return text[: min((at for at in map(text.find, stops) if at >= 0), default=len(text))]
