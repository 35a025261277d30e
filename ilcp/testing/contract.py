"""The contract that every codec keeps, as a class of tests that pytest runs.

A codec of states, whose memory is vectors, and which learns::

    @pytest.fixture(scope="module")
    def codec():                       # a fixture, or an attribute of the class where making one takes no time
        return MyCodec.from_network(...)

    class TestMine(CodecContract):
        sender_hidden = 32             # the width of the states that it reads
        embedding_norm = 1.3           # of its receiver; see ilcp.models.forward.embedding_norm
        models = sender, receiver      # small transformers models, to make an untrained network for
"""

from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from ilcp.codec.context import Context
from ilcp.codec.folder import load, save
from ilcp.codec.memory import Memory, SoftPrompt
from ilcp.codec.protocols import Codec, is_trainable
from ilcp.codec.registry import codec_class, codec_names
from ilcp.codec.spec import CodecSpec, Trained
from ilcp.errors import ConfigError, DecodeError, EncodeError
from ilcp.identity import ANY
from ilcp.testing.strategies import contexts, payloads_of
from ilcp.training.facts import Told
from ilcp.training.objective import FactNetwork

__all__ = ["CodecContract"]

TEXT = "Mara owns ticket INC-20391. The affected region is Bergen. The root cause was an expired certificate."
TOKENS = 12  # of the states that a default context has
MOST_ZEROS = 1 << 20  # bytes that a test makes to have them refused


class CodecContract:
    """Derive a class ``Test...`` from this one, and say which codec it tests; the module's docstring shows how.

    Each of these is an attribute of the class, or a fixture of that name where making it takes a while:

    - ``codec``: the codec, ready to use, and installed: an entry point in the group ``ilcp.codecs`` has its name.
    - ``context``: a context that it encodes. By default a short text, and for a codec of states random ones of
      ``sender_hidden``, the width.
    - ``embedding_norm``: the mean norm of the receiver's embeddings, for a codec whose memory is vectors.
    - ``models``: a sender and a receiver, for a codec that learns, and ``shape``: what ``untrained`` has to be told
      beside them, for a network that has no shape of its own.

    ``examples`` is how many inputs each property is tried on.
    """

    codec: ClassVar[Any] = None
    context: ClassVar[Any] = None
    embedding_norm: ClassVar[Any] = None
    models: ClassVar[Any] = None
    shape: ClassVar[Any] = None
    sender_hidden: ClassVar[int] = 0
    examples: ClassVar[int] = 50

    @pytest.fixture
    def tested(self, request: pytest.FixtureRequest) -> Codec:
        """The codec under test."""
        codec: Codec = self._given(request, "codec")
        if codec is None:
            pytest.fail(f"expected {type(self).__name__}.codec, got none: set it, or write a fixture of that name")
        return codec

    @pytest.fixture
    def known(self, tested: Codec, request: pytest.FixtureRequest) -> Context:
        """A context that the codec encodes."""
        context: Context | None = self._given(request, "context")
        if context is not None:
            return context
        if not tested.spec.runs_sender:
            return Context(text=TEXT)
        if tested.spec.reads == "cache":
            pytest.fail(f"expected a context with keys and values, got none: set {type(self).__name__}.context")
        if not self.sender_hidden:
            pytest.fail(f"expected a context or the width of the states, got none: set {type(self).__name__}.context")
        states = torch.randn(len(tested.layers), TOKENS, self.sender_hidden, generator=torch.Generator().manual_seed(0))
        return Context(text=TEXT, states=states)

    def test_it_offers_what_a_codec_offers(self, tested: Codec) -> None:
        """It has every attribute of the protocol, reads layers only where the sender runs, and is found by name."""
        assert isinstance(tested, Codec)
        assert isinstance(tested.spec, CodecSpec)
        assert isinstance(tested.trained, Trained)
        assert bool(tested.layers) == (tested.spec.reads == "states")
        assert tested.spec.name in codec_names(), "expected an entry point of that name in the group ilcp.codecs"
        assert codec_class(tested.spec.name) is type(tested)

    def test_a_payload_is_deterministic_and_within_the_spec(self, tested: Codec, known: Context) -> None:
        """The same context gives the same bytes, at most ``spec.payload_bytes``; they decode, each time alike."""
        payload = tested.encode(known)
        assert isinstance(payload, bytes)
        assert 1 <= len(payload) <= tested.spec.payload_bytes
        assert payload == tested.encode(known)
        assert tested.decode(payload).digest() == tested.decode(payload).digest()

    def test_what_is_observed_changes_no_payload(self, tested: Codec, known: Context) -> None:
        """A codec that tells its ends more than a payload does (``ilcp.assurance``) gives the same payload beside, and
        finite numbers, always the same ones."""
        encode, observe = (getattr(tested, name, None) for name in ("encode_observed", "observe"))
        if encode is not None:
            (payload, first), (_, second) = encode(known, None), encode(known, None)
            assert payload == tested.encode(known)
            assert np.isfinite([*first.vector, *first.scalars]).all()
            assert [*first.vector, *first.scalars] == [*second.vector, *second.scalars]
        if observe is not None:
            found = observe(tested.encode(known))
            assert np.isfinite([*found.vector, *found.scalars]).all()
            assert found.vector.shape == observe(tested.encode(known)).vector.shape

    def test_any_context_is_encoded_or_refused(self, tested: Codec) -> None:
        """Any text, and any states of the right shape, give bytes that decode, or an EncodeError; nothing else."""
        layers = len(tested.layers) if self.sender_hidden else 0
        if tested.spec.runs_sender and not layers:
            pytest.skip("sender_hidden is not set: random states have no width")

        def check(context: Context) -> None:
            try:
                payload = tested.encode(context)
            except EncodeError:
                return
            assert 1 <= len(payload) <= tested.spec.payload_bytes
            assert payload == tested.encode(context)
            assert isinstance(tested.decode(payload), Memory)

        self._try(check, contexts(layers, self.sender_hidden))

    def test_use_changes_nothing(self, tested: Codec, known: Context) -> None:
        """What was encoded and decoded in between changes neither a payload nor its memory."""
        payload = tested.encode(known)
        before = tested.decode(payload).digest()
        other = Context(text=TEXT[::-1], states=None if known.states is None else -known.states)
        with suppress(EncodeError):
            tested.decode(tested.encode(other))
        assert payload == tested.encode(known)
        assert before == tested.decode(payload).digest()

    def test_a_shorter_payload_can_be_asked_for(self, tested: Codec, known: Context) -> None:
        """Each prefix of the spec is the beginning of the whole payload, and decodes; else a limit is kept."""
        whole = tested.encode(known)
        for length in tested.spec.prefixes:
            assert whole[:length] == tested.encode(known, length)
            assert type(tested.decode(whole)) is type(tested.decode(whole[:length]))
        if not tested.spec.prefixes:
            limit = max(1, len(whole) // 2)
            try:
                payload = tested.encode(known, limit)
            except EncodeError:
                return  # a codec that never cuts says so
            assert 1 <= len(payload) <= limit
            assert isinstance(tested.decode(payload), Memory)

    def test_lengths_out_of_the_spec_are_refused(self, tested: Codec, known: Context) -> None:
        """No payload of no bytes, of too many, or between two prefixes is made or taken."""
        lengths = {0, tested.spec.payload_bytes + 1}
        if tested.spec.prefixes:
            lengths |= {length + 1 for length in tested.spec.prefixes} - set(tested.spec.prefixes)
        for length in sorted(lengths):
            with pytest.raises(ConfigError):
                tested.encode(known, length)
            if length <= MOST_ZEROS:
                with pytest.raises(DecodeError):
                    tested.decode(bytes(length))

    def test_an_empty_context_is_refused(self, tested: Codec) -> None:
        """A context with nothing in it cannot be encoded."""
        with pytest.raises(EncodeError):
            tested.encode(Context())

    def test_any_payload_decodes_or_is_refused(
        self, tested: Codec, known: Context, request: pytest.FixtureRequest
    ) -> None:
        """Arbitrary bytes of a right length give memory as the codec's own: of its kind and width, finite, within the
        norm band of its receiver; or a DecodeError, and nothing else."""
        own = tested.decode(tested.encode(known))
        norm = self._given(request, "embedding_norm")
        if isinstance(own, SoftPrompt) and norm is None:
            pytest.fail(f"expected {type(self).__name__}.embedding_norm for a codec of vectors, got none: set it")

        def check(payload: bytes) -> None:
            try:
                memory = tested.decode(payload)
            except DecodeError:
                return
            assert type(own) is type(memory)
            if isinstance(own, SoftPrompt) and isinstance(memory, SoftPrompt):
                vectors = memory.in_prompt(own.shape[1], norm)
                fixed = bool(tested.spec.prefixes)  # else a payload says how much it holds
                assert own.shape[not fixed :] == memory.shape[not fixed :]
                assert bool(vectors.isfinite().all())

        self._try(check, payloads_of(tested.spec))

    def test_it_is_the_same_from_its_folder(self, tested: Codec, known: Context, tmp_path: Path) -> None:
        """Saved and loaded it has the same id, makes the same bytes, and reads them without what made them.

        A codec that reads states needs the identities of two models for it: no empty one is loaded.
        """
        save(tested, tmp_path / "codec", card="# A codec under test\n")
        again = load(tmp_path / "codec")
        assert type(tested) is type(again)
        assert tested.spec == again.spec
        assert tested.trained.codec_id(tested.spec) == again.trained.codec_id(again.spec)
        payload = tested.encode(known)
        assert payload == again.encode(known)
        assert tested.decode(payload).digest() == again.decode(payload).digest()

    def test_a_codec_that_learns_offers_its_network(
        self, tested: Codec, known: Context, request: pytest.FixtureRequest
    ) -> None:
        """Where it learns, its network has the shapes of ``TrainableCodec``, a gradient, and becomes a codec again."""
        if not is_trainable(tested):
            return
        own, unrounded = tested.decode(tested.encode(known)), tested.decode_unrounded(known)
        assert type(own) is type(unrounded)
        assert getattr(own, "shape", None) == getattr(unrounded, "shape", None)
        names = type(tested).settings()
        assert all(isinstance(name, str) for name in names)
        models = self._given(request, "models")
        if models is None:
            pytest.skip("no models are given to make a network for")
        sender, receiver = models
        network = type(tested).untrained(sender, receiver, self._given(request, "shape") or {})
        batch, layers = 3, len(network.layers)
        states = torch.randn(batch, layers, TOKENS, sender.config.hidden_size)
        network.calibrate(states, torch.ones(batch, TOKENS), receiver.get_input_embeddings().weight[:64].unsqueeze(1))
        memory = _check_training(network, states, receiver.get_input_embeddings().embedding_dim)
        network.round_to_half()
        made = type(tested).from_network(network, ANY, ANY)
        assert isinstance(made, Codec)
        assert tuple(made.layers) == tuple(network.layers)
        whole = getattr(made.decode(made.encode(Context(states=states[0]))), "shape", None)
        assert not isinstance(memory, Tensor) or memory.shape[1:] == whole

    def _given(self, request: pytest.FixtureRequest, name: str) -> Any:
        """Returns what the class, or a fixture of that name, says; None where neither does."""
        own = getattr(type(self), name)
        if own is not None and not _is_fixture(own):
            return own
        try:
            return request.getfixturevalue(name)
        except pytest.FixtureLookupError as error:
            if error.argname != name:  # there is one, and it is another that it lacks
                raise
            return None

    def _try(self, check: Any, strategy: st.SearchStrategy[Any]) -> None:
        """Runs ``check`` on examples of a strategy."""
        slow = [HealthCheck.too_slow, HealthCheck.data_too_large]
        settings(max_examples=self.examples, deadline=None, suppress_health_check=slow)(given(strategy)(check))()


def _is_fixture(value: Any) -> bool:
    """Checks for what ``@pytest.fixture`` makes of a method, in pytest 8.4 and later, and before."""
    return type(value).__name__ == "FixtureFunctionDefinition" or hasattr(value, "_pytestfixturefunction")


def _check_training(network: Any, states: Tensor, hidden: int) -> Any:
    """Checks the shapes of a training step, and that its gradient reaches the network; returns the memory."""
    batch, mask = len(states), torch.ones(len(states), TOKENS)
    memory, rate_bits = network.train()(states, mask)
    assert [hidden] * batch == [one.shape[1] for one in memory]
    assert (batch,) == rate_bits.shape
    learned = torch.stack([(one * torch.randn_like(one)).sum() for one in memory]).sum()
    if isinstance(network, FactNetwork):  # which may have nothing to say yet, and learns to by its lesson
        learned = network.fact_losses(states, mask, Told.of([()] * batch, network.places, TOKENS))["loss"]
    learned.backward()
    assert any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in network.parameters())
    network.eval().requires_grad_(False)
    blank = network.blank(4)
    assert [hidden] * 4 == [one.shape[1] for one in blank]
    assert not isinstance(memory, Tensor) or memory.shape[1:] == blank.shape[1:]
    return memory
