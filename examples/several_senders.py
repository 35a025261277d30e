"""Two documents, handed off one by one, and one receiver that asks with both memories in its prompt.

    python examples/several_senders.py

The mechanism is what this shows. The embedded receiver was trained on one memory at a time and on one document per
question: with two of them it answers from either, or from neither. A receiver that is to compare documents needs a
codec that was trained with several memories in the prompt; until then, ask each memory alone.
"""

import ilcp
from ilcp.tasks import case_files


def main() -> None:
    pair = ilcp.load_pair()  # knows incident dossiers only, and takes its own codec's messages only
    first, second = case_files("test", seed=7, n=2)
    messages = [pair.sender.encode(case.context) for case in (first, second)]  # of one sender, or of two: all the same
    print(f"two messages of {' and '.join(str(len(message)) for message in messages)} bytes, both in one prompt\n")

    asked = {question.text: question.answer for question in second.questions}
    shared = [question for question in first.questions if question.text in asked]
    print(f"{'question':44}{'first':16}{'second':16}both")
    tally = dict.fromkeys(("first", "second", "neither"), 0)
    for question in shared:
        alone = [pair.receiver.generate(message, question.text) for message in messages]
        both = pair.receiver.generate(messages, question.text)  # first memory, empty line, second memory, empty line, …
        print(f"{question.text:44}{alone[0]:16}{alone[1]:16}{both}")
        tally["first" if both == alone[0] else "second" if both == alone[1] else "neither"] += 1
    print(f"\nwith both memories the answer was that of {', '.join(f'{who} {n}' for who, n in tally.items())}")


if __name__ == "__main__":
    main()
