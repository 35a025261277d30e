"""Chat messages in place of a question, with the memory where a marker puts it.

    python examples/chat_messages.py

The marker may stand in any message, in an earlier turn too. The embedded receiver knows incident dossiers only, and was
trained with the memory at the head of a lone question: the same memory elsewhere is read badly, as the output shows.
Place a memory where its codec's training had it.
"""

import ilcp
from ilcp import MEMORY_HERE
from ilcp.tasks import case_files


def main() -> None:
    pair = ilcp.load_pair()
    case = next(case_files("test", seed=7, n=1))
    message = pair.sender.encode(case.context)
    earlier, now = case.questions[4], case.questions[5]
    plain = [{"role": "user", "content": now.text}]  # no marker: the memory opens the last user's message
    turns = [
        {"role": "user", "content": f"{MEMORY_HERE}\n\n{earlier.text}"},
        {"role": "assistant", "content": earlier.answer},
        {"role": "user", "content": now.text},
    ]
    behind = [{"role": "user", "content": f"{now.text}\n\n{MEMORY_HERE}"}]
    print(f"{now.text} Expected: {now.answer}")
    for name, chat in (("no marker", plain), ("in an earlier turn", turns), ("behind the question", behind)):
        print(f"{name:22}{pair.receiver.generate(message, chat)}")
    print(f"{'with nothing':22}{pair.receiver.generate(None, turns)}")  # the control: the same chat, its marker empty


if __name__ == "__main__":
    main()
