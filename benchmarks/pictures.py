"""The pictures of README and docs, drawn from ``results/``.

    python benchmarks/pictures.py        # docs/images/conversations.svg, docs/images/axis.svg

Each shows figures of a result, with their intervals, and nothing else.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ilcp.files import write_whole
from ilcp.measure import Measured
from ilcp.measure.drawing import (
    LOOKS,
    Look,
    Series,
    legend,
    look_of,
    plain_numbers,
    points,
    sheet,
    short_numbers,
    style,
)
from ilcp.measure.plots import to_svg

HERE = Path(__file__).parent
RESULTS, IMAGES = HERE / "results", HERE.parent / "docs" / "images"
EVERY = "said, all services"
OF_CODECS = [(colour, marker) for marker in "ohp*<>d8" for colour in ("#0072B2", "#D55E00")]


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
    levels = {"mismatched": LOOKS["mismatched"], "continuous": LOOKS["continuous"]}
    lines = [Series.of(name, look, [(np.nan, _recovery(arms[name]))]) for name, look in levels.items()]
    note = (
        f"SmolLM2-135M to itself, {found['n']} test conversations, exact match of what was said: recovery 1 is the "
        "full text, 0 nothing; 95 % intervals"
    )
    return _drawn("conversations", "Recovery against bytes on the wire", note, drawn, lines, plain=True)


def axis() -> str:
    """Draws the whole axis: latents, texts and caches of one task."""
    record = json.loads((RESULTS / "axis-embedded.json").read_text(encoding="utf-8"))
    curves: dict[str, list[tuple[float, Measured]]] = {}
    for offer in record["offers"]:
        stem = re.sub(r"-\d+$", "", offer["arm"])
        name = offer["codec"] if stem == "message" else stem
        if stem in ("message", "lm", "text"):
            curves.setdefault(name, []).append((offer["mean_bytes"], Measured(**offer["recovery"])))
    codecs = [name for name in curves if name not in LOOKS]
    looks = {name: Look(name, *OF_CODECS[at]) for at, name in enumerate(codecs)}
    drawn = [Series.of(name, looks.get(name) or look_of(name), found) for name, found in curves.items()]
    note = f"the embedded pair, {record['n']} dossiers: recovery 1 is the full text, 0 nothing; 95 % intervals"
    return _drawn("axis", "The whole axis: latent, text, cache", note, drawn, [], plain=False)


def _recovery(kinds: Mapping[str, Any]) -> Measured:
    return Measured(**kinds[EVERY]["recovery, exact"])


def _drawn(name: str, title: str, note: str, drawn: list[Series], lines: list[Series], *, plain: bool) -> str:
    with style():
        figure, axes = sheet(title, note, 4.2, named=len(drawn) + len(lines))
        axes.set(xscale="log", xlabel="wire bytes, mean (log scale)", ylabel="recovery: nothing = 0, full text = 1")
        (plain_numbers if plain else short_numbers)(axes.xaxis)
        points(axes, drawn)
        for one in lines:
            axes.axhline(one.y[0], color=one.look.colour, ls=one.look.dash or "--", linewidth=1, label=one.name)
        axes.set_ylim(bottom=min(0.0, *(y for one in drawn for y in one.reach)) - 0.06)
        legend(figure, [*drawn, *lines])
    return to_svg(figure, name).replace(
        "<svg", '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"', 1
    )


DRAWN = {"conversations": conversations, "axis": axis}

if __name__ == "__main__":
    main()
