"""Hand-offs while sender, receiver and server are killed (-9) at random: what is lost, repeated, out of order.

    python benchmarks/faults.py [--only kills|scenarios] [--transports spool nats http] [--n 2000] [--kill-every-s 2]
                                [--add]

``http`` is sent to an ingress and received from the spool behind it. With ``--add`` the counts are added to those of
the file, so that a long run may be made in parts.

Two senders hand on n/2 messages each; a sender that is killed begins again at the first one it had no receipt for,
under the same id. Two receivers compete, and each writes a hand-off down (id, time) when it gets it, before it
acknowledges it, and when the acknowledgement returned. Counted afterwards, from those books alone:

- *lost*: sent with a receipt and never handed out; or got, not acknowledged by anybody, and never handed out again.
- *acknowledgement unknown*: the receiver was killed while it acknowledged; the message did not come again.
- *handed out after its acknowledgement returned*: to either of them; the promise is 0.
- *redelivered*: handed out again although no acknowledgement had returned: at-least-once, one per killed hand.
- *out of order*: a first hand-out that comes after a later one of the same sender to the same receiver, as when a
  receiver was killed between getting a message and writing it down.

The committed figures are those of --n 100000. nats-server has to be on the path for NATS. `fault_scenarios.py` has what
else can go wrong. Exit status 1 says that a promise was not held. What a run leaves out stays in the file.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from fault_scenarios import scenarios
from fault_shared import LEASE_S, MESSAGE, address, lines, more, role, start

from ilcp.measure import provenance

HERE = Path(__file__).parent
SENDERS = RECEIVERS = 2
PATIENCE_S = 15.0  # without any hand-off for so long, the run has ended


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["kills", "scenarios"])
    parser.add_argument("--transports", nargs="+", choices=["spool", "nats", "http"], default=["spool", "nats"])
    parser.add_argument("--n", type=int, default=2000, help="hand-offs per transport")
    parser.add_argument("--kill-every-s", type=float, default=2.0, help="mean seconds between two kills")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--add", action="store_true", help="add to the rows of the file, with --only kills")
    parser.add_argument("--json", type=Path, default=HERE / "results" / "faults.json")
    args = parser.parse_args()
    there = json.loads(args.json.read_text(encoding="utf-8")) if args.only and args.json.exists() else {}
    failed = False
    if args.only != "scenarios":
        before = {row["transport"]: row for row in there.get("rows", ())} if args.add else {}
        new = [faulted(name, args.n, args.kill_every_s, args.seed, before.get(name)) for name in args.transports]
        rows = [*({**before} | {row["transport"]: row for row in new}).values()]
        there |= {
            "what": "hand-offs counted while sender, receiver and server processes were killed (-9) at random",
            "n": max(row["sent_with_receipt"] for row in rows),
            "seed": args.seed,
            "kill_every_s": args.kill_every_s,
            "lease_s": LEASE_S,
            "message_bytes": len(MESSAGE),
            "provenance": provenance(),
            "rows": rows,
        }
        for row in rows:
            print(json.dumps(row))
        failed |= any(row["lost"] or row["handed_out_after_its_acknowledgement"] for row in rows)
        failed |= any(row["sent_with_receipt"] < row["parts"] * (args.n // SENDERS * SENDERS) for row in new)
    if args.only != "kills":
        known = {"seed": args.seed, "provenance": provenance()}  # of the rows, where there are any
        there = {**known, **there, "scenarios": scenarios(args.seed)}
        there |= {f"scenarios_{what}": value for what, value in known.items()}
        for row in there["scenarios"]:
            print(json.dumps(row))
        failed |= not all(row["held"] for row in there["scenarios"])
    args.json.write_text(json.dumps(there, indent=1) + "\n", encoding="utf-8")
    sys.exit(int(failed))


def faulted(name: str, n: int, kill_every_s: float, seed: int, before: dict[str, Any] | None) -> dict[str, Any]:
    """Puts one transport under fire, and adds what is counted to what was before."""
    part = 0 if before is None else before.get("parts", 1)
    rng = random.Random(seed + part)
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        url, behind, server = address(name, home)
        commands: dict[str, list[str]] = {} if server is None else {"server": server}
        commands |= {f"receiver-{who}": role("receive", behind, home / f"received-{who}") for who in range(RECEIVERS)}
        commands |= {
            f"sender-{who}": role("send", url, who, n // SENDERS, home / f"sent-{who}") for who in range(SENDERS)
        }
        started = time.monotonic()
        kills = fire(commands, home, n // SENDERS * SENDERS, kill_every_s, rng)
        seconds = time.monotonic() - started
        row = {"transport": name, "parts": 1, "seconds": round(seconds, 1), "kills": kills, **counted(home)}
    return row if before is None else summed(before, row)


def summed(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Adds the numbers of two rows, and those of what is in them."""
    return {
        key: summed(one.get(key, {}), new)
        if isinstance(new, dict)
        else new
        if isinstance(new, str)
        else round(one.get(key, 0) + new, 1)
        for key, new in other.items()
    }


def fire(commands: dict[str, list[str]], home: Path, n: int, kill_every_s: float, rng: random.Random) -> dict[str, int]:
    """Starts all, kills one at a time and starts it again, until everything is acknowledged.

    Where nothing moves any longer, because the machine is too busy to start what was killed, the killing ends first.
    """
    running = {name: start(words) for name, words in commands.items()}
    kills = dict.fromkeys(commands, 0)
    acked: set[str] = set()
    read, moved, next_kill = [0] * RECEIVERS, time.monotonic(), time.monotonic() + 0.5
    try:
        while len(acked) < n:
            time.sleep(0.05)
            if time.monotonic() - moved > PATIENCE_S:
                if next_kill == float("inf"):
                    break
                moved, next_kill = time.monotonic(), float("inf")
            for name, process in running.items():
                if process.poll() not in (None, 0):  # a sender that has sent everything ends with 0, and stays so
                    running[name] = start(commands[name])
            for who in range(RECEIVERS):
                new, read[who] = more(home / f"received-{who}", read[who])
                found = {line.split()[1] for line in new if line.startswith("acked")}
                if found - acked:
                    moved = time.monotonic()
                    acked |= found
            if time.monotonic() >= next_kill:
                name = rng.choice([name for name, process in running.items() if process.poll() is None])
                running[name].kill()
                running[name].wait()
                kills[name] += 1
                running[name] = start(commands[name])
                next_kill = time.monotonic() + rng.expovariate(1 / kill_every_s)
        time.sleep(2 * LEASE_S)  # whatever would be handed out once more is given the time to be
    finally:
        for process in running.values():
            process.kill()
            process.wait()
    return kills


def counted(home: Path) -> dict[str, Any]:
    """Counts what the books say."""
    sent = {line.split()[1] for who in range(SENDERS) for line in lines(home / f"sent-{who}")}
    acking, acked, hands = set[str](), set[str](), dict[str, int]()
    latest = dict.fromkeys(((reader, str(who)) for reader in range(RECEIVERS) for who in range(SENDERS)), -1)
    twice = redelivered = disorder = 0
    books = [(line.split(), reader) for reader in range(RECEIVERS) for line in lines(home / f"received-{reader}")]
    for (what, handoff_id, _), reader in sorted(books, key=lambda entry: int(entry[0][2].rstrip("."))):
        if what != "got":
            {"acking": acking, "acked": acked}[what].add(handoff_id)
            continue
        hands[handoff_id] = hands.get(handoff_id, 0) + 1
        if handoff_id in acked:
            twice += 1
        elif hands[handoff_id] > 1:
            redelivered += 1
        else:
            who, number = handoff_id.split("-")
            disorder += int(number) < latest[reader, who]
            latest[reader, who] = max(latest[reader, who], int(number))
    return {
        "sent_with_receipt": len(sent),
        "handed_out": len(hands),
        "lost": len(sent - set(hands)) + len(set(hands) - acking - acked),
        "acknowledgement_unknown": len(acking - acked),
        "handed_out_after_its_acknowledgement": twice,
        "redelivered": redelivered,
        "out_of_order": disorder,
    }


if __name__ == "__main__":
    main()
