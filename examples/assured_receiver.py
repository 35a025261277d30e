"""A receiver that knows when a message is unlike those that its codec was calibrated on, and what it does then.

    python examples/assured_receiver.py

Four messages of the embedded pair: a dossier, a conversation, bytes that no sender made, and many of these in a row.
"""

import random
import warnings
from tempfile import TemporaryDirectory

import ilcp
from ilcp.assurance import Policy, Watch
from ilcp.embedded import load_pair
from ilcp.errors import DoubtError
from ilcp.message import Message
from ilcp.tasks import case_files

CHAT = "user: I need a table for {} in Porto on Friday.\nassistant: At which time?\nuser: At eight, please. "


def main() -> None:
    warnings.simplefilter("ignore")  # that the embedded sender knows no conversations: the receiver finds out by itself
    case = next(case_files("test", seed=7, n=1))
    question = case.questions[0].text
    pair = load_pair()
    sender = pair.sender
    model, tokenizer, codec = pair.receiver.model, pair.receiver.tokenizer, pair.receiver.codec

    with TemporaryDirectory() as folder, Watch(f"{folder}/watch.sqlite") as watch:
        strict = ilcp.Receiver(model, tokenizer, codec, assurance=Policy(doubt="refuse", watch=watch, tenant="acme"))
        print("a dossier:", strict.generate(sender.encode(case.context), question))

        talk = 4 * CHAT.format(2)
        chat, forged = sender.encode(talk), Message(sender.codec_id, random.Random(1).randbytes(80)).to_bytes()
        for name, message in (("a conversation", chat), ("random bytes", forged)):
            try:
                strict.decode(message)
            except DoubtError as error:
                print(f"{name}: {str(error).partition(';')[0].replace('expected', 'refused: expected')}")

        kept = {chat: talk}  # where the text of a message is to be had, such as a log
        lenient = ilcp.Receiver(model, tokenizer, codec, assurance=Policy(doubt="text", text=lambda m: kept[m]))
        print("the conversation's text in its place:", type(lenient.decode(chat)).__name__)

        watching = ilcp.Receiver(model, tokenizer, codec, assurance=Policy(doubt="accept", alarm="refuse", watch=watch))
        for number in range(1, 100):
            try:
                watching.decode(sender.encode(4 * CHAT.format(number)))
            except DoubtError:
                print(f"conversations in a row: an alarm at message {number}")
                break
        for state in watch.states():
            print(f"{state.tenant or 'nobody'}: {state.messages} messages, {state.decided}, alarm {state.alarmed}")


if __name__ == "__main__":
    main()
