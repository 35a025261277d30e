"""The processes of `faults.py`: ``fault_roles.py send|receive|serve WORDS``. They load no torch, and start quickly."""

import os
import sys
import time
from pathlib import Path

from fault_shared import MESSAGE, TOKEN, lines, patient

from ilcp.errors import TransportError


def send(url: str, who: str, n: str, book: str) -> None:
    """Sends what has no receipt yet; an error is answered by trying again under the same id."""
    done = len(lines(Path(book)))
    with patient(url, None) as c, open(book, "ab", buffering=0) as file:
        while done < int(n):
            try:
                c.send(MESSAGE, to="planner", handoff_id=f"{who}-{done}")
            except TransportError:
                time.sleep(0.05)
                continue
            os.write(file.fileno(), f"\nsent {who}-{done} {time.monotonic_ns()}.\n".encode())
            done += 1


def receive(url: str, book: str) -> None:
    """Receives until it is killed."""
    with patient(url, "planner") as c, open(book, "ab", buffering=0) as file:
        while True:
            try:
                delivery = c.receive(1.0)
                if delivery is None:
                    continue
                os.write(file.fileno(), f"\ngot {delivery.handoff_id} {time.monotonic_ns()}.\n".encode())
                os.write(file.fileno(), f"\nacking {delivery.handoff_id} {time.monotonic_ns()}.\n".encode())
                delivery.ack()
                os.write(file.fileno(), f"\nacked {delivery.handoff_id} {time.monotonic_ns()}.\n".encode())
            except TransportError:
                time.sleep(0.05)


def serve_http(folder: str, port: str) -> None:
    """Takes messages over HTTP into a spool."""
    from ilcp.transport.serve import serve  # the other roles do without its libraries

    serve(Path(folder), "planner", token=TOKEN, port=int(port))


if __name__ == "__main__":
    _, role, *words = sys.argv
    if role == "send":
        send(*words)
    elif role == "receive":
        receive(*words)
    else:
        serve_http(*words)
