"""The command line of the benchmarks that take a codec of ``conversations.py``, or the embedded pair."""

import argparse
from pathlib import Path
from typing import Any

from gpu_parts import model_at

from ilcp.cli.common import EMBEDDED

HERE = Path(__file__).parent


def codec_options(about: str | None) -> argparse.ArgumentParser:
    """Returns the options that they have alike."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--codec", default=EMBEDDED, help="a folder of conversations.py; without it, the embedded pair")
    parser.add_argument("--models", type=Path, default=HERE / "real")
    parser.add_argument("--pair", nargs=2, default=("smollm2", "gemma3"), metavar=("SENDER", "RECEIVER"))
    parser.add_argument("--data", type=Path, default=HERE / "data" / "conversations")
    parser.add_argument("--seed", type=int, default=7, help="that draws conversations")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=HERE / "results")
    return parser


def ends_of(args: argparse.Namespace) -> dict[str, Any]:
    """Returns what ``pairs_of`` takes of both ends: the models of ``--pair``, or none for the embedded ones."""
    sender, receiver = (
        (None, None)
        if args.codec == EMBEDDED
        else (str(model_at(args.models, name) or args.models / name) for name in args.pair)
    )
    return {"sender": sender, "receiver": receiver, "device": "cpu", "allow_download": False}
