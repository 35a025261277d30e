"""Two different senders hand off to one receiver, and both memories stand in one prompt.

    python examples/several_senders.py

The embedded sender hands on a learned message. The second sender is another model (the receiver's own, in the role of a
colleague) that hands on the end of its document as text. Each has its own codec; the receiver holds both, and a
message's codec id picks the one that reads it.

The mechanism is what this shows. The embedded receiver was trained on one memory at a time: with two it answers from
either, or mixes them: see the last line. A receiver that is to compare documents needs a codec that was trained with
several memories in the prompt; until then, ask each memory alone.
"""

import ilcp
from ilcp.tasks import case_files
from ilcp_codecs.text import TailCodec


def main() -> None:
    pair = ilcp.load_pair()  # knows incident dossiers only
    model, tokenizer = pair.receiver.model, pair.receiver.tokenizer
    learned, tail = pair.sender.codec, TailCodec(payload_bytes=600)
    colleague = ilcp.Sender(model, tokenizer, tail)
    receiver = ilcp.Receiver(model, tokenizer, [learned, tail], allow_unmeasured=True)  # a cut text has no evidence

    first, second = case_files("test", seed=7, n=2)
    messages = [pair.sender.encode(first.context), colleague.encode(second.context)]
    kinds = [type(receiver.decode(message)).__name__ for message in messages]
    print(f"messages of {len(messages[0])} and {len(messages[1])} bytes, decoded to {kinds[0]} and {kinds[1]}\n")

    asked = [q.text for q in first.questions if q.text in {other.text for other in second.questions}]
    sources: list[bytes | list[bytes]] = [*messages, messages]
    one, other, both = (receiver.answers([(source, text) for text in asked]) for source in sources)
    print(f"{'question':44}{'message':16}{'text':16}both")
    for row in zip(asked, one, other, both, strict=True):
        print(f"{row[0]:44}{row[1]:16}{row[2]:16}{row[3]}")
    whose = ["message" if b == a else "text" if b == t else "neither" for a, t, b in zip(one, other, both, strict=True)]
    counted = ", ".join(f"{whose.count(who)} as from {who}" for who in ("message", "text", "neither"))
    print(f"\nanswers with both: {counted}")


if __name__ == "__main__":
    main()
