"""The tables of what messages give away, and of defences. See ``tables.py`` and ``privacy.py``."""

from collections.abc import Callable, Mapping
from typing import Any

Result = Callable[[str], dict[str, Any]]
Table = Callable[[list[str], list[list[str]]], str]


def facts(result: Result, table: Table) -> str:
    """Tabulates every attack on a message of the embedded pair: facts told exactly, and how many a byte."""
    rows = [_row("the receiver, asked", row) for row in _of(result, "asked")["rows"]]
    probes = _of(result, "probes")["rows"]
    most = max(row["n_own"] for row in probes)
    rows += [_row(f"a probe, {most:,} stolen pairs", row) for row in probes if row["n_own"] == most]
    searched = _of(result, "searched")
    for name, rebuilt in _of(result, "rebuilt").items():
        attack = f"the receiver's model writes: {name}, {rebuilt['n_own']:,} stolen pairs"
        rows.append(_row(attack, rebuilt | {"payload_bytes": 80}))
    rows.append(_row("a search for the text, no stolen pair", searched | {"payload_bytes": 80}))
    return table(["attack", "bytes", "n", "share of facts", "facts a message", "facts a byte", "whole code"], rows)


def _row(name: str, row: Mapping[str, Any]) -> list[str]:
    size = row["payload_bytes"]
    told, there = row["facts"]["value"], row["facts stated"]["value"]
    return [
        name, str(size), str(row["n"]), _figure(row["share of facts"]), f"{told:.1f} of {there:.1f}",
        f"{told / size:.2f}", f"{row['whole code']['value']:.3f}",
    ]  # fmt: skip


def probes(result: Result, table: Table) -> str:
    """Tabulates what probes of each length read, by the kind of field."""
    made = _of(result, "probes")["rows"]
    most = max(row["n_own"] for row in made)
    chosen = [row for row in made if row["n_own"] == most]
    groups = list(chosen[0]["exact by group"])
    rows = [
        [
            group,
            *(f"{row['exact by group'][group]:.3f} / {max(0.0, row['bits by group'][group]):.1f}" for row in chosen),
        ]
        for group in groups
    ]
    rows.append(["all facts, bits a byte", *(f"{row['bits of facts a byte']:.2f}" for row in chosen)])
    return table(["exact / bits", *(f"{row['payload_bytes']} bytes" for row in chosen)], rows)


def curve(result: Result, table: Table) -> str:
    """Tabulates how much a probe reads, by how many messages the attacker made."""
    made = _of(result, "probes")["rows"]
    shares = {(row["payload_bytes"], row["n_own"]): _figure(row["share of facts"]) for row in made}
    numbers = sorted({n for _, n in shares})
    sizes = sorted({size for size, n in shares if n < numbers[-1]})
    rows = [[f"{size} bytes", *(shares[size, n] for n in numbers)] for size in sizes]
    return table(["share of facts, stolen pairs", *(f"{n:,}" for n in numbers)], rows)


def caches(result: Result, table: Table) -> str:
    """Tabulates what is read back from keys and values."""
    rows = []
    for model, found in _of(result, "caches").items():
        for name, row in found.items():
            if name == "identity":
                continue
            words = row.get("tokens read back", row.get("different words read back"))
            shown = _figure(words) if isinstance(words, Mapping) else f"{words:.3f}"
            told = row.get("share of facts", row.get("values of attributes among them"))
            size = row.get("payload_bytes")
            each = f"{row['facts a byte'] * 1000:.3f}" if "facts a byte" in row else ""
            rows.append(
                [model, name, str(row["n"]), shown, _figure(told), f"{size['value']:,.0f}" if size else "", each]
            )
    return table(["model", "cache", "n", "tokens read back", "share of facts", "bytes", "facts a kB"], rows)


def links(result: Result, table: Table) -> str:
    """Tabulates how well two messages are told to be about one thing."""
    names = ("AUROC, bits that agree", "AUROC, learned", "AUROC, by probes")
    rows = [
        [row["relation"], str(row["payload_bytes"]), str(row["n"]), *(f"{row[name]:.3f}" for name in names)]
        for row in _of(result, "linked")["rows"]
    ]
    return table(["what two messages share", "bytes", "n", *names], rows)


def noise(result: Result, table: Table) -> str:
    """Tabulates flipped bits beside shorter messages: what the receiver tells and what a probe reads."""
    rows = [
        [
            f"{row['flipped']:g}",
            str(row["payload_bytes"]),
            _figure(row["receiver"]["share of facts"]),
            _figure(row["probe"]["share of facts"]),
            f"{row['probe']['bits of facts']['value']:.0f}",
        ]
        for row in _of(result, "noise")["rows"]
    ]
    return table(["bits flipped", "bytes", "the receiver tells", "a probe reads", "bits, by the probe"], rows)


def forget(result: Result, table: Table) -> str:
    """Tabulates what is left of three fields behind each defence, and what becomes of all others."""
    made = _of(result, "forget")
    rows = []
    for name, arm in made["arms"].items():
        read, told = arm["forgotten"], arm["receiver tells, of the forgotten"]
        both = [f"{_figure(read[field]['exact'])} / {told[field]:.3f}" for field in made["forget"]]
        bits = sum(each["bits"]["value"] for each in read.values())
        there = sum(each["AUROC, whether it is stated"] for each in read.values()) / len(read)
        rest = arm["receiver, all else"]["value"]
        rows.append([name, f"{arm['n_own']:,}", *both, f"{bits:.2f}", f"{there:.2f}", f"{rest:.1f}"])
    fields = [f"{field}: probe / receiver" for field in made["forget"]]
    return table(
        ["defence", "stolen pairs", *fields, "bits of the three", "AUROC: stated or not", "all else, receiver"], rows
    )


def _of(result: Result, part: str) -> Any:
    return result(f"privacy-{part}")["result"]


def _figure(found: Mapping[str, Any] | None) -> str:
    return "" if found is None else f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"
