"""Fixtures of all tests: a small untrained pair, and the embedded one. Nothing is downloaded."""

from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import ilcp
from ilcp.embedded import Pair
from ilcp.models.fingerprint import identify
from ilcp.tasks import case_files
from ilcp_codecs.vae import VaeCodec, VaeConfig, VaeNetwork

torch.set_num_threads(1)  # a second thread gains nothing for such models, and beside another process loses tenfold
TEMPLATE = (
    "{% for message in messages %}<|user|>{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def make_tokenizer(vocabulary: int = 300, template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """Trains a byte-level tokenizer on a few dossiers."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<s>", "</s>", "<|user|>", "<|assistant|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((case.context for case in case_files("train", 0, 20)), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>", chat_template=template
    )


def make_model(
    vocabulary: int, hidden: int = 32, layers: int = 2, window: int = 256, seed: int = 0
) -> LlamaForCausalLM:
    """Makes a small random Llama."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=hidden,
            intermediate_size=2 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=4,
            max_position_embeddings=window,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
    ).eval()


@pytest.fixture(scope="session")
def small() -> SimpleNamespace:
    """A random pair of different widths and vocabularies, and an untrained codec between them."""
    sender_tokenizer, receiver_tokenizer = make_tokenizer(300), make_tokenizer(320)
    sender = make_model(len(sender_tokenizer), hidden=32, seed=1)
    receiver = make_model(len(receiver_tokenizer), hidden=48, seed=2)
    torch.manual_seed(3)
    config = VaeConfig(
        (0, 1, 2), 32, 48, slots=8, dims=16, prefixes=(2, 4, 8, 16), width=32, heads=4, projector_width=32
    )
    network = VaeNetwork(config)
    network.projector.match(receiver.get_input_embeddings().weight.detach().unsqueeze(1))
    codec = VaeCodec.from_network(network, identify(sender, sender_tokenizer), identify(receiver, receiver_tokenizer))
    return SimpleNamespace(
        sender=ilcp.Sender(sender, sender_tokenizer, codec),
        receiver=ilcp.Receiver(receiver, receiver_tokenizer, codec, allow_unmeasured=True),
        codec=codec,
    )


@pytest.fixture(scope="session")
def pair() -> Pair:
    """The embedded pair."""
    return ilcp.load_pair()
