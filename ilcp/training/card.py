"""The card of a trained codec: what it is for, what it was measured to be worth, its limits, and how to load it."""

from collections.abc import Mapping
from typing import Any

from ilcp.codec.folder import MEASURED, measured
from ilcp.codec.protocols import Codec
from ilcp.measure import Report
from ilcp.measure.arms import NO_CODEC
from ilcp.message import Message

__all__ = ["short_name", "write_card"]

CARD = """---
library_name: ilcp
tags:
- ilcp
- soft-prompt
---

# {sender} to {receiver}, {payload} bytes

A codec of ilcp: it hands what {sender} has read to {receiver} as a message of
{wire}, header and check counted. It was trained for exactly these two models and knows them by their weights.

```python
import ilcp

codec = ilcp.load("FOLDER_OR_HUB_ID")
sender = ilcp.Sender(model_a, tokenizer_a, codec)
receiver = ilcp.Receiver({receiver_model}, tokenizer_b, codec)
message = sender.encode(text)
answer = receiver.generate(message, question)
```

{verdict}## How it was made

{steps} steps in {minutes} minutes on {processes} process(es), {tokens_per_s} tokens/s; of the time, {shares}.
{training} cases to learn from, {validation} to watch the learning by, {test} to measure, {source}. Seed {seed}. The
whole recipe, versions and identities are in `config.json`; the learning curve is `log.jsonl`, drawn in `curve.png`
where matplotlib was installed.{tuned}

## Limits

- It is for texts like those it was trained on. Of others it may say anything: measure it on yours with
  `ilcp measure FOLDER --task cases.jsonl`.
- Names, numbers and ids are what a latent loses first.{adapted}
{arms}"""
ARMS = """- Text that a language model codes in as many bytes is not in this table: `ilcp measure` adds it.

## Every arm, on the test cases

"""
UNMEASURED = f"""{MEASURED}

Not measured yet. `ilcp measure FOLDER --attach` does it; until then a receiver refuses this codec.
"""
ADAPTED = """
- The receiver was adapted: all arms below, the full text among them, are read by the adapted receiver. The adapter is
  in `receiver-adapter`; a receiver without it is refused."""


def write_card(codec: Codec, made: Mapping[str, Any], report: Report | None) -> str:
    """Returns the card of a codec, from the record of its training and, where it is measured already, its report."""
    config, cases = made["plan"], made["cases"]
    adapted = config["adapt_receiver"]
    return (
        CARD.format(
            sender=short_name(config["sender"]),
            receiver=short_name(config["receiver"]),
            payload=codec.spec.payload_bytes,
            wire=_wire(codec, report),
            receiver_model="ilcp.adapt(model_b, codec)" if adapted else "model_b",
            verdict="" if report is None else f"{report.verdict()}\n\n",
            shares=", ".join(f"{part} {share:.0%}" for part, share in made["time_shares"].items()),
            source="which the sender wrote itself" if config["data"] is None else f"from {short_name(config['data'])}",
            adapted=ADAPTED if adapted else "",
            tuned=_tuned(made),
            arms="" if report is None else f"{ARMS}{_arms(report)}\n",
            **{name: made[name] for name in ("steps", "minutes", "processes", "tokens_per_s", "seed")},
            **{name: cases[name] for name in ("training", "validation", "test")},
        )
        + "\n"
        + (UNMEASURED if report is None else measured(report.evidence()))
    )


def _wire(codec: Codec, report: Report | None) -> str:
    """Says how large a message is: measured, or else at most."""
    if report is not None:
        return f"{round(report.arms['message'].sizes()['wire'].value)} bytes"
    return f"at most {len(Message(NO_CODEC, bytes(codec.spec.payload_bytes)).to_bytes())} bytes"


def _tuned(made: Mapping[str, Any]) -> str:
    """Says what the receiver's first stage brought by itself; nothing where there was none."""
    brought = made.get("reader")
    if brought is None:
        return ""
    figures = {
        when: (f"{brought[when]['exact']:.3f} exact, " if made["recipe"]["answers_end"] else "")
        + f"{brought[when]['log_likelihood']:.2f} nats an answer"
        for when in ("before", "after")
    }
    return (
        f"\n\nBefore that the receiver was tuned to read the full text, {brought['steps']} steps in "
        f"{brought['minutes']} minutes. On the {brought['questions']} questions of the cases to watch by it gave "
        f"{figures['before']} before, and {figures['after']} after it: what follows is the codec's part."
    )


def _arms(report: Report) -> str:
    unit = "exact match" if report.metric == "exact" else "nats per answer"
    lines = [f"| arm | bytes on the wire | {unit} [95 % interval] |", "| --- | ---: | ---: |"]
    for name, arm in report.arms.items():
        sizes = arm.sizes()
        size = f"{sizes['wire'].value:,.0f}" if sizes else ""
        lines.append(f"| {name} | {size} | {report.mean(name)} |")
    return "\n".join(lines)


def short_name(path: str) -> str:
    """Returns what a card calls a model or a file: the end of its path or id."""
    return path.rstrip("/").split("/")[-1]
