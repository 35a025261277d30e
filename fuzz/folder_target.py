"""``ilcp.load`` of a codec's folder, and what an adapter's folder says, with a configuration that nobody wrote.

The first byte of an input says whose: a codec's (0), or low-rank weights' (1). The second picks a place in it, and the
others stand there, as JSON where they are any and as text else; of place 0 they are the whole file.
"""

import json
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from ilcp.codec.folder import ADAPTER, CONFIG, load, save, training_of
from ilcp.errors import IlcpError
from ilcp.evidence import Evidence
from ilcp.identity import ModelIdentity
from ilcp.models.adapter_config import TAKEN, low_rank_config
from ilcp_codecs.vae import VaeCodec, VaeConfig, VaeNetwork

__all__ = ["one_input"]

FOLDER = Path(mkdtemp(prefix="ilcp-fuzz-"))
SENDER, RECEIVER = ModelIdentity("a", "b", "c", "full"), ModelIdentity("d", "e", "f", "full")
LOW_RANK = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q"], "rank_pattern": {}, "bias": "none"}


def _made() -> list[dict[str, Any]]:
    """Writes the folder that inputs change; returns what stands in its two configurations."""
    torch.manual_seed(0)
    config = VaeConfig((0, 1), 8, 16, slots=4, dims=16, prefixes=(2, 4, 8), width=8, heads=2, projector_width=8)
    codec = VaeCodec.from_network(VaeNetwork(config), SENDER, RECEIVER)
    arms = {"message": 0.9, "mismatched": 0.4}
    codec_id = codec.trained.codec_id(codec.spec).hex()
    codec.evidence = Evidence(codec_id, "a task", 9, 1, "exact match", 0.5, 0.4, 0.6, arms, "abc")
    save(codec, FOLDER, training={"plan": {"sender": "a", "receiver": "b", "dtype": "float32"}})
    (FOLDER / ADAPTER).mkdir()
    save_file({"q.lora_A.weight": torch.zeros(2, 8)}, FOLDER / ADAPTER / "adapter_model.safetensors")
    load(FOLDER)  # what torch loads when it is first used counts for no input
    return [json.loads((FOLDER / CONFIG).read_text(encoding="utf-8")), LOW_RANK | {"megatron_core": "megatron.core"}]


def _places(record: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = record.items() if isinstance(record, dict) else enumerate(record) if isinstance(record, list) else ()
    return [place, *(each for name, value in inner for each in _places(value, (*place, name)))]


RECORDS = _made()
PLACES = [_places(record) for record in RECORDS]


def one_input(data: bytes) -> None:
    """Fails where a configuration brings out anything but a codec, a known kind of weights, or a refusal."""
    which, where, said = (data[0] % 2, data[1], data[2:]) if len(data) > 1 else (0, 0, data)
    place = PLACES[which][where % len(PLACES[which])]
    content = _changed(RECORDS[which], place, _value(said)) if place else said
    file = FOLDER / (CONFIG if which == 0 else f"{ADAPTER}/adapter_config.json")
    file.write_bytes(content)
    try:
        if which == 0:
            load(FOLDER)
            training_of(FOLDER)
        else:
            found = low_rank_config(FOLDER, FOLDER / ADAPTER)
            assert found.keys() <= TAKEN.keys()
            assert all(max(each, 2) == 2 for each in (found["r"], *(found.get("rank_pattern") or {}).values()))
    except IlcpError as error:
        if not str(error).startswith("expected ") and "expected " not in str(error):
            raise
    except (ValueError, SafetensorError):
        if which == 0:  # ``ilcp.models.adapter`` turns an adapter's into its own
            raise


def _value(said: bytes) -> Any:
    try:
        return json.loads(said)
    except (ValueError, RecursionError):
        return said.decode("latin-1")


def _changed(record: dict[str, Any], place: tuple[Any, ...], value: Any) -> bytes:
    changed = json.loads(json.dumps(record))
    inner = changed
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = value
    try:
        return json.dumps(changed).encode()
    except RecursionError:
        return b"{}"
