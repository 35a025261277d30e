"""A sender and a receiver in two processes on one host, with a spool between them: no server, nothing to install.

    python examples/two_processes.py [FOLDER]

The receiver says what it reads; the sender waits for that, chooses, and sends two dossiers as messages of 100 bytes;
the receiver answers from them. In real use the two functions are two programs, which share the folder's name and
nothing else.
"""

import multiprocessing
import sys
import tempfile
import time
from os import urandom

import ilcp
from ilcp.tasks import case_files
from ilcp.transport import Capabilities, CapabilityError, Connection, choose, connect

CASES = 2
QUESTION = "Which region is affected?"


def send(url: str) -> None:
    """Is the first agent's process: it has read the documents, and hands on what it made of them."""
    sender = ilcp.load_pair().sender
    codec_id = sender.codec.trained.codec_id(sender.codec.spec).hex()
    run = urandom(4).hex()  # an id that was acknowledged is not handed out again
    with connect(url) as c:
        choice = choose([codec_id], told(c, "planner"))  # raises, rather than send something lesser
        for number, case in enumerate(case_files("test", seed=7, n=CASES)):
            message = sender.encode(case.context)
            receipt = c.send(message, to="planner", handoff_id=f"{run}-{number}")  # again under this id: kept once
            print(f"sender: {len(case.context)} characters as {len(message)} bytes, {receipt.handoff_id}; {choice.why}")


def receive(url: str) -> None:
    """Is the second agent's process: it has seen no document."""
    receiver = ilcp.load_pair().receiver
    with connect(url, name="planner") as c:
        c.publish(Capabilities((receiver.codec.trained.codec_id(receiver.codec.spec).hex(),)))
    for _ in range(CASES):
        with connect(url, name="planner") as c:
            delivery = c.receive(timeout_s=60)
            assert delivery is not None, "nothing came within a minute"
            answer = receiver.generate(delivery.message, QUESTION)
            print(f"receiver: {delivery.handoff_id}: {QUESTION} {answer}")
            delivery.ack()  # only now: had this process died before, the next one would get the message


def told(c: Connection, name: str) -> Capabilities:
    """Returns what a receiver reads, as soon as it has said so."""
    for _ in range(600):
        try:
            return c.capabilities(name)
        except CapabilityError:
            time.sleep(0.1)
    return c.capabilities(name)


def main(url: str) -> None:
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
