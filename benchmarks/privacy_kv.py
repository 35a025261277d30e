"""Attacks on caches: the text read back from keys and values, as ``privacy.py`` reports it.

::

    first layer   its keys (turned back) and values are linear in one token each: the nearest word of the vocabulary
    last layer    a linear probe, trained on caches that the attacker made with the same model
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from privacy_attacks import written_facts
from privacy_data import SEED, STOLEN_SEED, labels
from privacy_probes import figure, stated
from torch import Tensor, nn
from torch.nn import functional as F

from ilcp.codec import Context
from ilcp.codec.keys_values import KeysValues
from ilcp.codec.memory import CacheMemory
from ilcp.models.attended import attended
from ilcp.models.fingerprint import identify
from ilcp.models.kv import read_kv
from ilcp.models.loading import load_model
from ilcp.models.rope import ropes_of
from ilcp.tasks import Case, case_files
from ilcp.tasks.dossier import ATTRIBUTES
from ilcp_codecs.kv import CompactCodec, ExactCodec, Int4Codec, Int8Codec
from ilcp_codecs.kv.codecs import shape_of

OWN = 60  # caches that the probe of the last layer is trained on
PROBE_STEPS = 600
QUESTIONS = [attribute.questions[0] for attribute in ATTRIBUTES]


class Reader:
    """A model whose caches are attacked, by who has the same model."""

    def __init__(self, model: Any, tokenizer: Any):
        self.model, self.tokenizer, self.ropes = model, tokenizer, ropes_of(model)
        first = model.model.layers[0]
        with torch.no_grad():
            words = first.input_layernorm(model.get_input_embeddings().weight)
            self.keys, self.values = (
                self._heads(part(words)).float() for part in (first.self_attn.k_proj, first.self_attn.v_proj)
            )

    def _heads(self, flat: Tensor) -> Tensor:
        """Returns ``"words heads head"``."""
        return flat.view(len(flat), self.model.config.num_key_value_heads, -1)

    def read(self, text: str) -> tuple[list[int], KeysValues]:
        """Returns a text's ids, and its keys and values."""
        ids = self.tokenizer(text).input_ids
        with torch.no_grad():
            return ids, read_kv(self.model, ids, 0, self.ropes)

    def collisions(self, kv: KeysValues, layer: int = 0) -> list[int]:
        """Returns, for each token, the word whose keys and values in the first layer are nearest."""
        kv = kv.at(None)
        seen = torch.cat([kv.keys[layer], kv.values[layer]], -1).float().transpose(0, 1).flatten(1)
        return nearest(seen, torch.cat([self.keys, self.values], -1).flatten(1))

    def of_each_head(self, kv: KeysValues) -> set[int]:
        """Returns the words found in any head of the first layer, where heads keep tokens of their own."""
        heads = enumerate(kv.values[0].float())
        return {word for head, values in heads for word in nearest(values, self.values[:, head])}


def nearest(seen: Tensor, words: Tensor) -> list[int]:
    """Returns the row of ``words`` nearest to each row of ``seen``."""
    far = words.square().sum(-1) - 2 * seen @ words.T
    found: list[int] = far.argmin(-1).tolist()
    return found


def caches(reader: Reader, cases: Sequence[Case], *, compact: bool) -> dict[str, Any]:
    """Returns what is read from each kind of cache: tokens, facts, facts a byte, seconds a text."""
    who, shape = identify(reader.model, reader.tokenizer), shape_of(reader.model)
    codecs = {kind.name: kind(who, shape) for kind in (ExactCodec, Int8Codec, Int4Codec)}
    made: dict[str, dict[str, list[Any]]] = {name: {"right": [], "told": [], "bytes": [], "s": []} for name in codecs}
    for case in cases:
        ids, kv = reader.read(case.context)
        for name, codec in codecs.items():
            payload = codec.encode(Context(kv=kv))
            started = time.monotonic()
            found = reader.collisions(cast(CacheMemory, codec.decode(payload)).kv)
            row = made[name]
            row["s"].append(time.monotonic() - started)
            row["right"].append(np.mean([a == b for a, b in zip(ids, found, strict=True)]))
            row["told"].append(sum(written_facts(case, reader.tokenizer.decode(found, skip_special_tokens=True))))
            row["bytes"].append(len(payload))
    there = stated(np.array(list(map(labels, cases)))).sum(1)
    report = {
        name: {
            "n": len(cases),
            "tokens read back": figure(row["right"]),
            "share of facts": figure(row["told"], there),
            "facts": figure(row["told"]),
            "payload_bytes": figure(row["bytes"]),
            "facts a byte": float(np.mean(row["told"]) / np.mean(row["bytes"])),
            "seconds a text": float(np.mean(row["s"])),
        }
        for name, row in made.items()
    }
    return report | ({"kv-compact": compacted(reader, cases)} if compact else {})


def compacted(reader: Reader, cases: Sequence[Case]) -> dict[str, Any]:
    """Returns which of a text's words a cache of a tenth of its tokens gives away, in the first layer alone."""
    codec = CompactCodec.of(reader.model, reader.tokenizer, questions=QUESTIONS, share=0.1)
    words, values, sizes = [], [], []
    for case in cases:
        ids, kv = reader.read(case.context)
        looked = attended(reader.model, reader.tokenizer, [], kv, QUESTIONS, {})
        payload = codec.encode(Context(kv=kv, attended=looked))
        found = reader.of_each_head(cast(CacheMemory, codec.decode(payload)).kv)
        words.append(len(found & set(ids)) / len(set(ids)))
        held: Any = case.fact_code
        said = [
            set(reader.tokenizer(" " + value, add_special_tokens=False).input_ids) for value in held.values.values()
        ]
        values.append(np.mean([tokens <= found for tokens in said]))
        sizes.append(len(payload))
    return {
        "n": len(cases),
        "different words read back": figure(words),
        "values of attributes among them": figure(values),
        "payload_bytes": figure(sizes),
    }


def last_layer(reader: Reader, cases: Sequence[Case], own: Sequence[Case], seed: int) -> dict[str, Any]:
    """Returns the tokens that a linear probe reads from the keys and values of the last layer alone."""
    torch.manual_seed(seed)
    parts = []
    for some in (own, cases):
        read = [reader.read(case.context) for case in some]
        ids = torch.tensor([each for row, _ in read for each in row])
        parts.append((torch.cat([_last(kv) for _, kv in read]), ids))
    (x, y), (tested, true) = parts
    middle, spread = x.mean(0), x.std(0) + 1e-6
    probe = nn.Linear(x.shape[1], len(reader.values))
    optimizer = torch.optim.AdamW(probe.parameters(), lr=5e-3, weight_decay=0.01)
    for step in range(PROBE_STEPS):
        optimizer.param_groups[0]["lr"] = 5e-3 * (1 - step / PROBE_STEPS)
        at = torch.randint(len(x), (512,))
        loss = F.cross_entropy(probe((x[at] - middle) / spread), y[at])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        right = (probe((tested - middle) / spread).argmax(-1) == true).float()
    return {"n": len(cases), "n_own": len(own), "tokens read back": float(right.mean())}


def _last(kv: KeysValues) -> Tensor:
    kv = kv.at(None)
    return torch.cat([kv.keys[-1], kv.values[-1]], -1).float().transpose(0, 1).flatten(1)


def attacked(pair: Any, real: Path, n: int, seed: int) -> dict[str, Any]:
    """Returns the attacks on the embedded receiver's caches, and on SmolLM2's where ``real`` holds it."""
    cases = list(case_files("test", SEED, n))
    reader = Reader(pair.receiver.model, pair.receiver.tokenizer)
    own = list(case_files("train", STOLEN_SEED, min(OWN, 6 * n)))
    embedded = caches(reader, cases, compact=True) | {"last layer, exact": last_layer(reader, cases, own, seed)}
    made: dict[str, Any] = {"embedded receiver": embedded}
    if real.is_dir():
        loaded = Reader(*load_model(real, dtype="bfloat16"))
        made["SmolLM2-135M"] = caches(loaded, cases[: max(2, n // 4)], compact=False)
        made["SmolLM2-135M"]["identity"] = identify(loaded.model, loaded.tokenizer).exact
    return made
