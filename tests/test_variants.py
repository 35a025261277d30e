"""The designs that the codec is compared with: their shapes, their bytes, and what the committed result holds."""

import random
from dataclasses import replace
from types import ModuleType

import pytest
import torch

import ilcp
from ilcp.codec.context import Context
from ilcp.embedded import Pair
from ilcp.measure import Measured
from ilcp.models.fingerprint import identify
from ilcp.training import Models
from ilcp_codecs.vae import VaeNetwork
from tests.helpers import committed_result, load_script

NAMES = ("slots, 1 bit", "slots, 2 bits", "slots, 4 bits", "flat", "mean pooling", "Gaussian", "entropy-coded")
LEARNED = NAMES[:6]  # the last shares a network with the first


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    """The script, as a module."""
    return load_script("variants")


@pytest.fixture
def models(pair: Pair) -> Models:
    """The embedded pair, as training wants it."""
    return Models(pair.sender.model, pair.sender.tokenizer, pair.receiver.model, pair.receiver.tokenizer)


@pytest.fixture
def record() -> dict:
    """The committed result."""
    return committed_result("variants")


def network_of(benchmark: ModuleType, models: Models, name: str) -> VaeNetwork:
    """The untrained network of a design, after one batch of noise has set its norm."""
    torch.manual_seed(0)
    variant = {variant.name: variant for variant in benchmark.VARIANTS}[name]
    network: VaeNetwork = variant.network(benchmark.config_of(models))
    network.projector.match(0.05 * torch.randn(8, 30, models.receiver.config.hidden_size))
    network.train()(torch.randn(8, 4, 40, models.sender.config.hidden_size), torch.ones(8, 40))
    return network.eval()


@pytest.mark.parametrize("name", LEARNED)
def test_every_design_has_640_bits_and_32_memory_vectors(benchmark, models, name) -> None:
    """From states to memory each network has the shapes of the shipped one, and every parameter takes part in both."""
    network = network_of(benchmark, models, name)
    states, mask = torch.randn(3, 4, 50, models.sender.config.hidden_size), torch.ones(3, 50)
    mask[1, 20:] = 0
    memory, rate_bits = network.train()(states, mask)
    assert (3, 32, models.receiver.config.hidden_size) == memory.shape
    assert (3,) == rate_bits.shape
    assert memory.shape[1:] == network.blank(4).shape[1:]
    config = network.config
    assert 640 == config.slots * config.dims * config.bits
    (memory * torch.randn_like(memory)).sum().backward()
    assert [] == [name for name, p in network.named_parameters() if p.grad is None]


@pytest.mark.parametrize("name", LEARNED)
def test_padding_changes_nothing(benchmark, models, name) -> None:
    """A text's latent is the same alone and beside a longer one."""
    network = network_of(benchmark, models, name)
    states = torch.randn(2, 4, 50, models.sender.config.hidden_size)
    mask = torch.ones(2, 50)
    mask[0, 20:] = 0
    together = network.bottleneck(network.pooler(states, mask))[0][0]
    alone = network.bottleneck(network.pooler(states[:1, :, :20], mask[:1, :20]))[0][0]
    torch.testing.assert_close(alone, together, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_every_codec_says_the_same_in_bytes(benchmark, models, monkeypatch, name) -> None:
    """The memory out of the payload is that of the rounded latent; payloads have 80 bytes, entropy-coded their own."""
    monkeypatch.setattr(benchmark, "FITTED_CASES", 6)
    variant = {variant.name: variant for variant in benchmark.VARIANTS}[name]
    network = network_of(benchmark, models, name)
    codec = benchmark.codec_of(variant, network, models, seed=0)
    for _ in range(2):
        context = Context(states=torch.randn(4, 40, models.sender.config.hidden_size))
        payload = codec.encode(context)
        assert codec.encode(context) == payload
        assert 80 == len(payload) or name == "entropy-coded"
        z = codec._latent(context)
        z_hat = network.bottleneck.z_hat(z)
        if name == "Gaussian":
            cells = codec.network.cells
            z_hat = cells.gather(-1, (z.unsqueeze(-1) - cells).abs().argmin(-1, keepdim=True)).squeeze(-1)
        torch.testing.assert_close(codec.decode(payload).vectors, network.projector(z_hat[None])[0])


def test_known_chances_make_the_payload_shorter(benchmark, models) -> None:
    """Bits that are mostly zero take fewer than 80 bytes, and fair ones no more than a byte beside them."""
    network = network_of(benchmark, models, "slots, 1 bit")
    ends = 2 * [identify(models.sender, models.sender_tokenizer)]
    states = torch.randn(4, 40, models.sender.config.hidden_size)
    context = Context(states=states)
    own = network.bottleneck(network.pooler(states[None], torch.ones(1, 40)))[0]
    sizes = {}
    for name, z in (("its own", own.expand(9, -1, -1)), ("fair", torch.cat([own, -own]))):
        codec = benchmark.EntropyCodec.from_network(benchmark.EntropyCodec.fit(network, z), *ends)
        sizes[name] = len(codec.encode(context))
    assert sizes["its own"] in (11, 12)  # 640 times log2(11 / 10) is 88 bits
    assert sizes["fair"] in (80, 81)


def test_cells_have_the_least_squared_error(benchmark) -> None:
    """Of a unit normal, the four cells are Lloyd's and Max's, as printed in their table."""
    z = torch.distributions.Normal(0, 1).icdf((torch.arange(20_000) + 0.5) / 20_000).reshape(-1, 1, 1)
    cells = benchmark.GaussianCodec.fit(torch.nn.Module(), z).cells[0, 0]
    torch.testing.assert_close(torch.tensor([-1.510, -0.4528, 0.4528, 1.510]), cells, atol=0.01, rtol=0)


def test_the_result_names_every_design(record) -> None:
    """Each design is there, with the same training, a codec of real bytes and figures that were measured."""
    assert list(NAMES) == [line["name"] for line in record["variants"]]
    assert 1 == len({line["steps"] for line in record["variants"]})
    for line in record["variants"]:
        figures = {name: figure and Measured(**figure) for name, figure in line["figures"].items()}
        assert {"lookup", "absent", "join", "code", "recovery", "content gain", "delivered"} <= figures.keys()
        assert record["n_documents"] == figures["payload"].n
        assert 80 == figures["payload"].value or line["name"] == "entropy-coded"
        assert figures["payload"].value + 20 == pytest.approx(figures["wire"].value)


def test_a_range_code_costs_no_content(record) -> None:
    """What the entropy-coded bits say is what the same bits say uncoded."""
    lines = {line["name"]: line["figures"] for line in record["variants"]}
    sizes = ("payload", "wire", "content gain")  # random payloads and their lengths differ
    plain, coded = ({k: v for k, v in lines[n].items() if k not in sizes} for n in ("slots, 1 bit", "entropy-coded"))
    assert plain == coded


@torch.no_grad()
def test_a_training_goes_on_from_an_encoder_without_its_later_parts(monkeypatch, small, tmp_path) -> None:
    """Taken over into a network that has both, it makes the same latent: what is new is silent, or a copy."""
    train_codec = load_script("train_codec")
    ilcp.save(small.codec, tmp_path / "first", card="# The first\n")
    network = VaeNetwork(
        replace(small.codec.config, same_token_attention=True, per_slot_mu=True, projector_width=24)
    ).eval()
    train_codec.go_on(network, tmp_path / "first")
    states, mask = torch.randn(2, len(network.layers), 30, network.config.sender_hidden), torch.ones(2, 30)
    before, after = (n.bottleneck(n.pooler(states, mask))[0] for n in (small.codec.network, network))
    torch.testing.assert_close(before, after, atol=1e-5, rtol=1e-5)


def test_documents_that_begin_a_training_state_what_they_are_for(monkeypatch) -> None:
    """People come with all their offices, and a weak attribute is in each document that is about it."""
    train_codec = load_script("train_codec")
    people = train_codec.people_case(random.Random(1))
    kinds = [question.kind for question in people.questions]
    assert 2 <= kinds.count("join") == kinds.count("lookup") <= 4
    weak = train_codec.weak_case(random.Random(1), ["minutes"])
    assert {q.kind for q in weak.questions if q.facts[0][0] == "minutes"} == {"lookup"}


def test_slots_of_offices_start_where_their_people_are_read(benchmark, models) -> None:
    """The query of each office is next to its own person's, and to nobody else's."""
    train_codec = load_script("train_codec")
    network = VaeNetwork(replace(benchmark.config_of(models), same_token_attention=True))
    train_codec.lead_to_offices(network)
    queries, roles = network.pooler.queries.detach(), list(train_codec.JOINS)
    people, offices = (
        [train_codec.TOPICS.index(n) for n in names] for names in (roles, [f"{r}'s office" for r in roles])
    )
    assert torch.cdist(queries[offices], queries[people]).argmin(-1).tolist() == list(range(len(roles)))
