"""The chat formats of the big families in our own words, and tokenizers of the kinds that they come with."""

from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from ilcp.tasks import case_files
from tests.helpers import train_tokenizer

CLOSE = "{% endfor %}{% if add_generation_prompt %}"

CHAT_TEMPLATES = {
    "chatml": "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    + CLOSE
    + "<|im_start|>assistant\n{% endif %}",
    "llama3": "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    + "{{ m['content'] | trim }}<|eot_id|>"
    + CLOSE
    + "<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
    "mistral": "{{ bos_token }}{% for m in messages %}"
    + "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    + "{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    + "{% else %}{{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}",
    "gemma": "{{ bos_token }}{% for m in messages %}"
    + "{% if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    + "<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    + "{{ m['content'] | trim }}<end_of_turn>\n"
    + CLOSE
    + "<start_of_turn>model\n{% endif %}",
    "phi3": "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n"
    + CLOSE
    + "<|assistant|>\n{% endif %}",
    "zephyr": "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}{{ eos_token }}\n"
    + CLOSE
    + "<|assistant|>\n{% endif %}",
    "olmo": "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}\n"
    + CLOSE
    + "<|assistant|>\n{% endif %}",
    "a system prompt of its own": "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe brief.<|im_end|>\n"
    + "{% endif %}{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    + CLOSE
    + "<|im_start|>assistant\n{% endif %}",
    "a system prompt in the user's": "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token }}[INST] "
    + "{% if loop.first %}<<SYS>>\nBe brief.\n<</SYS>>\n\n{% endif %}{{ m['content'] | trim }} [/INST]"
    + "{% else %} {{ m['content'] | trim }} {{ eos_token }}{% endif %}{% endfor %}",
    "thinking": "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}"
    + "{% if loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m['content'].split('</think>')[-1].lstrip('\n') }}"
    + "{% else %}{{ m['content'] }}{% endif %}<|im_end|>\n"
    + CLOSE
    + "<|im_start|>assistant\n{% if enable_thinking is defined and enable_thinking is false %}"
    + "<think>\n\n</think>\n\n{% endif %}{% endif %}",
}
CLOSINGS = {"chatml": "<|im_end|>", "llama3": "<|eot_id|>", "gemma": "<end_of_turn>", "phi3": "<|end|>"}
CLOSINGS |= {"a system prompt of its own": "<|im_end|>", "thinking": "<|im_end|>"}  # of an answer; else </s>
SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
SPECIAL += ["<start_of_turn>", "<end_of_turn>", "<|user|>", "<|assistant|>", "<|end|>"]
KINDS = ("bytes", "bytes, prefix space", "metaspace, always", "metaspace, first", "metaspace, never", "normalizer")
BAR = "\u2581"  # sentencepiece's space


def tokenizer_of(kind: str, template: str | None) -> Any:
    """A tokenizer of one of ``KINDS``; with special tokens it opens a text with <s>, as many do."""
    tokenizer = Tokenizer(models.BPE(unk_token=None))
    alphabet = [chr(code) for code in range(32, 127)] + ["\n", BAR]
    if kind.startswith("bytes"):
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=kind.endswith("space"))
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    elif kind == "normalizer":  # what tokenizers converted from sentencepiece have: no words, spaces written as bars
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(BAR), normalizers.Replace(" ", BAR)])
        tokenizer.decoder = decoders.Sequence([decoders.Replace(BAR, " "), decoders.Fuse()])
    else:
        scheme = kind.split()[1]
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
        tokenizer.decoder = decoders.Sequence([decoders.Replace(BAR, " "), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    lines = (line for case in case_files("train", 0, 10) for line in case.context.split(". "))
    options = dict(vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, max_token_length=12)
    return train_tokenizer(tokenizer, lines, template, **options)
