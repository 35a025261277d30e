"""Draws ``images/hop.svg``: one hand-off, with the message's parts at their true share of its bytes.

    python docs/draw_hop.py

The sizes are those of a message that is written and described here, so the picture cannot differ from the format.
Boxes have a fill of their own and everything else is of a grey that reads on white and on black, so that one file
serves light and dark pages.
"""

from collections.abc import Mapping
from pathlib import Path
from xml.sax.saxutils import escape

from ilcp.message import CODEC_ID_BYTES, Message, describe

FILE = Path(__file__).parent / "images" / "hop.svg"
PAYLOAD_BYTES = 80
WIDTH, HEIGHT = 1000, 262
GREY, SENDER, RECEIVER, WHITE = "#787f87", "#2f6db3", "#1d7a6b", "#ffffff"
FIELDS = {  # parts of a message -> its name in the picture and its colour
    ("array header", "version"): ("head", "#787f87"),
    ("codec_id header", "codec_id"): ("codec id", "#8a63a8"),
    ("payload header", "payload"): ("payload", "#b5582b"),
    ("check header", "check"): ("check", "#5c7f3a"),
}
PIXELS_PER_BYTE = 2.6
MIDDLE = 131  # the height of the way from left to right
BOX = 44


def draw() -> str:
    """Returns the picture as SVG."""
    sizes = field_sizes()
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
            'font-family="system-ui, -apple-system, \'Segoe UI\', Helvetica, Arial, sans-serif" font-size="15">',
            "<title>One hand-off</title>",
            f"<desc>The sender reads a document; its hidden states become a message of {sum(sizes.values())} bytes; "
            "from it the receiver gets memory vectors, and answers a question that it reads beside them.</desc>",
            f'<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
            f'orient="auto"><path d="M0 0L8 4L0 8z" fill="{GREY}"/></marker></defs>',
            *sender(),
            *message(sizes),
            *receiver(),
            "</svg>\n",
        ]
    )


def field_sizes() -> dict[str, int]:
    """Returns how many bytes each field of a bare message takes, headers included."""
    wire = Message(codec_id=bytes(CODEC_ID_BYTES), payload=bytes(PAYLOAD_BYTES)).to_bytes()
    parts = {part.name: part.size_bytes for part in describe(wire).parts}
    sizes = {name: sum(parts.pop(part) for part in of) for of, (name, _) in FIELDS.items()}
    assert not parts, f"expected every part in the picture, got {parts} left"
    return sizes


def sender() -> list[str]:
    """Draws the left machine: document, sender, hidden states, encode."""
    return [
        *machine(8, "sender's machine"),
        *box(24, 46, 96, "document"),
        arrow(72, 46 + BOX, 72, MIDDLE - BOX / 2),
        *box(24, MIDDLE - BOX / 2, 96, "sender", SENDER),
        arrow(120, MIDDLE, 146, MIDDLE),
        *cells(150, rows=4, columns=5, colour=SENDER),
        label(187, MIDDLE + 52, "hidden states", size=13),
        arrow(226, MIDDLE, 248, MIDDLE),
        *box(252, MIDDLE - BOX / 2, 76, "encode", SENDER),
    ]


def receiver() -> list[str]:
    """Draws the right machine: decode, memory vectors, the receiver between question and answer."""
    return [
        *machine(656, "receiver's machine"),
        *box(672, MIDDLE - BOX / 2, 76, "decode", RECEIVER),
        arrow(748, MIDDLE, 770, MIDDLE),
        *cells(774, rows=4, columns=5, colour=RECEIVER),
        label(811, MIDDLE + 52, "memory vectors", size=13),
        arrow(850, MIDDLE, 876, MIDDLE),
        *box(880, 46, 96, "question"),
        arrow(928, 46 + BOX, 928, MIDDLE - BOX / 2),
        *box(880, MIDDLE - BOX / 2, 96, "receiver", RECEIVER),
        arrow(928, MIDDLE + BOX / 2, 928, 172),
        *box(880, 172, 96, "answer"),
    ]


def message(sizes: Mapping[str, int]) -> list[str]:
    """Draws the way between: the message as a bar, its fields to scale, and what they are called."""
    total = sum(sizes.values())
    start = (WIDTH - total * PIXELS_PER_BYTE) / 2
    drawn = [
        arrow(328, MIDDLE, start - 4, MIDDLE),
        arrow(start + total * PIXELS_PER_BYTE, MIDDLE, 668, MIDDLE),
        label(WIDTH / 2, MIDDLE - 34, f"message: {total} bytes", size=17, bold=True),
    ]
    at, colours = start, dict(FIELDS.values())
    for name, size in sizes.items():
        width = size * PIXELS_PER_BYTE
        drawn.append(rect(at, MIDDLE - 18, width - 1, 36, colours[name], radius=2))
        if name == "payload":
            drawn.append(label(at + width / 2, MIDDLE + 5, f"{PAYLOAD_BYTES} bytes of latent", colour=WHITE))
        at += width
    for index, (name, size) in enumerate(sizes.items()):  # the legend, in two columns
        x, y = start + 24 + 116 * (index // 2), MIDDLE + 34 + 22 * (index % 2)
        drawn.append(rect(x, y, 11, 11, colours[name], radius=2))
        drawn.append(label(x + 17, y + 10, f"{name}, {size}", size=13, anchor="start"))
    return drawn


def machine(x: float, title: str) -> list[str]:
    """Draws the frame of one machine."""
    frame = (
        f'<rect x="{x:g}" y="28" width="336" height="204" rx="12" fill="none" stroke="{GREY}" stroke-opacity="0.6"/>'
    )
    return [frame, label(x + 168, 18, title)]


def box(x: float, y: float, width: float, text: str, fill: str | None = None) -> list[str]:
    """Draws a box with a text: filled where something is computed, outlined where it is text."""
    if fill is None:
        outline = f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{BOX}" rx="6" fill="none" stroke="{GREY}"/>'
        return [outline, label(x + width / 2, y + BOX / 2 + 5, text)]
    return [rect(x, y, width, BOX, fill, radius=6), label(x + width / 2, y + BOX / 2 + 5, text, colour=WHITE)]


def cells(x: float, *, rows: int, columns: int, colour: str) -> list[str]:
    """Draws a grid of vectors, 15 to the cell, around the middle."""
    top = MIDDLE - rows * 15 / 2
    return [rect(x + 15 * c, top + 15 * r, 12, 12, colour, radius=3) for r in range(rows) for c in range(columns)]


def rect(x: float, y: float, width: float, height: float, fill: str, *, radius: float) -> str:
    """Draws a filled rectangle."""
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius:g}" fill="{fill}"/>'


def arrow(x: float, y: float, to_x: float, to_y: float) -> str:
    """Draws an arrow."""
    return f'<path d="M{x:g} {y:g}L{to_x:g} {to_y:g}" stroke="{GREY}" stroke-width="1.6" marker-end="url(#tip)"/>'


def label(
    x: float, y: float, text: str, *, colour: str = GREY, size: int = 15, anchor: str = "middle", bold: bool = False
) -> str:
    """Draws a text."""
    weight = ' font-weight="600"' if bold else ""
    place = f'x="{x:g}" y="{y:g}" font-size="{size}" text-anchor="{anchor}"'
    return f'<text {place} fill="{colour}"{weight}>{escape(text)}</text>'


if __name__ == "__main__":
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(draw(), encoding="utf-8")
