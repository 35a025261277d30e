"""The pictures of README and docs, drawn from ``results/``.

    python benchmarks/pictures.py        # docs/images/conversations.svg, axis.svg, axis-conversations.svg

Each shows figures of a result, with their intervals, and nothing else.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ilcp.files import write_whole
from ilcp.measure import Measured, Offer
from ilcp.measure.drawing import Series, look_of, plain_numbers, style
from ilcp.measure.plots import BYTES, against, series_of, to_svg

HERE = Path(__file__).parent
RESULTS, IMAGES = HERE / "results", HERE.parent / "docs" / "images"
EVERY = "said, all services"


def main() -> None:
    for name, draw in DRAWN.items():
        write_whole(IMAGES / f"{name}.svg", draw() + "\n")


def conversations() -> str:
    """Draws recovery against bytes of the first pair: message, text of as many bytes, and the full text."""
    record = json.loads((RESULTS / "conversations-smollm2-smollm2.json").read_text(encoding="utf-8"))
    found = record["histories"]["1"]
    arms, sizes = found["figures"]["arms"], found["figures"]["bytes"]
    curves: dict[str, list[tuple[float, Measured]]] = {}
    for name in sizes:
        stem = re.sub(r"-\d+$", "", name)
        if stem in ("message", "lm", "verified", "text"):
            curves.setdefault(stem, []).append((sizes[name]["wire"]["value"], _recovery(arms[name])))
    drawn = [Series.of(stem, look_of(stem), points_at) for stem, points_at in curves.items()]
    levels = [
        Series.of(name, look_of(name), [(np.nan, _recovery(arms[name]))]) for name in ("mismatched", "continuous")
    ]
    note = (
        f"SmolLM2-135M to itself, {found['n']} test conversations, exact match of what was said: recovery 1 is the "
        "full text, 0 nothing; 95 % intervals"
    )
    return _svg("conversations", BYTES._replace(numbers=plain_numbers), note, drawn, levels)


def axis(name: str, what: str) -> str:
    """Draws the whole axis: latents, texts and caches of one task."""
    record = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    measured = ("recovery", "recovery_nats")
    offers = [
        Offer(**offer | {name: Measured(**offer[name]) for name in measured if offer[name]})
        for offer in record["offers"]
    ]
    drawn = series_of(
        [  # sizes of one kind of cache lie on one curve
            replace(offer, codec=re.sub(r"(-\d+(bit)?|(?<=int)\d)$", "", offer.codec))
            for offer in offers
            if re.fullmatch(r"(message|lm|text)(-\d+)?", offer.arm)
        ],
        BYTES,
    )
    note = f"{record['n']} {what.format(*record['pair'])}: recovery 1 is the full text, 0 nothing; 95 % intervals"
    return _svg(name, BYTES._replace(title="The whole axis: latent, text, cache"), note, drawn, [])


def _recovery(kinds: Mapping[str, Any]) -> Measured:
    return Measured(**kinds[EVERY]["recovery, exact"])


def _svg(name: str, across: Any, note: str, drawn: Sequence[Series], levels: Sequence[Series]) -> str:
    with style():
        figure = against(across, note, drawn, levels)
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'  # a file names them itself
    return to_svg(figure, name).replace("<svg", f"<svg {spaces}", 1)


DRAWN: dict[str, Callable[[], str]] = {
    "conversations": conversations,
    "axis": partial(axis, "axis-embedded", "dossiers, the {} pair"),
    "axis-conversations": partial(axis, "axis-conversations", "conversations, {} to {} (caches: the receiver's own)"),
}

if __name__ == "__main__":
    main()
