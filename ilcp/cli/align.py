"""``ilcp align``: a map from one model's cache to another's."""

from pathlib import Path
from typing import Annotated

import typer

from ilcp.cli.common import DeviceOption, busy, interruptible, out

__all__ = ["align"]


def align(
    sender: Annotated[str, typer.Option(help="The sender: a folder, a hub id, or a GGUF file.")],
    receiver: Annotated[str, typer.Option(help="The receiver: a folder, a hub id, or a GGUF file.")],
    data: Annotated[
        Path,
        typer.Option(help="JSONL of cases, as of ilcp train: with questions, or texts alone.", dir_okay=False),
    ],
    to: Annotated[Path, typer.Option("--out", help="The codec's folder, a new one.")],
    minutes: Annotated[float, typer.Option(help="Of the step through the receiver.")] = 20.0,
    learning_rate: Annotated[
        float | None,
        typer.Option(help="Of that step, below 1; without it, 0.002. Take a lower one where its KL rises."),
    ] = None,
    adapter: Annotated[
        Path | None, typer.Option(help="A folder of low-rank weights (LoRA) that the receiver has.", file_okay=False)
    ] = None,
    tokens: Annotated[
        int | None, typer.Option(help="The most that a cache may stand for; without it, a window.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="Of both models: float32, bfloat16 or float16.")] = "float32",
    device: DeviceOption = "cpu",
    seed: Annotated[int, typer.Option(help="Of everything that is drawn at random.")] = 0,
) -> None:
    """Finds a map from one model's cache to another's, measures it against its controls, and saves it as a folder.

    First the receiver has to know facts from its own reading of a text. Then the map is fitted in closed form, and
    tuned through the receiver. Data with questions teach and test; of texts alone, canary facts do. Ctrl-C ends the
    tuning; what was found is then saved and measured.
    """
    with busy("loading"):
        from ilcp.measure import table
        from ilcp.training.align import Alignment
        from ilcp.training.align import align as found

        plan = Alignment(sender, receiver, data, to, minutes, tokens, dtype, device, seed, learning_rate, adapter)
    with interruptible(f"what was saved by then is in {to}"):
        report = found(plan)
    table.show(report, out)
    out.print(f"{to}: {report.evidence()}", highlight=False, soft_wrap=True, markup=False)
