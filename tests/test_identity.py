"""Identity at weight level: what is hashed, what is not, and when the cache may speak."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch

from ilcp.codec.folder import ADAPTER
from ilcp.errors import ConfigError, IdentityError, MissingExtraError, StorageError
from ilcp.identity import ANY, ModelIdentity, require_same
from ilcp.models import fingerprint
from ilcp.models.adapter import adapt, new_adapter
from ilcp.models.fingerprint import identify, weights_digest
from tests.helpers import make_model, make_tokenizer


def test_the_digest_is_of_the_weights_and_nothing_else(tmp_path) -> None:
    """Saving and loading keeps the digest; another seed of the same configuration has another."""
    model = make_model(64, seed=1)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert weights_digest(model) == weights_digest(again)
    assert weights_digest(model) != weights_digest(make_model(64, seed=2))


def test_one_flipped_weight_is_another_model() -> None:
    """The smallest change of any tensor changes the digest."""
    model = make_model(64, seed=1)
    before = weights_digest(model)
    for parameter in model.parameters():
        with torch.no_grad():
            parameter.view(-1)[-1] += 1e-4
        after = weights_digest(model)
        assert before != after
        before = after


def test_using_a_tokenizer_does_not_change_its_identity() -> None:
    """Padding and truncation, set by the last call, are no part of what a tokenizer is."""
    model, tokenizer = make_model(300), make_tokenizer(300)
    before = identify(model, tokenizer)
    tokenizer(["a", "a longer one"], padding=True, truncation=True, max_length=3)
    assert before == identify(model, tokenizer)


def test_any_fits_every_model() -> None:
    """A text codec's identity refuses nobody."""
    require_same("receiver", ANY, ModelIdentity(weights="w"))


def test_every_differing_part_is_named() -> None:
    """The error lists each part with what was expected and what came."""
    expected = ModelIdentity("w", "t", "c", "full", "")
    with pytest.raises(IdentityError, match=r"tokenizer \(expected t, got x\); adapters \(expected none, got lora\)"):
        require_same("sender", expected, ModelIdentity("w", "x", "c", "full", "lora"))


def test_a_damaged_identity_record_is_refused() -> None:
    """A config with a field too few is refused with both lists."""
    with pytest.raises(IdentityError, match="expected identity fields"):
        ModelIdentity.from_dict({"weights": "w"})


def test_the_cache_is_quick_and_does_not_hide_changed_weights(tmp_path, monkeypatch) -> None:
    """A second load reads the digest from the cache; weights changed since the load, or a new file, do not pass."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(fingerprint, "CACHE_FROM_BYTES", 1)
    make_model(64, seed=1).save_pretrained(tmp_path / "model")
    model = type(make_model(64)).from_pretrained(tmp_path / "model")
    true = weights_digest(model)
    (file,) = (tmp_path / "cache" / "ilcp").iterdir()
    (key,) = json.loads(file.read_text())
    file.write_text(json.dumps({key: "ab" * 16}))
    assert bytes.fromhex("ab" * 16) == weights_digest(model)  # this is the cache speaking
    with torch.no_grad():
        next(model.parameters())[5, 3] += 0.01  # one weight of thousands
    assert weights_digest(model) not in (true, bytes.fromhex("ab" * 16))
    file.write_text("not json")
    assert true == weights_digest(type(model).from_pretrained(tmp_path / "model"))


@pytest.mark.parametrize("taken", ["cache", "cache/ilcp/weights.json"])
def test_a_cache_that_cannot_be_written_costs_time_only(tmp_path, monkeypatch, taken: str) -> None:
    """A file in the place of the folder, or a folder in that of the file: the weights are hashed all the same."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    make_model(64, seed=1).save_pretrained(tmp_path / "model")
    model = type(make_model(64)).from_pretrained(tmp_path / "model")
    expected = weights_digest(model)
    monkeypatch.setattr(fingerprint, "CACHE_FROM_BYTES", 1)
    if taken == "cache":
        (tmp_path / taken).touch()
    else:
        (tmp_path / taken).mkdir(parents=True)
    assert expected == weights_digest(model)
    assert [] == list(tmp_path.glob("cache/ilcp/.*"))


def test_what_is_wrong_with_an_adapter_is_said_by_its_error(tmp_path, monkeypatch) -> None:
    """A rank below one, damaged files, and peft that is not installed: an argument, a file, a package."""
    model, codec = make_model(300, seed=1), SimpleNamespace(folder=tmp_path)
    assert adapt(model, codec) is model
    with pytest.raises(ConfigError, match="expected adapter_rank to be at least 1, got 0"):
        new_adapter(model, 0)
    (tmp_path / ADAPTER).mkdir()
    with pytest.raises(StorageError, match="expected the receiver's adapter in"):
        adapt(model, codec)
    monkeypatch.setitem(sys.modules, "peft", None)
    for call in (lambda: new_adapter(model, 2), lambda: adapt(model, codec)):
        with pytest.raises(MissingExtraError, match=r"expected peft for a receiver.*pip install 'ilcp\[train\]'"):
            call()


def test_an_embedding_that_scales_is_another_model(monkeypatch) -> None:
    """Gemma 2 scales where it looks up under transformers 5, not under 4: the same weights, not the same receiver."""
    tokenizer = make_tokenizer(300)
    plain, scaling = (make_model(300, seed=1) for _ in range(2))
    look_up = scaling.get_input_embeddings()
    monkeypatch.setattr(look_up, "forward", lambda ids: 8 * torch.nn.Embedding.forward(look_up, ids))
    assert weights_digest(plain) == weights_digest(scaling)
    with pytest.raises(IdentityError, match="differs in weights"):
        require_same("receiver", identify(plain, tokenizer), identify(scaling, tokenizer))


def test_a_low_rank_adapter_is_named_beside_the_weights_under_it() -> None:
    """Wrapping for LoRA leaves the weights' digest; the adapter's own weights decide the rest, wrapped or bare."""
    tokenizer, model = make_tokenizer(300), make_model(300, seed=1)
    before = identify(model, tokenizer)
    torch.manual_seed(0)
    adapter = new_adapter(model, 2)
    after = identify(adapter, tokenizer)
    assert (before.weights, "") == (after.weights, before.adapters)
    assert after.adapters.startswith("default:")
    assert after == identify(adapter.get_base_model(), tokenizer)
    with torch.no_grad():
        next(value for name, value in adapter.named_parameters() if "lora_B" in name)[0, 0] = 1.0
    assert after.adapters != identify(adapter, tokenizer).adapters
