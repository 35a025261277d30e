"""``ilcp train``: a codec for two models of your own."""

from pathlib import Path
from typing import Annotated

import typer

from ilcp.cli.common import interruptible, out

__all__ = ["train"]


def train(
    sender: Annotated[str | None, typer.Option(help="The sender: a folder, a hub id, or a GGUF file.")] = None,
    receiver: Annotated[str | None, typer.Option(help="The receiver: a folder, a hub id, or a GGUF file.")] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="JSONL of cases: context with question and answer, with continuation, or chat messages."),
    ] = None,
    self_study: Annotated[bool, typer.Option("--self-study", help="No data: the sender writes it.")] = False,
    to: Annotated[Path | None, typer.Option("--out", help="The codec's folder, a new one.")] = None,
    recipe: Annotated[Path | None, typer.Option(help="A TOML file; what is given here goes before it.")] = None,
    steps: Annotated[int | None, typer.Option(help="Of training.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Of training, if they are over before the steps.")] = None,
    adapt_receiver: Annotated[
        bool,
        typer.Option("--adapt-receiver", help="Tune the receiver (LoRA), to read first; needs ilcp\\[train]."),
    ] = False,
    dtype: Annotated[str | None, typer.Option(help="Of both models: float32, bfloat16 or float16.")] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1 ...; without it, a GPU if there is one.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything that is drawn at random.")] = None,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Event files beside the log; needs ilcp\\[tensorboard].")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what was stopped.")] = False,
) -> None:
    """Trains a codec for two models of your own, measures it against its controls, and saves it as a folder.

    First the receiver has to answer from the full text; where it cannot, nothing can be learned, and this says so:
    --adapt-receiver tunes it.
    Ctrl-C leaves a checkpoint in OUT.run; the same command with --resume goes on. On several devices:
    accelerate launch -m ilcp train, with the same options.
    """
    changes = {name: value for name, value in locals().items() if value is not None and value is not False}
    for name in ("recipe", "resume"):
        changes.pop(name, None)
    if to is not None:
        changes["out"] = changes.pop("to")
    from ilcp.nn.distributed import is_main
    from ilcp.training.config import read_config
    from ilcp.training.job import train_codec

    config = read_config(recipe, **changes)
    with interruptible(f"the same command with --resume goes on with what {config.work} holds"):
        codec = train_codec(config, resume=resume)
    if is_main():
        out.print(f"{config.out}: {codec.evidence}", highlight=False, soft_wrap=True, markup=False)
