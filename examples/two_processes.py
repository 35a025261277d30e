"""A sender and a receiver in two processes on one host, with a spool between them: no server, nothing to install.

    python examples/two_processes.py [FOLDER]

The receiver says what it reads; the sender asks, chooses, and sends two dossiers as messages of 100 bytes; the receiver
answers from them. In real use the two functions are two programs, which share the folder's name and nothing else.
"""

import multiprocessing
import sys
import tempfile
from os import urandom

import ilcp
from ilcp.tasks import case_files
from ilcp.transport import Capabilities, choose, connect

CASES = 2
QUESTION = "Which region is affected?"


def send(url: str) -> None:
    """The first agent's process: it has read the documents, and hands on what it made of them."""
    sender = ilcp.load_pair().sender
    codec_id = sender.codec.trained.codec_id(sender.codec.spec).hex()
    run = urandom(4).hex()  # an id that was acknowledged is not handed out again
    with connect(url) as c:
        choice = choose([codec_id], c.capabilities("planner"))  # raises, rather than send something lesser
        for number, case in enumerate(case_files("test", seed=7, n=CASES)):
            message = sender.encode(case.context)
            receipt = c.send(message, to="planner", handoff_id=f"{run}-{number}")  # again under this id: kept once
            print(f"sender: {len(case.context)} characters as {len(message)} bytes, {receipt.handoff_id}; {choice.why}")


def receive(url: str) -> None:
    """The second agent's process: it has seen no document."""
    receiver = ilcp.load_pair().receiver
    for _ in range(CASES):
        with connect(url, name="planner") as c:
            delivery = c.receive(timeout_s=60)
            assert delivery is not None, "nothing came within a minute"
            answer = receiver.generate(delivery.message, QUESTION)
            print(f"receiver: {delivery.handoff_id}: {QUESTION} {answer}")
            delivery.ack()  # only now: had this process died before, the next one would get the message


def announce(url: str) -> None:
    """What the receiver reads, told before anybody sends."""
    codec = ilcp.load_pair().receiver.codec
    with connect(url, name="planner") as c:
        c.publish(Capabilities((codec.trained.codec_id(codec.spec).hex(),)))


def main(url: str) -> None:
    announce(url)
    processes = [multiprocessing.get_context("spawn").Process(target=work, args=(url,)) for work in (send, receive)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        sys.exit(1)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(f"spool://{sys.argv[1]}")
    else:
        with tempfile.TemporaryDirectory() as folder:
            main(f"spool://{folder}")
