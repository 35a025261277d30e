"""Hand-offs per second, and how long sending and receiving take, for each transport, beside its raw library.

    python benchmarks/load.py [--transports memory spool spool-process http nats] [--n 2000] [--senders 1 8 64]

So many senders at once, tasks of one process, send n messages of 100 bytes between them; then as many receivers take
and acknowledge them. What was sent over HTTP is taken from the spool behind it. `spool-process` is the spool with
``power_safe=False``. Beside them, with the same bytes and as many tasks: *raw NATS* (publish with its acknowledgement;
pull and acknowledge), *raw HTTP* (httpx posting to a Starlette app that keeps nothing), *raw SQLite* (insert and commit
in WAL, ``synchronous=FULL``, one at a time). ``ratio`` is raw over ours, of sends per second: 1.4 means that we take
1.4 times as long. For HTTP it holds a durable write that raw HTTP does not make.
"""

import argparse
import asyncio
import json
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from fault_shared import MESSAGE, TOKEN, address, free_port

from ilcp.errors import TransportError
from ilcp.transport import Settings, connect_async

HERE = Path(__file__).parent
TRANSPORTS = ("memory", "spool", "spool-process", "http", "nats")
RAW_OF = {"http": "raw HTTP", "nats": "raw NATS", "spool": "raw SQLite"}
RAW_APP = """
import sys, uvicorn
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route
async def keep(request):
    await request.body()
    return Response(status_code=201)
uvicorn.run(Starlette(routes=[Route("/", keep, methods=["POST"])]), port=int(sys.argv[1]), log_level="critical")
"""
Work = Callable[[], Awaitable[Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--transports", nargs="+", choices=TRANSPORTS, default=TRANSPORTS)
    parser.add_argument("--n", type=int, default=2000, help="hand-offs of one measurement")
    parser.add_argument("--senders", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--json", type=Path, default=HERE / "results" / "load.json")
    args = parser.parse_args()
    rows = [
        row
        for name in args.transports
        for senders in args.senders
        for row in asyncio.run(measured(name, args.n, senders))
    ]
    from ilcp.measure import provenance

    record = {
        "what": "hand-offs per second and milliseconds per operation; medians and 99th percentiles over n",
        "n": args.n,
        "message_bytes": len(MESSAGE),
        "seed": 0,  # nothing is drawn
        "provenance": provenance(),
        "rows": rows,
    }
    args.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    for row in rows:
        print(json.dumps(row))


async def measured(name: str, n: int, senders: int) -> list[dict[str, Any]]:
    """Measures ours, and beside it the raw one where there is one."""
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        kind = name.partition("-")[0]
        url, behind, server = ("memory://load",) * 2 + (None,) if name == "memory" else address(kind, home)
        process = None if server is None else subprocess.Popen(server, stderr=subprocess.DEVNULL)
        try:
            settings = Settings(power_safe=name != "spool-process")
            sending = Settings(token=TOKEN) if name == "http" else settings
            ours = await handed_on((url, sending), (behind, settings), n, senders)
            rows = [{"transport": name, "senders": senders, **ours}]
            if name in RAW_OF:
                raw = await RAW[name](url, home, n, senders)
                rows.append({"transport": RAW_OF[name], "senders": 1 if name == "spool" else senders, **raw})
                rows[0]["ratio"] = round(raw["sends_per_s"] / ours["sends_per_s"], 3)
            return rows
        finally:
            if process is not None:
                process.kill()
                process.wait()


async def handed_on(to: tuple[str, Settings], behind: tuple[str, Settings], n: int, senders: int) -> dict[str, Any]:
    """Measures our own: sends all, then receives and acknowledges all."""
    async with AsyncExitStack() as stack:
        c = await patiently(lambda: stack.enter_async_context(connect_async(to[0], settings=to[1])))
        mine = await stack.enter_async_context(connect_async(behind[0], name="planner", settings=behind[1]))

        async def receive() -> None:
            delivery = await mine.receive(10)
            assert delivery is not None
            await delivery.ack()

        sent = await timed(lambda: c.send(MESSAGE, to="planner"), n, senders)
        received = await timed(receive, n, senders)
        return figures(n, sent, received)


async def patiently(opening: Callable[[], Awaitable[Any]]) -> Any:
    """Waits for a server that is starting."""
    for _ in range(100):
        try:
            return await opening()
        except TransportError:
            await asyncio.sleep(0.1)
    return await opening()


async def timed(work: Work, n: int, tasks: int) -> tuple[float, list[float]]:
    """Measures the seconds of all, and of each one."""
    left, each = iter(range(n)), list[float]()

    async def worker() -> None:
        for _ in left:
            began = time.perf_counter()
            await work()
            each.append(time.perf_counter() - began)

    began = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(tasks)))
    return time.perf_counter() - began, each


def figures(n: int, sent: tuple[float, list[float]], received: tuple[float, list[float]] | None) -> dict[str, Any]:
    """Rates and percentiles."""
    row: dict[str, Any] = {"n": n, "sends_per_s": round(n / sent[0], 1)}
    if received is not None:
        row["handoffs_per_s"] = round(n / (sent[0] + received[0]), 1)
    for what, times in (("send", sent), ("receive", received)):
        if times is not None:
            row[f"{what}_ms_p50"] = round(1e3 * median(times[1]), 3)
            row[f"{what}_ms_p99"] = round(1e3 * quantiles(times[1], n=100)[98], 3)
    return row


async def raw_nats(url: str, home: Path, n: int, senders: int) -> dict[str, Any]:
    """Measures nats-py alone."""
    import nats
    from nats.js.api import AckPolicy, ConsumerConfig

    client = await nats.connect(url)
    try:
        stream = client.jetstream()
        await stream.add_stream(name="raw", subjects=["raw"])
        await stream.add_consumer("raw", ConsumerConfig(durable_name="raw", ack_policy=AckPolicy.EXPLICIT))

        async def receive() -> None:
            ask = b'{"batch": 1, "expires": 5000000000}'
            message = await client.request("$JS.API.CONSUMER.MSG.NEXT.raw.raw", ask, timeout=6, old_style=True)
            await client.request(message.reply, b"+ACK", timeout=6)

        sent = await timed(lambda: stream.publish("raw", MESSAGE), n, senders)
        return figures(n, sent, await timed(receive, n, senders))
    finally:
        await client.close()


async def raw_http(url: str, home: Path, n: int, senders: int) -> dict[str, Any]:
    """Measures httpx and Starlette alone."""
    import httpx

    port = free_port()
    process = subprocess.Popen([sys.executable, "-c", RAW_APP, port])
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            for _ in range(100):
                try:
                    await client.post("/", content=MESSAGE)
                    break
                except httpx.ConnectError:
                    await asyncio.sleep(0.1)
            return figures(n, await timed(lambda: client.post("/", content=MESSAGE), n, senders), None)
    finally:
        process.kill()
        process.wait()


async def raw_sqlite(url: str, home: Path, n: int, senders: int) -> dict[str, Any]:
    """Measures one table, with one insert and one commit per message."""
    db = sqlite3.connect(home / "raw.sqlite", isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.execute("CREATE TABLE raw (message BLOB)")

    async def insert() -> None:
        db.execute("INSERT INTO raw VALUES (?)", (MESSAGE,))

    row = figures(n, await timed(insert, n, 1), None)  # one writer at a time is all that there is
    db.close()
    return row


RAW = {"http": raw_http, "nats": raw_nats, "spool": raw_sqlite}

if __name__ == "__main__":
    main()
