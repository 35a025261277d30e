"""Does what waits for a GPU, for whoever has one for a quarter of an hour: without a network, and never for long.

    python benchmarks/gpu.py --models FOLDER --data FOLDER [--minutes 9]   # writes benchmarks/results/gpu-*.json
    python benchmarks/gpu.py --smoke                                        # the first item alone, on a CPU as well
    python benchmarks/gpu.py pack benchmarks/real/gemma3 --out PARTS        # a model in parts of 60 MB, to be carried

The items, in this order, each with its own limit::

{items}

The models are folders as ``make real`` makes them, or GGUF files of those names; parts in the folder are put together
first. ``--data`` has train.jsonl and test.jsonl, as ``conversations.py`` reads them. An item that has a result of this
code and this device is skipped; one that does not fit into the time that is left, or lacks a model, is left for the
next call, and this says so. Trainings and measurements go on with what an earlier call left in ``--work``. Ctrl-C and
SIGTERM end the item that runs, and leave what is done.
"""

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
from gpu_parts import PART_BYTES, join, model_at, pack

import ilcp
import ilcp_codecs
from ilcp.errors import IlcpError
from ilcp.files import write_whole
from ilcp.measure import provenance

HERE = Path(__file__).parent
RESULTS = HERE / "results"
SCRIPTS = (
    "gpu*.py",
    "scale*.py",
    "kv.py",
    "kv_align.py",
    "conversations*.py",
    "conversations/*.toml",
)  # what a result depends on, beside ilcp
GRACE_S = 10.0  # for an item to end by itself, within its limit
MARGIN_S = 10.0  # for the end of this script, within --minutes
MEGA = 1e6
Launch = Callable[[Sequence[str], float], str]  # (words, limit in seconds) -> why it is not complete; "" if it is


@dataclass(frozen=True, slots=True)
class Item:
    """Something that waits for a GPU: a script of this folder with its words, and how long it may take."""

    name: str
    what: str
    limit_s: float
    words: tuple[str, ...]
    models: tuple[str, ...] = ()
    after: str | None = None  # the item that has to be complete before

    def __str__(self) -> str:
        return f"    {self.name:<23}{self.limit_s:>4.0f} s   {self.what}"


def of_pair(pair: str, minutes: float, after: str | None = None) -> tuple[Item, Item]:
    """Returns the training of a codec between two models, and its measurement."""
    models = tuple(dict.fromkeys(pair.split("-")))
    training = Item(
        f"{pair}-train",
        f"conversations/{pair}.toml in {minutes:g} minutes",
        60 * minutes + 110,  # and the start, and the evidence
        ("gpu_items.py", "train", pair, "--minutes", str(minutes)),
        models,
        after,
    )
    words = ("gpu_items.py", "measure", pair)
    return training, Item(f"{pair}-measure", "all test conversations", 135, words, models, training.name)


def of_caches(pair: str, minutes: float) -> Item:
    """Returns the alignment of one model's cache to another's, and its measurement."""
    words = ("gpu_items.py", "align", pair, "--minutes", str(minutes))
    what = f"kv_align.py: {minutes:g} minutes through the receiver"
    return Item(f"{pair}-align", what, 60 * minutes + 120, words, tuple(pair.split("-")))


def of_size(size: str, limit_s: float) -> Item:
    """Returns the steps of a hand-off at one size of real models."""
    words = ("scale.py", "--size", size, "--repetitions", "6")
    return Item(f"scale-{size}", f"scale.py: {size} shapes, 1k to 32k tokens, random weights", limit_s, words)


SMOKE = Item("smoke", "the device, a tiny training and measurement, tiny steps", 60, ("gpu_items.py", "smoke"))
ITEMS = (
    SMOKE,
    *of_pair("smollm2-smollm2", 3.5),
    *of_pair("smollm2-gemma3", 3.5),
    of_caches("smollm2-gemma3", 4.0),
    of_size("0.5B", 60),
    of_size("1.5B", 90),
    of_size("7B", 180),
    *of_pair("minilm-smollm2", 2.5, after="smollm2-smollm2-train"),
)


@dataclass
class Session:
    """One call: where it runs, what it may use, and until when."""

    results: Path
    work: Path
    device: dict[str, Any]  # "name" and what is known of it
    ends_s: float  # by the clock
    torch_device: str = "cuda"
    models: Path | None = None
    data: Path | None = None
    seed: int = 7
    commit: str | None = None
    clock: Callable[[], float] = time.monotonic
    launch: Launch | None = None
    sources: str = field(default_factory=lambda: digest_of_sources())

    def go(self, items: Sequence[Item]) -> bool:
        """Works the items off, and says what became of each; returns whether none of them failed."""
        failed = waiting = 0
        for item in items:
            if self.done(item):
                say(item, f"is done already: {self.file(item)}")
            elif reason := self.lack(item):
                say(item, f"is left for the next call: {reason}")
                waiting += 1
            elif reason := self.run(item):
                failed += 1
                if item is SMOKE:
                    print("nothing else is begun on a device that fails the smoke stage", flush=True)
                    break
        left = f"{waiting} left for the next call, " if waiting else ""
        print(f"{left}{failed} not complete; results are in {self.results}", flush=True)
        return not failed

    def file(self, item: Item) -> Path:
        """Returns where the item's result is."""
        return self.results / f"gpu-{item.name}.json"

    def done(self, item: Item | str) -> bool:
        """Says whether there is a complete result of this code and this device."""
        name = item if isinstance(item, str) else item.name
        try:
            record = json.loads((self.results / f"gpu-{name}.json").read_text(encoding="utf-8"))
            return all(
                record[key] == value for key, value in (*self.stamp().items(), ("complete", True), ("seed", self.seed))
            )
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def stamp(self) -> dict[str, Any]:
        """Returns what a result has to share with this call to be of this code and device."""
        return {"sources": self.sources, "device": self.device}

    def lack(self, item: Item) -> str:
        """Says what the item waits for; empty where it can begin."""
        if item.models and self.models is None:
            return f"expected --models with {' and '.join(item.models)}, got none"
        for name in item.models:
            assert self.models is not None
            if model_at(self.models, name) is None:
                return f"expected a model {name} in {self.models}, got none that is whole"
        if item.after is not None and not self.done(item.after):
            return f"it comes after {item.after}, which is not complete"
        left_s = self.ends_s - self.clock()
        return (
            "" if left_s >= item.limit_s else f"it may take {item.limit_s:.0f} s, and {max(0, left_s):.0f} s are left"
        )

    def run(self, item: Item) -> str:
        """Runs the item, keeps its result, and returns why it is not complete; empty where it is."""
        print(f"{item.name}: begins ({item.what}; at most {item.limit_s:.0f} s)", flush=True)
        self.draft(item).parent.mkdir(parents=True, exist_ok=True)
        self.draft(item).unlink(missing_ok=True)
        started, reason = self.clock(), "it was ended by a signal"
        try:
            reason = (self.launch or launch)(self.words(item), item.limit_s)
        finally:
            kept = self.keep(item, reason, self.clock() - started)
            seconds = f"{self.clock() - started:.0f} s"
            say(item, f"not complete after {seconds}: {reason}{kept}" if reason else f"done in {seconds}{kept}")
        return reason

    def words(self, item: Item) -> list[str]:
        """Returns the item's command behind the interpreter."""
        script, *words = item.words
        made = [str(HERE / script), *words, "--device", self.torch_device, "--seed", str(self.seed)]
        if script == "scale.py":
            return [*made, "--out", str(self.draft(item))]
        options: dict[str, Path | str | None] = {
            "--models": self.models,
            "--data": self.data,
            "--work": self.draft(item).parent,
        }
        options |= {"--results": self.results, "--commit": self.commit}
        given = [word for name, value in options.items() if value is not None for word in (name, str(value))]
        return [*made, *given, "--draft", str(self.draft(item))]

    def draft(self, item: Item) -> Path:
        """Returns where the item's own process writes; what another code began is not gone on with."""
        return self.work / self.sources / f"{item.name}.json"

    def keep(self, item: Item, reason: str, seconds: float) -> str:
        """Writes the result of what the item's process left, and says where; empty where it left nothing."""
        if not self.draft(item).exists():
            return ""
        made = json.loads(self.draft(item).read_text(encoding="utf-8"))
        models = {name: about.get("identity", about) for name, about in made.pop("models").items()}
        origin = provenance(**models)
        origin["commit"] = self.commit or origin["commit"]
        record = {"item": item.name, "what": item.what, "complete": not reason, "reason": reason} | self.stamp()
        record |= {"n": made.pop("n", made.get("repetitions")), "seed": self.seed, "seconds": round(seconds, 1)}
        self.results.mkdir(parents=True, exist_ok=True)
        made.pop("provenance", None)  # of the item's own command
        write_whole(self.file(item), json.dumps(record | {"provenance": origin, "result": made}, indent=1) + "\n")
        return f"; {self.file(item)}"


def main() -> None:
    age_s = time.time() - psutil.Process().create_time()
    ends_s = time.monotonic() - age_s - MARGIN_S
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    try:
        if sys.argv[1:2] == ["pack"]:
            pack_all(sys.argv[2:])
            return
        args = arguments()
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        problems = [] if args.models is None or args.smoke else join(args.models)
        print(*problems, sep="\n", end="\n" if problems else "", flush=True)
        device = described(args.device)
        results = args.results or (RESULTS if device["name"] != "cpu" else args.work)
        session = Session(
            results,
            args.work,
            device,
            ends_s + 60 * args.minutes,
            args.device,
            args.models,
            args.data,
            args.seed,
            args.commit,
            sources=digest_of_sources(args.data),
        )
        print(f"{device}, torch {torch.__version__}, code {session.sources}", flush=True)
        sys.exit(0 if session.go(args.items) and not problems else 1)
    except IlcpError as error:
        sys.exit(str(error))


def arguments() -> argparse.Namespace:
    about = (__doc__ or "").replace("{items}", "\n".join(map(str, ITEMS)))
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = {item.name: item for item in ITEMS}
    parser.add_argument("--models", type=Path, help="a folder of models, whole or in parts")
    parser.add_argument("--data", type=Path, help="a folder with train.jsonl and test.jsonl")
    parser.add_argument("--minutes", type=float, default=9.0, help="of all, at most")
    parser.add_argument("--items", nargs="+", choices=known, metavar="ITEM", help="only these, in their order")
    parser.add_argument("--smoke", action="store_true", help="the smoke stage alone, without a GPU as well")
    parser.add_argument("--device", help="cuda, cuda:1 ...; cpu for --smoke")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--commit", help="of this code, where it lies without its repository")
    parser.add_argument("--work", type=Path, default=HERE.parent / "runs" / "gpu", help="what is begun is here")
    parser.add_argument("--results", type=Path, help=f"on a GPU {RESULTS}, else --work")
    args = parser.parse_args()
    there = torch.cuda.is_available()
    args.device = args.device or ("cuda" if there else "cpu")
    if not args.smoke and not (there and args.device.startswith("cuda")):
        parser.error(
            f"expected a GPU, got torch.cuda.is_available() = {there} and device {args.device} (torch "
            f"{torch.__version__}): --smoke tries this script on a CPU"
        )
    wanted = [SMOKE.name] if args.smoke else args.items or list(known)
    args.items = [item for name, item in known.items() if name in wanted]
    return args


def pack_all(words: Sequence[str]) -> None:
    """Splits models into parts."""
    parser = argparse.ArgumentParser(prog="gpu.py pack", description="Splits models into parts, with their digests.")
    parser.add_argument("sources", nargs="+", type=Path, help="folders, or GGUF files")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--megabytes", type=float, default=PART_BYTES / MEGA, help="of a part, at most")
    args = parser.parse_args(words)
    for source in args.sources:
        parts = pack(source, args.out, int(MEGA * args.megabytes))
        print(f"{source}: {len(parts)} parts in {args.out}; carry SHA256SUMS with any of them", flush=True)


def described(device: str) -> dict[str, Any]:
    """Returns the name of a device and its memory."""
    if not device.startswith("cuda"):
        return {"name": "cpu", "memory_bytes": psutil.virtual_memory().total}
    found = torch.cuda.get_device_properties(device)
    capability = f"{found.major}.{found.minor}"
    return {
        "name": found.name,
        "memory_bytes": found.total_memory,
        "capability": capability,
        "cuda": torch.version.cuda,
    }


def digest_of_sources(data: Path | None = None) -> str:
    """Returns a digest of the code, recipes and data that results depend on; of changed files no commit tells."""
    found = hashlib.sha256()
    files = [file for pattern in SCRIPTS for file in sorted(HERE.glob(pattern))]
    files += [] if data is None else sorted(data.glob("*.jsonl"))
    for package in (ilcp, ilcp_codecs):
        files += sorted(Path(package.__path__[0]).rglob("*.py"))
    for file in files:
        found.update(file.read_bytes())
    return found.hexdigest()[:12]


def launch(words: Sequence[str], limit_s: float) -> str:
    """Runs a script in a process of its own, and ends it before its limit; returns why it is not complete."""
    child = subprocess.Popen([sys.executable, *words], start_new_session=True)
    try:
        code = child.wait(limit_s - GRACE_S)
        return f"exit code {code} (see above)" if code else ""
    except subprocess.TimeoutExpired:
        return f"it was ended to stay within its {limit_s:.0f} s"
    finally:
        end(child)


def end(child: subprocess.Popen[bytes]) -> None:
    """Ends a process, which may leave a checkpoint first."""
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            pass
        finally:  # a second signal comes as an exception, and leaves no process on the GPU either
            if child.poll() is None:
                child.kill()
                child.wait()


def say(item: Item, text: str) -> None:
    print(f"{item.name}: {text}", flush=True)


if __name__ == "__main__":
    main()
