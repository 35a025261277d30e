"""Helpers that several tests use: tiny models, scripts of the repository, processes of their own, and narrowing."""

import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ilcp import Memory, Message, Sender, SoftPrompt, TextMemory
from ilcp.errors import DecodeError
from ilcp.identity import ANY
from ilcp.message import Blob
from ilcp.models.fingerprint import identify
from ilcp.tasks import case_files
from ilcp_codecs.vae import VaeCodec, VaeConfig, VaeNetwork

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = ROOT / "benchmarks"
EXAMPLES = ROOT / "examples"
TEMPLATE = (
    "{% for message in messages %}<|user|>{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

T = TypeVar("T")


# --- tiny models ---------------------------------------------------------------------------------------------------


def make_tokenizer(vocabulary: int = 300, template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """Trains a byte-level tokenizer on a few dossiers."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return train_tokenizer(
        tokenizer,
        (case.context for case in case_files("train", 0, 20)),
        template,
        vocab_size=vocabulary,
        special_tokens=["<s>", "</s>", "<|user|>", "<|assistant|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )


def train_tokenizer(
    tokenizer: Tokenizer, texts: Iterable[str], template: str | None, **options: Any
) -> PreTrainedTokenizerFast:
    """Trains byte pairs on the texts, and wraps the tokenizer as transformers has it: </s> ends and pads."""
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(show_progress=False, **options))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>", chat_template=template
    )


def make_model(
    vocabulary: int, hidden: int = 32, layers: int = 2, window: int = 256, seed: int = 0
) -> LlamaForCausalLM:
    """Makes a small random Llama."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=hidden,
            intermediate_size=2 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=4,
            max_position_embeddings=window,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
    ).eval()


def sender_of(model: Any, tokenizer: Any, layers: tuple[int, ...] = (0, 1, 2), hidden: int = 32) -> Sender:
    """Makes a sender with an untrained codec of its own."""
    torch.manual_seed(3)
    config = VaeConfig(layers, hidden, 48, slots=8, dims=16, prefixes=(4, 16), width=32, heads=4, projector_width=32)
    return Sender(model, tokenizer, VaeCodec.from_network(VaeNetwork(config), identify(model, tokenizer), ANY))


# --- what a test knows and a type does not -------------------------------------------------------------------------


def present(value: T | None) -> T:
    """Returns a value that has to be there."""
    assert value is not None
    return value


def vectors_of(memory: Memory) -> torch.Tensor:
    """Returns the vectors ``"memory hidden"`` of a memory that has to be a soft prompt."""
    assert isinstance(memory, SoftPrompt)
    return memory.vectors


def text_of(memory: Memory) -> str:
    """Returns the text of a memory that has to be one of text."""
    assert isinstance(memory, TextMemory)
    return memory.text


def noting(call: Callable[..., T], seen: list[Any], note: Callable[..., Any]) -> Callable[..., T]:
    """Returns ``call`` that first adds to ``seen`` what ``note`` makes of the arguments."""

    def noted(*args: Any, **options: Any) -> T:
        seen.append(note(*args, **options))
        return call(*args, **options)

    return noted


# --- scripts, and processes of their own ---------------------------------------------------------------------------


def load_script(name: str, folder: Path = BENCHMARKS) -> ModuleType:
    """Imports a script of the repository as a module; scripts import their neighbours by bare names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        return importlib.import_module(name)


def committed_result(name: str) -> dict[str, Any]:
    """Reads a committed result of a benchmark."""
    record: dict[str, Any] = json.loads((BENCHMARKS / "results" / f"{name}.json").read_text(encoding="utf-8"))
    return record


def environment(**more: str) -> dict[str, str]:
    """Returns this process's environment with one thread for each process: they share the cores."""
    return os.environ | {"OMP_NUM_THREADS": "1"} | more


def run_python(*words: object, timeout_s: float = 120, **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs a fresh interpreter with these words to its end, and returns what it said."""
    line = [sys.executable, *map(str, words)]
    options = {"env": environment()} | options
    return subprocess.run(line, capture_output=True, text=True, timeout=timeout_s, check=False, **options)


def run_example(name: str, *words: object) -> str:
    """Returns what an example prints, run as a reader would run it: several processes write whole lines each."""
    done = run_python(EXAMPLES / name, *words, timeout_s=300, env=environment(PYTHONUNBUFFERED=""))
    assert 0 == done.returncode, done.stderr
    return done.stdout


def refused_by_rule(wire: bytes, key: bytes | None, error: type[DecodeError], fragment: str, now: int) -> None:
    """Asserts that bytes are refused as a message with just this error, whose text holds the fragment."""
    with pytest.raises(DecodeError) as caught:
        Message.from_bytes(wire, key=key, now_unix_s=now)
    assert error is type(caught.value)
    assert fragment in str(caught.value)


def closed_to_others(
    folder: Path, monkeypatch: pytest.MonkeyPatch, opened: Callable[[Path], Any], used: Callable[[Any], Any], error: Any
) -> None:
    """Asserts that a database is closed to other accounts, and refused where it cannot be."""
    (folder / "old.sqlite").touch(0o644)
    with opened(folder / "old.sqlite") as database:
        used(database)
        assert {0o600} == {file.stat().st_mode & 0o777 for file in folder.iterdir()}
    (folder / "link.sqlite").symlink_to(folder / "elsewhere.sqlite")
    (folder / "open").mkdir()
    (folder / "open").chmod(0o1777)
    me = os.geteuid()
    for name, who, said in (
        ("link.sqlite", me, "got a link or something else: remove it"),
        (
            "open/new.sqlite",
            me,
            r"expected a folder in which nobody else may write, got .*open of mode 1777: chmod go-w",
        ),
        ("old.sqlite", me + 1, f"of this account's own, got user {me}'s"),
        ("other.sqlite", me + 1, f"of this account's own, got user {me}'s"),
    ):
        monkeypatch.setattr(os, "geteuid", lambda who=who: who)
        with pytest.raises(error, match=said):
            opened(folder / name)
    assert not (folder / "elsewhere.sqlite").exists()


def wait_for(file: Path, process: subprocess.Popen[Any], timeout_s: float = 100) -> None:
    """Returns once the file is there; fails where the process ends before, or takes too long."""
    deadline = time.monotonic() + timeout_s
    while not file.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert process.poll() is None, present(process.stderr).read()
    assert file.exists()


# --- hostile files ---------------------------------------------------------------------------------------------------


class Evil:
    """What a pickle runs where it is read."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("/tmp/ilcp-evil-was-here",)


def changed(file: Path, **changes: Any) -> None:
    """Changes keys of a file of JSON."""
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | changes), encoding="utf-8")


class Folder:
    """Blobs in a dict."""

    def __init__(self) -> None:
        self.kept: dict[Blob, bytes] = {}

    def put_blob(self, data: bytes, /) -> Blob:
        """Keeps the bytes."""
        self.kept[Blob.of(data)] = data
        return Blob.of(data)

    def get_blob(self, blob: Blob, /) -> bytes:
        """Returns them."""
        return self.kept[blob]
