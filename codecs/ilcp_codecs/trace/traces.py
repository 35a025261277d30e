"""Traces of a training's texts: written once where the writers are frozen, and kept on disk.

::

    texts --cut, write_rows: those of equal length side by side--> keys and values of no position --file--> memories

Where the rule itself is trained a trace lasts one step only: it is written anew, with gradients.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ilcp.codec.keys_values import KeysValues, held_tokens
from ilcp.errors import StorageError
from ilcp.identity import digest
from ilcp.models.adapter import unwrapped
from ilcp.models.prompt import continuation
from ilcp.nn.inference import inference
from ilcp.tasks import Case
from ilcp.training.tensors import checked, write_tensors
from ilcp_codecs.kv.ends import End, Memory
from ilcp_codecs.trace.plan import Plan
from ilcp_codecs.trace.rules import Rule
from ilcp_codecs.trace.writer import TEXT_HERE, cut, write_rows

__all__ = ["Traces", "Written"]

AT_ONCE = 32  # traces of equal length that are written side by side
GIGA = 10**9


@dataclass(frozen=True, slots=True)
class Written:
    """One trace: keys and values of no position, how many tokens each agent read, and the states of its steps.

    ``states`` holds for each agent ``"steps+1 hidden"``; it is empty of traces that come from the disk.
    """

    kv: KeysValues
    prompts: list[int]
    states: list[Tensor] = field(default_factory=list)

    def memory(self, plan: Plan) -> Memory:
        """Returns what the reader gets of it."""
        kv = plan.kept(self.kv, self.prompts)
        return list(zip(kv.keys, kv.values, strict=True)), kv.tokens


class Traces:
    """The traces that a plan's writers make of texts.

    Args:
        end: the writers' model.
        folder: keeps them; None for this process's memory.
        limit_bytes: they take on disk at most; what is beyond is written anew each time.
        change: what an experiment does to each, of which text, before the reader gets it.
        of: the text that the writers read, of a case's; None for all of it.
    """

    def __init__(
        self,
        end: End,
        plan: Plan,
        rule: Rule,
        *,
        folder: Path | None = None,
        limit_bytes: int = 8 * GIGA,
        change: Callable[[Written, str], Written] | None = None,
        of: Callable[[str], str] | None = None,
    ):
        self.end, self.plan, self.rule, self.change, self.of_text = end, plan, rule, change, of
        own = repr((sorted(end.identity.exact.items()), plan.to_dict(), _digest_of(rule))).encode()
        self.folder = None if folder is None else folder / digest(own).hex()
        self.left_bytes = limit_bytes - _taken(self.folder)
        self._held: dict[str, Written] = {}

    def memories(self, texts: Sequence[str]) -> list[Memory]:
        """Returns what the reader gets of each text's trace."""
        return [each.memory(self.plan) for each in self.of(texts)]

    def of(self, texts: Sequence[str]) -> list[Written]:
        """Returns the traces of texts, written where they are not kept."""
        texts = [self._read_by_writers(text) for text in texts]
        found: dict[str, Written] = {text: each for text in texts if (each := self._kept(text)) is not None}
        missing = [text for text in dict.fromkeys(texts) if text not in found]
        for text, each in zip(missing, self._write(missing), strict=True):
            self._keep(text, each)
            found[text] = each
        made = [found[text] for text in texts]
        if self.change is None:
            return made
        return [self.change(each, text) for each, text in zip(made, texts, strict=True)]

    def of_cases(self, cases: Sequence[Case]) -> list[Written]:
        """Returns the traces of the cases' texts."""
        return self.of([case.context for case in cases])

    @inference(lambda traces: unwrapped(traces.end.model))
    def _write(self, texts: Sequence[str]) -> list[Written]:
        return self._live(texts)

    def live(self, texts: Sequence[str]) -> list[Written]:
        """Returns the traces of texts as they are written now, with gradients where they are wanted."""
        return self._live([self._read_by_writers(text) for text in texts])

    def _read_by_writers(self, text: str) -> str:
        return text if self.of_text is None else self.of_text(text)

    def _live(self, texts: Sequence[str]) -> list[Written]:
        ids = [self._ids(text) for text in texts]
        groups: dict[tuple[int, ...], list[int]] = {}
        for number, own in enumerate(ids):
            groups.setdefault(tuple(map(len, own)), []).append(number)
        made: dict[int, Written] = {}
        for lengths, numbers in groups.items():
            for start in range(0, len(numbers), AT_ONCE):
                part = numbers[start : start + AT_ONCE]
                agents = [torch.tensor([ids[n][agent] for n in part]) for agent in range(len(lengths))]
                model, prefix = self.end.model, self.end.prefix
                cache, states = write_rows(model, prefix, agents, self.rule, self.plan.steps)
                for row, number in enumerate(part):
                    steps = [torch.stack([state[row] for state in each]) for each in states]
                    made[number] = Written(self._row(cache, row, len(prefix)), list(lengths), steps)
        return [made[number] for number in range(len(texts))]

    def _ids(self, text: str) -> list[list[int]]:
        prompts = [self.plan.prompt.replace(TEXT_HERE, part) for part in cut(text, len(self.plan.agents))]
        return [list(continuation(self.end.tokenizer, prompt)[0]) for prompt in prompts]

    def tokens(self, text: str) -> int:
        """Returns how many places a text's trace takes."""
        return sum(len(own) + self.plan.steps for own in self._ids(self._read_by_writers(text)))

    def _row(self, cache: Any, row: int, start: int) -> KeysValues:
        shape, tokens = self.end.shape, cache.get_seq_length() - start
        held = [held_tokens(tokens, layer.window) for layer in shape.layers]
        pairs = [
            (layer.keys[row, :, -own:], layer.values[row, :, -own:])
            for layer, own in zip(cache.layers, held, strict=True)
        ]
        return shape.keys_values(pairs, tokens, start).at(None)

    def _kept(self, text: str) -> Written | None:
        if self.folder is None:
            return self._held.get(text)
        file, layers = self.folder / f"{_name(text)}.safetensors", range(len(self.end.shape.layers))
        if not os.path.exists(file):
            return None
        try:
            with safe_open(file, "pt") as opened:
                pairs = [(checked(opened, f"keys.{n}"), checked(opened, f"values.{n}")) for n in layers]
                prompts = checked(opened, "prompts").tolist()
        except (OSError, SafetensorError, ValueError):  # damaged: it is written anew
            return None
        return Written(self.end.shape.keys_values(pairs, sum(prompts) + self.plan.steps * len(prompts), None), prompts)

    def _keep(self, text: str, each: Written) -> None:
        bare = Written(each.kv, each.prompts)
        if self.folder is None:
            self._held[text] = bare
            return
        if each.kv.size_bytes > self.left_bytes:
            return
        layers = enumerate(zip(each.kv.keys, each.kv.values, strict=True))
        tensors = {f"{side}.{n}": one for n, pair in layers for side, one in zip(("keys", "values"), pair, strict=True)}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_tensors(self.folder / f"{_name(text)}.safetensors", tensors | {"prompts": torch.tensor(each.prompts)})
            self.left_bytes -= each.kv.size_bytes
        except (StorageError, OSError):  # a full disk is no reason to stop: it is written anew each time
            self.left_bytes = 0


def _taken(folder: Path | None) -> int:
    """Returns the bytes that traces of an earlier run take."""
    if folder is None or not os.path.isdir(folder):
        return 0
    return sum(entry.stat().st_size for entry in os.scandir(folder) if entry.is_file())


def _digest_of(rule: Rule) -> str:
    tensors: Iterable[tuple[str, Tensor]] = sorted(rule.tensors().items())
    return digest(rule.name.encode(), *(value.numpy().tobytes() for _, value in tensors)).hex()


def _name(text: str) -> str:
    return digest(text.encode()).hex()
