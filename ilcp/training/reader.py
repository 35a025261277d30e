"""The sender's states of texts: computed once, where there is a store to keep them in.

::

    texts --StateStore.fill--> shards of states on disk --Reader.states--> states "texts layers tokens hidden", mask

A shard holds the states of one fixed group of texts, whatever else is read, and appears whole or not at all: a run that
was killed goes on with the shards that are there, and computes the same numbers as one that was not. It holds them in
two bytes a number: float32 is rounded to bfloat16, which keeps its range and about three digits. Beside each text's
states is their digest; what does not have it is computed anew.
"""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn import functional as F

from ilcp.errors import StorageError
from ilcp.identity import digest
from ilcp.models.fingerprint import identify
from ilcp.models.reading import capture_batch, padded_ids, read_ids, window_tokens
from ilcp.nn.distributed import all_reduce, shard
from ilcp.training.batch import Models
from ilcp.training.hyperparameters import Hyperparameters
from ilcp.training.pace import Pace, bytes_text, peak_bytes, say, voice
from ilcp.training.precision import in_bfloat16, precision
from ilcp.training.tensors import checked, write_tensors

__all__ = ["Reader", "StateStore"]

SHARD_TOKENS = 8192  # of a shard and a forward pass, padding counted: up to a gigabyte of a large sender
FORMAT = 2  # of the shards: another number is another folder


class Reader:
    """Reads texts with the sender, or looks up what it computed before."""

    def __init__(
        self, models: Models, layers: Sequence[int], hyperparameters: Hyperparameters, store: "StateStore | None" = None
    ):
        self.models, self.layers, self.hyperparameters, self.store = models, tuple(layers), hyperparameters, store
        self.tokens = 0  # of the texts that were asked for, in this process

    def states(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Returns states ``"texts layers tokens hidden"``, padded on the right, and their mask ``"texts tokens"``."""
        if self.store is None:
            return self.compute(texts)
        known = {text: self.store.get(text) for text in texts}
        missing = [text for text, found in known.items() if found is None]
        if len(missing) == len(texts):
            return self.compute(texts)
        if missing:
            states, mask = self.compute(missing)
            rows = zip(missing, states, mask.sum(1).long().tolist(), strict=True)
            known |= {text: row[:, :length] for text, row, length in rows}
        self.tokens += sum(found.shape[1] for text, found in known.items() if found is not None and text not in missing)
        sender = self.models.sender
        return _padded(
            [found.to(sender.device).to(sender.dtype) for text in texts if (found := known[text]) is not None]
        )

    def compute(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Computes ``states`` by a pass of the sender; a text beyond its window is read in windows."""
        sender = self.models.sender
        encoded = [self.models.sender_tokenizer(text, verbose=False).input_ids for text in texts]
        self.tokens += sum(map(len, encoded))
        with precision(self.models.receiver.device, self.hyperparameters):
            if max(map(len, encoded)) > window_tokens(sender):
                return _padded([read_ids(sender, ids, self.layers)[0] for ids in encoded])
            ids, mask = padded_ids(encoded, sender.device)
            return capture_batch(sender, ids, mask, self.layers), mask.float()


def _padded(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    longest = max(row.shape[1] for row in rows)
    lengths = torch.tensor([row.shape[1] for row in rows], device=rows[0].device)
    states = torch.stack([F.pad(row, (0, 0, 0, longest - row.shape[1])) for row in rows])
    return states, (torch.arange(longest, device=rows[0].device) < lengths.unsqueeze(1)).float()


class StateStore:
    """States of texts on disk, of one sender and its chosen layers, up to ``limit_bytes``.

    The folder's name is a digest of the sender's identity, the layers and the precision: another checkpoint finds
    nothing here.
    """

    def __init__(
        self,
        folder: str | Path,
        models: Models,
        layers: Sequence[int],
        hyperparameters: Hyperparameters,
        limit_bytes: int,
    ):
        identity = identify(models.sender, models.sender_tokenizer).exact
        halved = in_bfloat16(models.receiver.device, hyperparameters)
        key = digest(repr((FORMAT, sorted(identity.items()), tuple(layers), halved)).encode()).hex()
        self.folder = Path(folder) / key
        self.limit_bytes = limit_bytes
        self._tokenizer = models.sender_tokenizer
        dtype = models.sender.dtype
        self._dtype = torch.bfloat16 if dtype.itemsize > torch.bfloat16.itemsize else dtype
        self._token_bytes: int = len(layers) * models.sender.config.hidden_size * self._dtype.itemsize
        self._where: dict[str, Path] = {}
        self._open: dict[Path, Any] = {}
        self._checked: set[str] = set()

    def fill(self, reader: Reader, texts: Iterable[str]) -> None:
        """Computes and keeps the states of these texts, shard by shard, until the limit; what is there is not read.

        A disk that fills up is no reason to stop: what is not here is computed when it is asked for.
        """
        groups = self._groups(texts)
        for path, group, _ in groups:
            self._where |= dict.fromkeys(map(_name, group), path)
        todo = [each for each in shard(groups) if not os.path.exists(each[0])]
        console, device = Console(stderr=True, soft_wrap=True), reader.models.sender.device
        pace = Pace(sum(tokens for _, _, tokens in todo))
        done = 0
        with voice(console, "the sender reads") as tell:
            for path, group, tokens in todo:
                try:
                    self._write(path, group, *reader.compute(group))
                except (StorageError, OSError) as error:
                    say(console, f"the sender's states are no longer kept in {self.folder}: {error}")
                    break
                done += tokens
                tell(done / pace.total, _reading(pace, done, device))
        all_reduce(0.0, device)  # no process looks up before all have written

    def _write(self, path: Path, group: Sequence[str], states: Tensor, mask: Tensor) -> None:
        lengths = mask.sum(1).long().tolist()
        rows = zip(group, states.to(self._dtype).cpu(), lengths, strict=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_tensors(path, {_name(text): row[:, :length] for text, row, length in rows})

    def get(self, text: str) -> Tensor | None:
        """Returns states ``"layers tokens hidden"`` of a text, as they are kept; None where they are not."""
        name = _name(text)
        path = self._where.get(name)
        if path is None:
            return None
        try:
            if path not in self._open:
                self._open[path] = safe_open(path, "pt").__enter__()  # type: ignore[no-untyped-call]
            if name in self._checked:
                states: Tensor = self._open[path].get_tensor(name)
                return states
            states = checked(self._open[path], name)
        except (OSError, SafetensorError, ValueError):  # never written, or damaged since
            return None
        self._checked.add(name)
        return states

    def bytes_of(self, texts: Iterable[str]) -> int:
        """Computes how much the states of these texts would take: tokens x layers x width x item size."""
        tokens = sum(length for length, _ in self._measured(texts))
        return tokens * self._token_bytes

    def _measured(self, texts: Iterable[str]) -> list[tuple[int, str]]:
        return sorted((len(self._tokenizer(t, verbose=False).input_ids), t) for t in dict.fromkeys(texts))

    def _groups(self, texts: Iterable[str]) -> list[tuple[Path, list[str], int]]:
        """Groups texts of like length, as many as the limit allows; beside each group, how many tokens it has."""
        groups: list[list[tuple[int, str]]] = [[]]
        spent = 0
        for length, text in self._measured(texts):
            spent += length * self._token_bytes
            if spent > self.limit_bytes:
                break
            if (len(groups[-1]) + 1) * length > SHARD_TOKENS and groups[-1]:
                groups.append([])
            groups[-1].append((length, text))
        return [(self._path(group), [text for _, text in group], sum(n for n, _ in group)) for group in groups if group]

    def _path(self, group: Sequence[tuple[int, str]]) -> Path:
        return self.folder / f"{digest(*(text.encode() for _, text in group)).hex()}.safetensors"


def _reading(pace: Pace, done: int, device: torch.device) -> str:
    tokens = f"{done:,} of {pace.total:,} tokens · {1 / max(1e-9, pace.each_s(done)):,.0f} tokens/s"
    return f"{tokens} · {pace.ends(done)} · peak {bytes_text(peak_bytes(device))}"


def _name(text: str) -> str:
    return digest(text.encode()).hex()
