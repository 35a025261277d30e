"""What ``privacy.py`` attacks: dossiers, their messages as bits, and what each dossier says as numbers to guess.

::

    Case --encoded--> bits "documents 640", in the order of the payload: a prefix of bytes is a prefix of bits
    Case --labels--> "documents fields": one number for each field, -1 where there is nothing to guess
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ilcp.embedded import Pair
from ilcp.files import replacing
from ilcp.tasks import Case, case_files
from ilcp.tasks.case_files import OFFICE
from ilcp.tasks.dossier import ATTRIBUTES, CODE_DIGITS, CODE_LETTERS, DISTRACTORS, JOINS, POOLS
from ilcp.tasks.rewrite import state
from ilcp.training import Hyperparameters, Models
from ilcp.training.reader import Reader
from ilcp_codecs.vae import VaeCodec, VaeNetwork
from ilcp_codecs.vae.bottleneck import quantise

__all__ = [
    "FACTS",
    "FIELDS",
    "GROUPS",
    "SEED",
    "STOLEN_SEED",
    "TEST",
    "Field",
    "Messages",
    "embedded_network",
    "encoded",
    "facts_of",
    "labels",
    "models",
    "stolen",
]

SEED = 7  # of the documents that are attacked: no training and no choice of the library has seen them
STOLEN_SEED = 4711  # of the attacker's own
TEST = 1000
BATCH = 16
PART = 4000  # messages in a file
Bits = NDArray[np.uint8]
Numbers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Field:
    """One thing to guess: its name, its group, and how many values it has; 0 is "not there" in a group of facts."""

    name: str
    group: str
    classes: int


def _fields() -> tuple[Field, ...]:
    fields = [Field(a.name, a.pool, len(POOLS[a.pool]) + 1) for a in ATTRIBUTES]
    fields += [Field(name, "office", len(POOLS["city"]) + 1) for name in OFFICE.values()]
    fields += [Field(f"code {n}", "code", len(CODE_DIGITS if n % 2 else CODE_LETTERS) + 1) for n in range(6)]
    fields += [Field(f"wording of {a.name}", "wording", len(a.sentences)) for a in ATTRIBUTES]
    return (*fields, *(Field(text, "distractor", 2) for text in DISTRACTORS))


FIELDS = _fields()
FACTS = [at for at, field in enumerate(FIELDS) if field.group not in ("wording", "distractor")]
GROUPS = tuple(dict.fromkeys(field.group for field in FIELDS))


@dataclass(frozen=True)
class Messages:
    """Payloads of documents as bits ``"documents bits"``, and what the documents say, ``"documents fields"``."""

    bits: Bits
    labels: Numbers

    def __getitem__(self, some: slice) -> "Messages":
        return Messages(self.bits[some], self.labels[some])


def facts_of(case: Case) -> dict[str, str]:
    """Returns what a dossier states, by field: attributes, offices by role, and the characters of its code."""
    code: Any = case.fact_code
    found = dict(code.values)
    found |= {OFFICE[role]: code.offices[code.values[role]] for role in JOINS if role in code.values}
    return found | {f"code {n}": character for n, character in enumerate(code.code)}


def labels(case: Case) -> list[int]:
    """Returns the number of each field's value in a dossier: 0 where a fact is not stated, -1 for no wording."""
    said = facts_of(case)
    pools = [POOLS[a.pool] for a in ATTRIBUTES] + [POOLS["city"]] * len(OFFICE)
    numbers = [pool.index(said[f.name]) + 1 if f.name in said else 0 for f, pool in zip(FIELDS, pools, strict=False)]
    numbers += [(CODE_DIGITS if n % 2 else CODE_LETTERS).index(said[f"code {n}"]) + 1 for n in range(6)]
    for attribute in ATTRIBUTES:
        worded = [state(sentence, said.get(attribute.name, "")) in case.context for sentence in attribute.sentences]
        numbers.append(worded.index(True) if attribute.name in said else -1)
    return numbers + [int(_stands(text, case.context)) for text in DISTRACTORS]


def _stands(distractor: str, text: str) -> bool:
    """Says whether a text has the sentence, whatever word its hole holds; the pieces around one name it alone."""
    before, brace, after = distractor.partition("{")
    return (before in text) and (not brace or after.partition("}")[2] in text)


def models(pair: Pair) -> Models:
    """Returns the pair as a training takes it."""
    return Models(pair.sender.model, pair.sender.tokenizer, pair.receiver.model, pair.receiver.tokenizer)


@torch.no_grad()
def encoded(network: VaeNetwork, pair: Models, texts: Sequence[str]) -> Bits:
    """Returns payloads as bits ``"texts bits"``: those of ``VaeCodec.encode``, many texts in a pass."""
    reader = Reader(pair, network.layers, Hyperparameters(steps=1, bfloat16=False))
    order, network = network.config.order(), network.eval()
    by_length = sorted(range(len(texts)), key=lambda at: len(texts[at]))
    found = np.zeros((len(texts), len(order)), dtype=np.uint8)
    for first in range(0, len(texts), BATCH):
        some = by_length[first : first + BATCH]
        z = network.bottleneck(network.pooler(*reader.states([texts[at] for at in some])))[0]
        found[some] = quantise(z, network.config.bits).flatten(1).numpy()[:, order]
    return found


def stolen(
    network: VaeNetwork,
    pair: Models,
    n: int,
    folder: Path,
    *,
    change: Callable[[Case], str] = lambda case: case.context,
    test: int = TEST,
) -> tuple[Messages, Messages]:
    """Returns the attacker's own pairs, and the messages under attack; ``folder`` keeps both.

    ``change`` makes of a case the text that is encoded.
    """
    folder.mkdir(parents=True, exist_ok=True)
    part = min(n, PART)
    own = [_kept(network, pair, "train", STOLEN_SEED, start, part, folder, change) for start in range(0, n, part)]
    bits, said = (np.concatenate(parts) for parts in zip(*((each.bits, each.labels) for each in own), strict=True))
    return Messages(bits[:n], said[:n]), _kept(network, pair, "test", SEED, 0, test, folder, change)


def _kept(
    network: VaeNetwork,
    pair: Models,
    split: str,
    seed: int,
    start: int,
    n: int,
    folder: Path,
    change: Callable[[Case], str],
) -> Messages:
    """Reads a part of the messages, which is made first where the folder lacks it."""
    file = folder / f"{split}-{seed}-{start}-{n}.npz"
    if not file.exists():
        cases = list(case_files(split, seed, n, start=start))
        bits = encoded(network, pair, [change(case) for case in cases])
        with replacing(file) as draft, open(draft, "wb") as out:
            np.savez(out, bits=np.packbits(bits, axis=1), labels=np.array(list(map(labels, cases)), dtype=np.int8))
    held = np.load(file)
    return Messages(np.unpackbits(held["bits"], axis=1), held["labels"].astype(np.int64))


def embedded_network(pair: Pair) -> VaeNetwork:
    """Returns the network of the pair's codec."""
    codec = pair.sender.codec
    assert isinstance(codec, VaeCodec)
    return codec.network
