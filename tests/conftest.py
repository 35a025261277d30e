"""Fixtures of all tests: a small untrained pair, a taught one, and the embedded one. Nothing is downloaded."""

from types import SimpleNamespace

import pytest
import torch

import ilcp
from ilcp.embedded import Pair
from ilcp.models.fingerprint import identify
from ilcp.training import Models
from ilcp_codecs.vae import VaeCodec, VaeConfig, VaeNetwork
from tests.helpers import make_model, make_tokenizer
from tests.taught import make_models

torch.set_num_threads(1)  # a second thread gains nothing for such models, and beside another process loses tenfold


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Starts every test from the same random numbers of torch, whichever tests ran before it in the same process."""
    torch.manual_seed(0)


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
    """The embedded pair, which judges no message: what one test hands over would be evidence to the next."""
    return ilcp.load_pair(assurance=None)


@pytest.fixture(scope="module")
def models() -> Models:
    """A random sender, and a receiver taught to copy the one name that stands in its prompt."""
    return make_models()
