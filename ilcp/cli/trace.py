"""``ilcp trace``: a reader of what several agents computed in turn."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from ilcp.cli.common import DeviceOption, DownloadOption, busy, interruptible, out
from ilcp.errors import ConfigError
from ilcp.files import require_writable, write_whole

__all__ = ["trace"]

trace = typer.Typer(
    no_args_is_help=True,
    help="Let agents write one trace of keys, values and latent steps, and tune a reader of it.",
)

Model = Annotated[str | None, typer.Option(help="Of all agents and the reader: a folder, a hub id, or a GGUF file.")]
Data = Annotated[Path | None, typer.Option(help="JSONL of cases with questions.", dir_okay=False)]
Out = Annotated[Path | None, typer.Option("--out", help="The folder, a new one.")]
Recipe = Annotated[Path | None, typer.Option(help="A TOML file; what is given here goes before it.", dir_okay=False)]
Agents = Annotated[
    list[str] | None, typer.Option("--agent", help="A writer's role; repeat it. Each reads its part of a text.")
]
Rule = Annotated[
    str | None, typer.Option(help="How a state becomes the next input: norm, ridge, soft, learned; pause, token, raw.")
]
Prompt = Annotated[str | None, typer.Option(help="What each writer reads; {text} stands for its part.")]
Adapter = Annotated[
    Path | None, typer.Option(help="A folder of low-rank weights that the reader starts with.", file_okay=False)
]
TrainingSteps = Annotated[int | None, typer.Option(help="Of training the reader.")]
Minutes = Annotated[float | None, typer.Option(help="Of training, if they are over before its steps.")]
Dtype = Annotated[str | None, typer.Option(help="Of the model: float32, bfloat16 or float16.")]
Seed = Annotated[int | None, typer.Option(help="Of everything that is drawn at random.")]
Steps = Annotated[int | None, typer.Option(help="Latent steps of each agent; without it, none (see tune).")]


@trace.command()
def train(
    model: Model = None,
    data: Data = None,
    to: Out = None,
    recipe: Recipe = None,
    agents: Agents = None,
    steps: Steps = None,
    rule: Rule = None,
    prompt: Prompt = None,
    keep: Annotated[str | None, typer.Option(help="What is handed over: all, or the steps alone.")] = None,
    carrier: Annotated[str | None, typer.Option(help="By kv-exact, kv-int8 or kv-int4.")] = None,
    adapter: Adapter = None,
    training_steps: TrainingSteps = None,
    minutes: Minutes = None,
    dtype: Dtype = None,
    device: DeviceOption = "cpu",
    seed: Seed = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what was stopped.")] = False,
) -> None:
    """Tunes a reader (LoRA) to answer behind the traces of frozen writers, measures it, and saves it as a folder.

    Each text is cut into as many parts as there are agents: at its paragraphs, where it has as many. Their traces are
    computed once and kept on disk. Ctrl-C leaves a checkpoint in OUT.run; the same command with --resume goes on.
    """
    changes = {name: value for name, value in locals().items() if name not in ("recipe", "resume")}
    config = _config(recipe, changes)
    with interruptible(f"the same command with --resume goes on with what {config.work} holds"):
        from ilcp import trace as room

        report = room.train(config, resume=resume)
    _show(report)
    out.print(f"{config.out}: {report.evidence()}", highlight=False, soft_wrap=True, markup=False)
    out.print(f"What the steps bring: ilcp trace measure {config.out}", highlight=False, soft_wrap=True, markup=False)


@trace.command()
def measure(
    codec: Annotated[str, typer.Argument(help="The folder or hub id that ilcp trace train made.")],
    task: Annotated[
        str | None, typer.Option(help="A JSONL file of cases; without it, those that the training kept apart.")
    ] = None,
    n: Annotated[int | None, typer.Option(help="How many cases; without it, as many as the file has.")] = None,
    model: Annotated[str | None, typer.Option(help="The model; without it, the one that the codec names.")] = None,
    as_json: Annotated[Path | None, typer.Option("--json", help="Keep all figures here.", dir_okay=False)] = None,
    download: DownloadOption = False,
    device: DeviceOption = "cpu",
    seed: Annotated[int, typer.Option(help="Of the intervals and of what is shuffled.")] = 7,
) -> None:
    """Measures what a reader's traces carry, and first of all whether their steps bring anything.

    The steps stand beside shuffled ones, another case's, zeros, and none; the trace beside another case's, nothing,
    and the full text. Decoding perplexity is told with its 95th percentile and outliers.
    """
    if as_json is not None:
        require_writable(as_json)
    with busy("loading"):
        from ilcp import tasks
        from ilcp import trace as room
        from ilcp.cli.measure import own_task
        from ilcp.embedded import load_pair
        from ilcp.training.batch import Models

        pair = load_pair(
            codec, sender=model, receiver=model, device=device, allow_download=download, allow_unmeasured=True
        )
        if pair.sender.codec.spec.name != "trace":
            raise ConfigError(f"expected a codec of traces, got {pair.sender.codec.spec.name!r}: use ilcp measure")
        asked = tasks.task(task or own_task([codec]), n=n, seed=seed)
        ends = pair.sender, pair.receiver
        models = Models(ends[0].model, ends[0].tokenizer, ends[1].model, ends[1].tokenizer)
    worth = room.steps_worth(pair.sender.codec, models, asked.cases, seed=seed)
    out.print(worth.sentence(), highlight=False, soft_wrap=True, markup=False)
    carrier = getattr(pair.sender.codec, "carrier", "")
    if carrier != "kv-exact":
        said = f"(Of traces as they were written; what {carrier} leaves of them stands in the report.)"
        out.print(said, highlight=False, soft_wrap=True, markup=False)
    _show_worth(worth)
    report = room.measure(pair.sender.codec, models, asked.cases, task=asked.name, seed=seed)
    _show(report)
    if as_json is not None:
        record = {"steps": worth.to_dict(), "report": report.to_dict()}
        write_whole(as_json, json.dumps(record, default=str) + "\n")


@trace.command()
def tune(
    model: Model = None,
    data: Data = None,
    to: Out = None,
    recipe: Recipe = None,
    steps: Annotated[
        str, typer.Option(help="Numbers of latent steps to try, with commas between.")
    ] = "0,1,2,5,10,20,40",
    agents: Agents = None,
    rule: Rule = None,
    prompt: Prompt = None,
    adapter: Adapter = None,
    training_steps: TrainingSteps = None,
    minutes: Minutes = None,
    dtype: Dtype = None,
    device: DeviceOption = "cpu",
    seed: Seed = None,
) -> None:
    """Finds how many latent steps a task wants: a reader is tuned for each number, and asked on validation cases.

    The choice are the fewest steps that the best number does not beat by an interval that leaves out zero. Ctrl-C keeps
    the numbers that are done; the same command goes on.
    """
    changes = {name: value for name, value in locals().items() if name not in ("recipe", "steps")}
    try:
        wanted = [int(number) for number in steps.split(",")]
    except ValueError:
        raise ConfigError(f"expected numbers with commas between, such as 0,5,10, got {steps!r}") from None
    config = _config(recipe, changes)
    with interruptible(f"what is done is in {config.work}: the same command goes on"):
        from ilcp import trace as room

        curve = room.tune(config, wanted)
    table = Table("steps", "exact match", "nats of the gold answer", "nats beside the best")
    for number, exact in curve.exact.items():
        beside = _figure(curve.over_best[number])
        table.add_row(str(number), _figure(exact), _figure(curve.nats[number]), beside)
    out.print(table)
    said = f"Take {curve.choice}: the best number does no better with its interval, over {curve.n} questions."
    out.print(said, highlight=False, soft_wrap=True, markup=False)


def _config(recipe: Path | None, changes: dict[str, Any]) -> Any:
    """Returns the configuration of a recipe and of options, by their names; None is what nobody gave."""
    changes["out"] = changes.pop("to")
    with busy("loading"):
        from ilcp import trace as room

        return room.read_trace_config(recipe, **changes)


def _show(report: Any) -> None:
    from ilcp.measure import table

    table.show(report, out)


def _show_worth(worth: Any) -> None:
    table = Table("the reader is given", "exact", "trace minus it", "nats", "trace minus it", "churn")
    sure = Table("perplexity of what it says", "mean", "95th percentile", "above 2")
    for name, exact in worth.exact.items():
        beside = [_figure(gains[name]) if name in gains else "" for gains in (worth.gains, worth.gains_nats)]
        churn = f"{worth.churn[name]:.3f}" if name in worth.churn else ""
        table.add_row(name, f"{exact:.3f}", beside[0], f"{worth.nats[name]:.3f}", beside[1], churn)
        sure.add_row(name, *(f"{value:.3f}" for value in worth.perplexity[name]))
    out.print(table)
    out.print(sure)


def _figure(figure: Any) -> str:
    interval = "" if figure.low is None else f" [{figure.low:.3f}, {figure.high:.3f}]"
    return f"{figure.value:.3f}{interval}"
