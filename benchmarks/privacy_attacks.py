"""Attacks on single messages: the receiver asked, its model trained to write the text back, a search over texts, and
whether two messages are about the same thing. See ``privacy.py``."""

import copy
import random
import time
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from privacy_data import FACTS, FIELDS, Bits, encoded, facts_of, labels
from privacy_probes import facts_told, figure, stated
from torch import Tensor, nn
from torch.nn import functional as F

from ilcp.codec.memory import SoftPrompt
from ilcp.embedded import Pair, load_pair
from ilcp.tasks import Case
from ilcp.tasks.case_files import OFFICE, retold
from ilcp.tasks.dossier import ATTRIBUTES, CODE, CODE_DIGITS, CODE_LETTERS, JOINS, POOLS, SITE_SENTENCES
from ilcp.tasks.rewrite import state
from ilcp.training import Models
from ilcp_codecs.vae import VaeNetwork
from ilcp_codecs.vae.bottleneck import dequantise

SWEEPS = 3  # of the search over all fields, at most
DECODER_BATCH, DECODER_RATE = 12, 1e-3


def memories(network: VaeNetwork, bits: Bits) -> list[SoftPrompt]:
    """Returns what a receiver decodes of payloads ``"messages bits"``, in the payload's order."""
    return [SoftPrompt(one) for one in memory_of(network, bits).detach()]


def memory_of(network: VaeNetwork, bits: Bits) -> Tensor:
    """Returns memory ``"messages slots hidden"`` of payloads ``"messages bits"``, whole or prefixes."""
    config, known = network.config, network.known(bits.shape[1] // 8)
    whole = np.zeros((len(bits), 8 * config.payload_bytes), dtype=np.int64)
    whole[:, config.order()[: bits.shape[1]]] = bits
    codes = torch.from_numpy(whole).view(len(bits), config.slots, config.dims)
    memory: Tensor = network.projector(dequantise(codes, config.bits) * known)
    return memory


def asked(pair: Pair, network: VaeNetwork, cases: Sequence[Case], bits: Bits, fields: Sequence[str] = ()) -> Any:
    """Returns ``"messages facts"``, as ``facts_told``: what the receiver answers exactly of each message.

    Args:
        fields: where given, joins are not asked, and only attributes of these names.
    """
    held = memories(network, bits)
    items, places = [], []
    for at, case in enumerate(cases):
        for question in case.questions:
            place = _place(question.kind, question.facts[0][0])
            if place is not None and (not fields or question.facts[0][0] in fields):
                items.append((held[at], question.text, question.answer))
                places.append((at, place))
    told = np.zeros((len(cases), len(ATTRIBUTES) + len(OFFICE) + 1), dtype=bool)
    for (at, place), score in zip(places, pair.receiver.score(items), strict=True):
        told[at, place] = score.exact
    return told


def _place(kind: str, topic: str) -> int | None:
    names = [attribute.name for attribute in ATTRIBUTES]
    if kind == "lookup":
        return names.index(topic)
    if kind == "join":
        return len(names) + list(JOINS).index(topic)
    return len(names) + len(OFFICE) if kind == "code" else None


def receiver_report(cases: Sequence[Case], told: Any, payload_bytes: int) -> dict[str, Any]:
    """Returns how much a receiver tells, as ``privacy_probes.report`` does; whoever holds the message can ask it."""
    there = stated(np.array(list(map(labels, cases))))
    return {
        "payload_bytes": payload_bytes,
        "n": len(cases),
        "facts": figure(told.sum(1)),
        "facts stated": figure(there.sum(1)),
        "facts a byte": float(told.sum(1).mean() / payload_bytes),
        "share of facts": figure(told.sum(1), there.sum(1)),
        "whole code": figure(told[:, -1]),
        "exact by field": {
            name: round(float(told[there[:, at], at].mean()), 4)
            for at, name in enumerate([field.name for field in FIELDS[:24]])
            if there[:, at].any()
        },
    }


class Decoder(nn.Module):
    """The receiver's model behind the memory, trained to say the text; an attacker has both."""

    def __init__(self, pair: Pair, network: VaeNetwork):
        super().__init__()
        self.model = copy.deepcopy(pair.receiver.model).requires_grad_(True)
        self.projector = copy.deepcopy(network).requires_grad_(True)
        self.tokenizer = pair.receiver.tokenizer
        self.end: int = self.tokenizer.eos_token_id

    def rows(self, texts: Sequence[str]) -> Tensor:
        """Returns the texts' token ids ``"texts tokens"``, each with an end, padded with -100."""
        ids = [self.tokenizer(text).input_ids + [self.end] for text in texts]
        rows = torch.full((len(ids), max(map(len, ids))), -100)
        for row, own in zip(rows, ids, strict=True):
            row[: len(own)] = torch.tensor(own)
        return rows

    def logits(self, bits: Bits, rows: Tensor) -> Tensor:
        """Returns the logits ``"texts tokens words"`` of each token, given those before it."""
        memory = memory_of(self.projector, bits)
        inputs = self.model.get_input_embeddings()(rows.clamp(min=0)[:, :-1])
        whole: Tensor = self.model(inputs_embeds=torch.cat([memory, inputs], 1)).logits
        return whole[:, memory.shape[1] - 1 :]

    def loss(self, bits: Bits, texts: Sequence[str]) -> Tensor:
        rows = self.rows(texts)
        return F.cross_entropy(self.logits(bits, rows).transpose(1, 2), rows, ignore_index=-100)

    @torch.no_grad()
    def accuracy(self, bits: Bits, texts: Sequence[str]) -> list[float]:
        """Returns, of each text, the share of its tokens that is the likeliest, given all before it."""
        rows = self.rows(texts)
        right = (self.logits(bits, rows).argmax(-1) == rows) & (rows >= 0)
        return (right.sum(1) / (rows >= 0).sum(1)).tolist()

    @torch.no_grad()
    def written(self, bits: Bits, tokens: int) -> list[str]:
        """Returns the texts that it writes by itself, greedily."""
        memory = memory_of(self.projector, bits)
        attended = torch.ones(memory.shape[:2], dtype=torch.long)
        made = self.model.generate(
            inputs_embeds=memory, attention_mask=attended, max_new_tokens=tokens, do_sample=False, pad_token_id=self.end
        )
        return [self.tokenizer.decode(ids, skip_special_tokens=True) for ids in made]


def decoder(
    pair: Pair, network: VaeNetwork, own: Bits, texts: Sequence[str], minutes: float, seed: int
) -> tuple[Decoder, int]:
    """Returns a decoder trained on the attacker's own messages to write these texts, and after how many steps."""
    torch.manual_seed(seed)
    made = Decoder(pair, network).train()
    optimizer = torch.optim.AdamW(made.parameters(), lr=DECODER_RATE, weight_decay=0.01)
    started, step, done = time.monotonic(), 0, 0.0
    while done < 1:
        for group in optimizer.param_groups:
            group["lr"] = DECODER_RATE * min(1.0, (step + 1) / 50) * (1.02 - done)
        some = random.Random(f"decoder {seed}/{step}").sample(range(len(own)), DECODER_BATCH)
        loss = made.loss(own[some], [texts[at] for at in some])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(made.parameters(), 1.0)
        optimizer.step()
        step, done = step + 1, (time.monotonic() - started) / 60 / minutes
        if step % 100 == 0:
            print(f"decoder, step {step}: {loss.item():.3f} nats a token", flush=True)
    return made.eval(), step


def rebuilt(made: Decoder, cases: Sequence[Case], texts: Sequence[str], bits: Bits) -> dict[str, Any]:
    """Returns what the decoder gives back: tokens behind the right message and another's, and facts that it writes."""
    parts = range(0, len(cases), DECODER_BATCH)
    other = np.roll(bits, 1, 0)
    accuracy = [each for at in parts for each in made.accuracy(bits[at : at + 12], texts[at : at + 12])]
    mismatched = [each for at in parts for each in made.accuracy(other[at : at + 12], texts[at : at + 12])]
    written = [each for at in parts for each in made.written(bits[at : at + 12], 300)]
    told = np.array([written_facts(case, text) for case, text in zip(cases, written, strict=True)])
    there = stated(np.array(list(map(labels, cases))))
    return {
        "n": len(cases),
        "token accuracy, given what stands before": figure(accuracy),
        "the same behind another's message": figure(mismatched),
        "facts": figure(told.sum(1)),
        "facts stated": figure(there.sum(1)),
        "share of facts": figure(told.sum(1), there.sum(1)),
        "whole code": figure(told[:, -1]),
        "sentences word for word": figure([_sentences(true, text) for true, text in zip(texts, written, strict=True)]),
        "one text": {"true": texts[0], "written": written[0]},
    }


def as_it_stands(case: Case) -> str:
    """Returns a dossier's text."""
    return case.context


def in_order(case: Case) -> str:
    """Returns a dossier's facts as ``template`` words them."""
    return template(labels(case))


def written_facts(case: Case, text: str) -> list[bool]:
    """Says, for each fact as in ``facts_told``, whether a text states it in one of the sentences that can."""
    said = facts_of(case)
    told = [any(state(s, said.get(a.name, "\0")) in text for s in a.sentences) for a in ATTRIBUTES]
    for role in JOINS:
        person, city = said.get(role, "\0"), said.get(OFFICE[role], "\0")
        told.append(any(sentence.format(person=person, city=city) in text for sentence in SITE_SENTENCES))
    code = "".join(said[f"code {n}"] for n in range(6))
    return [*told, code in text]


def _sentences(true: str, text: str) -> float:
    """Returns the share of a text's sentences that stand in another."""
    sentences = true.split(". ")
    return sum(sentence in text for sentence in sentences) / len(sentences)


def literals_told(cases: Sequence[Case], seed: int) -> dict[str, Any]:
    """Returns how often the code stands in clear in a sealed message with literals: nobody needs the key to read it."""
    sender = load_pair(key=random.Random(seed).randbytes(32)).sender
    codes = ["".join(facts_of(case)[f"code {n}"] for n in range(6)).encode() for case in cases]
    sealed = [sender.encode(case.context, literals="auto") for case in cases]
    return {"code in clear": figure([code in message for code, message in zip(codes, sealed, strict=True)])}


def searched(network: VaeNetwork, pair: Models, target: Bits, seed: int) -> tuple[list[int], int, int]:
    """Returns the fields of the text whose payload comes nearest to ``target``, how many texts were encoded, and the
    bits in which it still differs: coordinate descent, field by field, from a text that states nothing.

    Nothing but the codec and its sender is used.
    """
    rng = random.Random(seed)
    now, tried = [0] * len(FACTS), 0
    far = int((encoded(network, pair, [template(now)])[0] != target).sum())
    for _ in range(SWEEPS):
        before = far
        for at in rng.sample(FACTS[:24], 24) + FACTS[24:]:
            rivals = [[*now[:at], value, *now[at + 1 :]] for value in range(FIELDS[at].classes) if value != now[at]]
            distances = (encoded(network, pair, list(map(template, rivals))) != target).sum(1)
            tried += len(rivals)
            if distances.min() < far:
                far, now = int(distances.min()), rivals[int(distances.argmin())]
        if far == before:
            break
    return now, tried, far


def template(numbers: Sequence[int]) -> str:
    """Returns a text that states the facts of these numbers, in the first wording and in one order."""
    said = {}
    for at, field in enumerate(FIELDS[:24]):
        pool = POOLS[ATTRIBUTES[at].pool] if at < len(ATTRIBUTES) else POOLS["city"]
        if numbers[at]:
            said[field.name] = pool[numbers[at] - 1]
    sentences = [state(a.sentences[0], said[a.name]) for a in ATTRIBUTES if a.name in said]
    offices = {said[role]: said[OFFICE[role]] for role in JOINS if role in said and OFFICE[role] in said}
    sentences += [SITE_SENTENCES[0].format(person=p, city=c) for p, c in offices.items()]
    code = [(CODE_DIGITS if n % 2 else CODE_LETTERS)[max(0, numbers[24 + n] - 1)] for n in range(6)]
    return " ".join([*sentences, state(CODE.sentences[0], "".join(code))])


def optimised(network: VaeNetwork, pair: Models, cases: Sequence[Case], bits: Bits, seed: int) -> dict[str, Any]:
    """Returns how much the search finds of each message, and how long it takes."""
    found, seconds, tries, left = [], [], [], []
    for number, target in enumerate(bits):
        started = time.monotonic()
        numbers, tried, far = searched(network, pair, target, seed + number)
        seconds.append(time.monotonic() - started)
        tries.append(tried)
        left.append(far)
        found.append([*numbers, *[-1] * (len(FIELDS) - len(FACTS))])
        print(f"search {number}: {far} bits left after {tried} texts, {seconds[-1]:.0f} s", flush=True)
    said = np.array(list(map(labels, cases)))
    right, there = facts_told(np.array(found), said), stated(said)
    return {
        "n": len(cases),
        "facts": figure(right.sum(1)),
        "facts stated": figure(there.sum(1)),
        "share of facts": figure(right.sum(1), there.sum(1)),
        "whole code": figure(right[:, -1]),
        "texts encoded": figure(tries),
        "seconds a message": figure(seconds),
        "bits that differ in the end": figure(left),
    }


def retellings(cases: Sequence[Case], keep: Sequence[str], seed: int) -> list[str]:
    """Returns for each case a text that keeps its facts of these fields, and draws all else anew: which other
    attributes are stated, too. Offices go with people; the code is kept where ``"code"`` is named."""
    texts = []
    for case in cases:
        rng, code = random.Random(f"retold {seed}/{case.id}"), cast(Any, case.fact_code)
        kept = {name: value for name, value in code.values.items() if name in keep}
        others = [attribute.name for attribute in ATTRIBUTES if attribute.name not in keep]
        drawn = set(rng.sample(others, len(code.values) - len(kept)))
        values = kept | {a.name: rng.choice(POOLS[a.pool]) for a in ATTRIBUTES if a.name in drawn}
        people = sorted({values[role] for role in JOINS if role in values})
        known = code.offices if "offices" in keep else {}
        offices = {person: known.get(person) or rng.choice(POOLS["city"]) for person in people}
        another = "".join(rng.choice(CODE_LETTERS) + rng.choice(CODE_DIGITS) for _ in range(3))
        texts.append(retold(case.id, rng, values, offices, code.code if "code" in keep else another).context)
    return texts


def linked(one: Bits, two: Bits, own_one: Bits, own_two: Bits, payload_bytes: int, seed: int) -> dict[str, float]:
    """Returns how well pairs of messages about one thing are told from pairs about two: AUROC of the Hamming distance,
    and of a logistic classifier of which bits agree, learned from the attacker's own pairs."""
    bits = 8 * payload_bytes
    alike, other = (one == two)[:, :bits], (one == np.roll(two, 1, 0))[:, :bits]
    own_alike, own_other = (own_one == own_two)[:, :bits], (own_one == np.roll(own_two, 1, 0))[:, :bits]
    torch.manual_seed(seed)
    x = torch.from_numpy(np.vstack([own_alike, own_other])).float() - 0.5
    y = torch.cat([torch.ones(len(own_alike)), torch.zeros(len(own_other))])
    judge = nn.Linear(bits, 1)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=1e-2, weight_decay=0.1)
    for _ in range(300):
        loss = F.binary_cross_entropy_with_logits(judge(x)[:, 0], y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        scores = [judge(torch.from_numpy(part).float() - 0.5)[:, 0].numpy() for part in (alike, other)]
    return {
        "payload_bytes": payload_bytes,
        "n": len(one),
        "AUROC, bits that agree": auroc(alike.sum(1), other.sum(1)),
        "AUROC, learned": auroc(*scores),
    }


def auroc(positive: Any, negative: Any) -> float:
    """Returns the chance that a positive scores above a negative, ties half."""
    ranks = np.concatenate([positive, negative])
    order = np.unique(ranks, return_inverse=True)[1]
    counts = np.bincount(order)
    middle = np.cumsum(counts) - (counts - 1) / 2
    n = len(positive)
    return float((middle[order[:n]].sum() - n * (n + 1) / 2) / (n * len(negative)))
