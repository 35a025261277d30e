"""The faults of ``benchmarks/assurance.py``: each changes a pair, its texts or its payloads, as it would happen.

A fault of a model is made in a copy that calls itself what it was (its identity is forced), so that every layer behind
identity can be asked. Whether identity would have refused it is asked as well.
"""

import copy
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ilcp.embedded import Pair
from ilcp.handoff import Receiver, Sender
from ilcp.identity import differs
from ilcp.models.fingerprint import identify, weights_digest
from ilcp.models.loading import load_model
from ilcp.models.own_weights import OwnWeights
from ilcp.tasks import Case, case_files
from ilcp.tasks.dossier import POOLS

__all__ = ["FAULTS", "Fault", "Places", "Texts", "drifting", "forced", "refused", "texts_of"]

FEWEST_CHARACTERS, MOST_CHARACTERS = 200, 2000  # of a text of another kind
# The sentences of dossiers in German, for the same values.
GERMAN = (
    "Die Störung traf den Dienst {service}.", "Als Ursache wurde {cause} genannt.", "Geholfen hat am Ende {remedy}.",
    "Bemerkt hat es zuerst {tool}.", "{person} hat den Vorfall geleitet.", "Das Ersatzteil kam von {vendor}.",
    "Die Kundin, die sich beschwerte, sitzt in {city}.", "Betroffen waren {number} Konten.",
    "{person} hat die Änderung freigegeben.", "Der Schaden dauerte {number} Minuten.", "Geprüft wurde in {city}.",
    "Der Vertrag mit {vendor} wurde gekündigt.", "{person} schrieb den Bericht.", "Auch {service} war langsam.",
)  # fmt: skip


@dataclass(frozen=True)
class Texts:
    """Texts in distribution, and of other kinds."""

    usual: list[str]
    cases: list[Case]
    others: dict[str, list[str]]


@dataclass(frozen=True)
class Fault:
    """A fault: of the pair, of the texts, or of payloads; ``layer`` is of what it is."""

    name: str
    pair: Callable[[Pair, "Places"], Pair] | None = None
    texts: Callable[[Texts, int], list[str]] | None = None
    payloads: Callable[[list[bytes], random.Random], list[bytes]] | None = None
    replayed: bool = False


@dataclass(frozen=True)
class Places:
    """Where another checkpoint of the receiver is, and texts to tune on."""

    other: Path
    stories: list[str]


def texts_of(seed: int, n: int, data: Path) -> Texts:
    """Returns ``n`` texts of each kind."""
    cases = list(case_files("test", seed, n))
    drawn = random.Random(f"assurance {seed}")

    def german() -> str:
        lines = drawn.sample(GERMAN, len(GERMAN))
        return " ".join(line.format(**{pool: drawn.choice(words) for pool, words in POOLS.items()}) for line in lines)

    others = {
        "conversations": _texts(data / "conversations/test.jsonl", "context", n),
        "agents' logs": _texts(data / "agent_logs.jsonl", "history", n),
        "stories": _texts(data / "tinystories.jsonl", "text", n),
        "German dossiers": [german() for _ in range(n)],
    }
    return Texts([case.context for case in cases], cases, others)


def _texts(file: Path, field: str, n: int) -> list[str]:
    """Returns the first ``n`` texts of some length in a file of JSON lines, cut where they are long."""
    found: list[str] = []
    for line in file.read_text(encoding="utf-8").splitlines():
        held = json.loads(line)[field]
        found += [str(turn.get("content") or "") for turn in held] if isinstance(held, list) else [held]
    return [text[:MOST_CHARACTERS] for text in dict.fromkeys(found) if len(text) > FEWEST_CHARACTERS][:n]


def forced(pair: Pair, *, sender: Any = None, receiver: Any = None, codec: Any = None) -> Pair:
    """Returns the pair with other parts, which call themselves what they were."""
    codec = codec or pair.sender.codec

    class Believing:
        def require(self, *_: Any) -> None: ...

    def made(kind: Any, model: Any, end: Any) -> Any:
        new = copy.copy(end)
        new.model, new.codec, new._known = model, codec, Believing()
        if kind is Receiver:
            new.codecs, new._by_id = (codec,), {next(iter(end._by_id)): codec}
            new._prompts = type(end._prompts)(model, end.tokenizer, end.template)
        return new

    return Pair(
        made(Sender, sender or pair.sender.model, pair.sender),
        made(Receiver, receiver or pair.receiver.model, pair.receiver),
        pair.path,
    )


def refused(pair: Pair, changed: Pair, fault: Fault) -> str:
    """Says what identity, or the replay cache of sealed messages, makes of a fault; empty where it sees nothing."""
    trained = pair.sender.codec.trained
    if fault.replayed:
        return "replay cache, where sealed"
    sides = (("sender", changed.sender, trained.sender), ("receiver", changed.receiver, trained.receiver))
    for side, end, expected in sides:
        if differs(expected, identify(end.model, end.tokenizer)):
            return side
    codec: Any = changed.sender.codec
    if weights_digest(codec.network).hex() != trained.weights:
        return "codec"
    return ""


def _tuned(model: Any, tokenizer: Any, texts: list[str], steps: int, rate: float, only: str = "") -> Any:
    """Returns a copy, trained on texts for some steps; with ``only``, low-rank updates of modules of such names."""
    model = copy.deepcopy(model).train()
    generator = torch.Generator().manual_seed(20)
    updates: list[tuple[torch.nn.Linear, torch.nn.Parameter, torch.nn.Parameter]] = []
    if only:
        model.requires_grad_(False)
        for name, module in list(model.named_modules()):
            if name.rpartition(".")[2] in only.split() and isinstance(module, torch.nn.Linear):
                a = torch.nn.Parameter(torch.randn(8, module.in_features, generator=generator) / 8)
                b = torch.nn.Parameter(torch.zeros(module.out_features, 8))
                module.register_forward_hook(lambda _m, x, y, a=a, b=b: y + 2 * (x[0] @ a.T) @ b.T)
                updates.append((module, a, b))
    parameters = [each for _, a, b in updates for each in (a, b)] or [*model.requires_grad_(True).parameters()]
    optimiser = torch.optim.AdamW(parameters, rate)
    for step in range(steps):
        some = [texts[(8 * step + k) % len(texts)] for k in range(8)]
        rows = [tokenizer(text, truncation=True, max_length=128).input_ids for text in some]
        loss = sum(model(input_ids=torch.tensor([row]), labels=torch.tensor([row])).loss for row in rows) / len(rows)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    for module, a, b in updates:  # merged, as it is served
        with torch.no_grad():
            module.weight += 2 * b @ a
        module._forward_hooks.clear()
    return model.eval().requires_grad_(False)


def _quantised(model: Any, bits: int) -> Any:
    model = copy.deepcopy(model)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Linear):
                step = module.weight.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
                module.weight.copy_((module.weight / step).round() * step)
    return model


def _turned(model: Any, factor: float) -> Any:
    """Returns a copy, one of whose layers turns its keys and queries by positions of another base."""
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    model = copy.deepcopy(model)
    layer = model.model.layers[0].self_attn
    config = copy.deepcopy(model.config)
    base = config.rope_parameters["rope_theta"]
    config.rope_parameters = dict(config.rope_parameters) | {"rope_theta": base * factor}
    rotary, real = LlamaRotaryEmbedding(config), layer.forward

    def forward(hidden_states: torch.Tensor, position_embeddings: Any = None, **options: Any) -> Any:
        length = hidden_states.shape[1]
        cache = options.get("past_key_values")
        start = 0 if cache is None else cache.get_seq_length(0)
        places = options.get("position_ids", torch.arange(start, start + length)[None])
        return real(hidden_states=hidden_states, position_embeddings=rotary(hidden_states, places), **options)

    layer.forward = forward
    return model


def _templated(pair: Pair) -> Pair:
    changed = forced(pair)
    tokenizer = copy.deepcopy(pair.receiver.tokenizer)
    tokenizer.chat_template = tokenizer.chat_template.replace("<|user|>", "")
    changed.receiver.tokenizer = tokenizer
    changed.receiver._prompts = type(pair.receiver._prompts)(pair.receiver.model, tokenizer, pair.receiver.template)
    return changed


def _noisy(pair: Pair, part: str, share: float) -> Pair:
    """Returns the pair with noise of that share of each weight's spread in one part of the codec's network."""
    codec: Any = copy.copy(pair.sender.codec)
    codec.network = copy.deepcopy(codec.network)
    generator = torch.Generator().manual_seed(20)
    with torch.no_grad():
        for name, weight in codec.network.named_parameters():
            if name.startswith(part) and weight.ndim > 1:
                weight += share * weight.std() * torch.randn(weight.shape, generator=generator)
    codec._own = OwnWeights(codec.network)  # which would refuse it
    return forced(pair, codec=codec)


def _usual_bits(payloads: list[bytes], drawn: random.Random) -> list[bytes]:
    """Returns payloads each of whose bits is as often 1 as in those that are usual, and as many of them in all."""
    bits = np.array([np.unpackbits(np.frombuffer(each, np.uint8)) for each in payloads])
    columns = [drawn.sample(range(len(bits)), len(bits)) for _ in range(bits.shape[1])]
    shuffled = np.stack([bits[rows, place] for place, rows in enumerate(columns)], axis=1)
    return [np.packbits(row).tobytes() for row in shuffled]


def _spliced(payloads: list[bytes], drawn: random.Random) -> list[bytes]:
    """Returns payloads half of whose bytes are another's, both of them messages that were sent."""
    order = drawn.sample(range(len(payloads)), len(payloads))
    half = len(payloads[0]) // 2
    return [payloads[a][:half] + payloads[b][half:] for a, b in zip(range(len(payloads)), order, strict=True)]


def _few_bits(payloads: list[bytes], drawn: random.Random) -> list[bytes]:
    """Returns payloads of which one bit in fifty was flipped."""
    found = []
    for each in payloads:
        number = int.from_bytes(each)
        for place in drawn.sample(range(8 * len(each)), 8 * len(each) // 50):
            number ^= 1 << place
        found.append(number.to_bytes(len(each)))
    return found


def _mixed(texts: Texts, n: int) -> list[str]:
    parts = [text.split(". ") for text in texts.usual]
    pairs = [(parts[k], parts[(k + 1) % len(parts)]) for k in range(n)]
    return [". ".join([*a[: len(a) // 2], *b[len(b) // 2 :]]) for a, b in pairs]


def _of(kind: str) -> Callable[[Texts, int], list[str]]:
    return lambda texts, n: texts.others[kind][:n]


def _sender_tuned(pair: Pair, places: Places) -> Pair:
    return forced(pair, sender=_tuned(pair.sender.model, pair.sender.tokenizer, places.stories, 20, 3e-4))


def _receiver_lora(pair: Pair, places: Places) -> Pair:
    tuned = _tuned(pair.receiver.model, pair.receiver.tokenizer, places.stories, 40, 2e-3, "q_proj v_proj")
    return forced(pair, receiver=tuned)


def _other(pair: Pair, places: Places) -> Pair:
    return forced(pair, receiver=load_model(places.other)[0].eval())


FAULTS = (
    Fault("texts: conversations", texts=_of("conversations")),
    Fault("texts: agents' logs", texts=_of("agents' logs")),
    Fault("texts: stories", texts=_of("stories")),
    Fault("texts: another language (German dossiers)", texts=_of("German dossiers")),
    Fault("texts: two documents mixed", texts=_mixed),
    Fault("sender fine-tuned", pair=_sender_tuned),
    Fault("receiver updated by LoRA", pair=_receiver_lora),
    Fault("receiver quantised, 8 bits", pair=lambda pair, _: forced(pair, receiver=_quantised(pair.receiver.model, 8))),
    Fault("receiver quantised, 4 bits", pair=lambda pair, _: forced(pair, receiver=_quantised(pair.receiver.model, 4))),
    Fault("chat template changed", pair=lambda pair, _: _templated(pair)),
    Fault("another checkpoint", pair=_other),
    Fault("RoPE base of one layer x 10", pair=lambda pair, _: forced(pair, receiver=_turned(pair.receiver.model, 10))),
    Fault("codec's encoder corrupted, 10 %", pair=lambda pair, _: _noisy(pair, "pooler", 0.1)),
    Fault("codec's projector corrupted, 10 %", pair=lambda pair, _: _noisy(pair, "projector", 0.1)),
    Fault("codec's projector corrupted, 50 %", pair=lambda pair, _: _noisy(pair, "projector", 0.5)),
    Fault("payload: random bits", payloads=lambda p, drawn: [drawn.randbytes(len(each)) for each in p]),
    Fault("payload: random, each bit as often as usual", payloads=_usual_bits),
    Fault("payload: halves of two messages", payloads=_spliced),
    Fault("payload: one bit in fifty flipped", payloads=_few_bits),
    Fault("payload: another case's, replayed", payloads=lambda p, drawn: [*p[1:], p[0]], replayed=True),
)


def drifting(usual: list[str], other: list[str], per_day: int, drawn: random.Random) -> Iterator[str]:
    """Yields texts of which one in a hundred more is of another kind with every day."""
    for day in range(101):
        for _ in range(per_day):
            yield drawn.choice(other if drawn.random() < day / 100 else usual)
