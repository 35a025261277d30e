"""The peer of ``peer_avp.py``: a process in an environment that has `avp`, and the client that asks it.

One JSON object per line each way::

    {"do": "load", "sender": folder, "receiver": folder}  -->  {"result": {"avp": "0.6.2", ...}}
    {"do": "hand_off", "source": "sender", ...}           -->  {"result": {...}}, or {"error": "Type: text"}

An operation that fails answers with its error and the next one is served. Only answers go to standard output; whatever
libraries print goes to standard error. Nothing here imports ilcp.
"""

import copy
import hashlib
import inspect
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

ANSWER_TOKENS = 32
PACKAGES = ("avp", "torch", "transformers", "tokenizers", "numpy", "protobuf")


class Peer:
    """Both models behind avp's connectors; each public method is an operation, and returns what JSON takes."""

    def __init__(self) -> None:
        self.connectors: dict[str, Any] = {}

    def load(self, sender: str, receiver: str) -> dict[str, str]:
        """Loads both models from their folders, on one thread of the CPU; the versions in use."""
        import torch

        torch.set_num_threads(1)
        self.connectors = {"sender": _connector(sender), "receiver": _connector(receiver)}
        return {"python": platform.python_version()} | {name: metadata.version(name) for name in PACKAGES}

    def hand_off(self, source: str, target: str, steps: int, text: str, question: str) -> dict[str, Any]:
        """Makes one hand-off: its bytes, the time of each step in ms, and the answers with, without and beside it.

        The same model hands over through bytes. Another model gets avp's in-process projection, which has no bytes.
        """
        reader, answerer = self.connectors[source], self.connectors[target]
        nothing = _answer(answerer, question)  # untimed: the caches are warm before the clock starts
        times: dict[str, float] = {}
        context = timed(times, "sender's step", lambda: reader.think(text, steps=steps))
        size, extra = None, {}
        if source == target:
            data = timed(times, "to bytes", context.to_bytes)
            context = timed(times, "from bytes", lambda: _from_bytes(data))
            size = len(data)
        else:
            extra = {"source": reader, "cross_model": True}
        timed(times, "first token", lambda: _answer(answerer, question, context, tokens=1, **extra))
        timed(times, "first token, full text", lambda: _answer(answerer, f"{text}\n\n{question}", tokens=1))
        context = context if size is None else _from_bytes(data)  # the call above has changed the first one
        answers = {
            "hand-off": _answer(answerer, question, context, **extra),
            "full text": _answer(answerer, f"{text}\n\n{question}"),
            "nothing": nothing,
        }
        return {"bytes": size, "times": times, "answers": answers}

    def answers(self, model: str, steps: int, text: str, questions: list[str]) -> dict[str, Any]:
        """Hands over to the same model, a fresh copy for every question: the bytes, and the answers."""
        connector = self.connectors[model]
        data = connector.think(text, steps=steps).to_bytes()
        return {
            "bytes": len(data),
            "answers": [_answer(connector, question, _from_bytes(data)) for question in questions],
        }

    def fan_out(self, model: str, steps: int, text: str, questions: list[str]) -> dict[str, Any]:
        """Uses one context for as many calls as there are questions: the first each time, then each in turn."""
        connector = self.connectors[model]
        data = connector.think(text, steps=steps).to_bytes()
        context = _from_bytes(data)
        before, tokens_before = digest(context.to_bytes()), context.past_key_values.get_seq_length()
        same = [_answer(connector, questions[0], context) for _ in questions]
        after, tokens_after = digest(context.to_bytes()), context.past_key_values.get_seq_length()
        context = _from_bytes(data)
        return {
            "same": same,
            "in turn": [_answer(connector, question, context) for question in questions],
            "fresh": [_answer(connector, question, _from_bytes(data)) for question in questions],
            "changed": before != after,
            "tokens": [tokens_before, tokens_after],
        }

    def checkpoints(self, model: str, steps: int, text: str, question: str, noise: float, seed: int) -> dict[str, Any]:
        """Tries whether a receiver with other weights takes the context, and one with the same weights elsewhere."""
        connector = self.connectors[model]
        data = connector.think(text, steps=steps).to_bytes()
        changed = copy.deepcopy(connector.model)
        perturb(changed, noise, seed)
        with tempfile.TemporaryDirectory() as scratch:
            equal, other = (shutil.copytree(connector.model.name_or_path, f"{scratch}/{name}") for name in "ab")
            changed.save_pretrained(other)
            shutil.copy(f"{equal}/config.json", other)  # saving may add fields; only the weights shall differ
            receivers = {
                "other weights under the same name": type(connector)(model=changed, tokenizer=connector.tokenizer),
                "other weights in another folder": _connector(other),
                "the same weights in another folder": _connector(equal),
            }

        def answer_bytes(receiver: Any) -> str:
            return _answer(receiver, question, _from_bytes(data))

        return {
            name: attempt(partial(answer_bytes, receiver)) | {"handshake": _handshake(connector, receiver)}
            for name, receiver in receivers.items()
        }

    def flips(self, model: str, steps: int, text: str, question: str, sample: int, seed: int) -> dict[str, Any]:
        """Flips single bits: ``sample`` of the payload's, and every bit before the payload."""
        from avp import decode

        connector = self.connectors[model]
        data = connector.think(text, steps=steps).to_bytes()
        start = len(data) - len(decode(data).payload)
        bits = random.Random(seed).sample(range(8 * start, 8 * len(data)), sample)

        def take(damaged: bytes) -> None:
            _answer(connector, question, _from_bytes(damaged), tokens=1)

        return {"payload": flip(take, data, bits), "rest": flip(take, data, range(8 * start))}

    def forge(self, model: str, steps: int, text: str, question: str, factor: float) -> dict[str, Any]:
        """Replaces the payload's floats, its checksum made anew by avp's own encoder: taken or refused."""
        import numpy as np
        from avp import decode, encode
        from avp.context import AVPContext
        from avp.kv_cache import KVCacheHeader

        connector = self.connectors[model]
        message = decode(connector.think(text, steps=steps).to_bytes())
        shape = message.payload[: KVCacheHeader().header_size]
        floats = np.frombuffer(message.payload[len(shape) :], dtype=np.float32)
        forged = {"NaN": np.full_like(floats, np.nan), "scaled": floats * np.float32(factor)}

        def answer_bytes(data: bytes) -> str:
            return _answer(connector, question, _from_bytes(data))

        results = {}
        for name, values in forged.items():
            results[name] = attempt(partial(answer_bytes, encode(shape + values.tobytes(), message.metadata)))
        return {"forged": results, "to_bytes takes": list(inspect.signature(AVPContext.to_bytes).parameters)[1:]}

    def cross_wire(self, steps: int, text: str, question: str) -> dict[str, Any]:
        """Tries what avp offers for the cross-model hand-off through bytes."""
        from avp.types import OutputType

        sender, receiver = self.connectors["sender"], self.connectors["receiver"]

        def through_bytes() -> str:
            context = _from_bytes(sender.think(text, steps=steps).to_bytes())
            return _answer(receiver, question, context, source=sender, cross_model=True)

        return {
            "the vector alone to bytes": attempt(
                lambda: str(len(sender.think(text, steps=steps, output=OutputType.HIDDEN_STATE).to_bytes()))
            ),
            "the whole context through bytes": attempt(through_bytes),
        }


def _connector(folder: str) -> Any:
    from avp import HuggingFaceConnector

    return HuggingFaceConnector.from_pretrained(folder, device="cpu")


def _from_bytes(data: bytes) -> Any:
    from avp.context import AVPContext

    return AVPContext.from_bytes(data)


def _answer(connector: Any, question: str, context: Any = None, tokens: int = ANSWER_TOKENS, **extra: Any) -> str:
    """Returns the greedy answer; avp samples unless told not to."""
    return str(connector.generate(question, context=context, max_new_tokens=tokens, do_sample=False, **extra)).strip()


def timed(times: dict[str, float], name: str, work: Callable[[], Any]) -> Any:
    started = time.perf_counter()
    result = work()
    times[name] = 1000 * (time.perf_counter() - started)
    return result


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def attempt(work: Callable[[], object]) -> dict[str, Any]:
    """Returns the answer, or the first line of the refusal."""
    try:
        return {"accepted": True, "answer": work()}
    except Exception as error:
        return {"accepted": False, "error": line(error)}


def _handshake(local: Any, remote: Any) -> str:
    from avp import CompatibilityResolver

    session = CompatibilityResolver.resolve(local.get_model_identity(), remote.get_model_identity())
    return f"{session.mode.name}, {session.resolution_path}"


def perturb(model: Any, noise: float, seed: int) -> None:
    """Adds Gaussian noise to every weight, ``noise`` times the standard deviation of its tensor."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight += noise * weight.std() * torch.randn(weight.shape, generator=generator)


def flip(take: Callable[[bytes], Any], data: bytes, bits: Sequence[int]) -> dict[str, Any]:
    """Counts the messages with one of ``bits`` flipped that ``take`` refuses, and with which errors."""
    errors: Counter[str] = Counter()
    for bit in bits:
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            take(bytes(damaged))
        except Exception as error:
            errors[f"{type(error).__module__.split('.')[0]}.{type(error).__name__}"] += 1
    return {"tried": len(bits), "refused": sum(errors.values()), "errors": dict(errors.most_common())}


def line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


class PeerError(Exception):
    """The peer's process says that an operation failed."""


class Client:
    """The other end: starts this file under another interpreter, and asks for one operation at a time."""

    def __init__(self, python: Path):
        self._scratch = tempfile.TemporaryDirectory()
        self._log = Path(self._scratch.name) / "stderr"
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        environment |= {"AVP_CACHE_DIR": self._scratch.name, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        pipe = subprocess.PIPE
        with self._log.open("w") as log:
            self._process: Any = subprocess.Popen(
                [python, Path(__file__)], stdin=pipe, stdout=pipe, stderr=log, text=True, env=environment
            )

    def ask(self, do: str, **given: Any) -> Any:
        """Returns the result of one operation.

        Raises:
            PeerError: it failed, or the process has ended.
        """
        with suppress(BrokenPipeError):  # an ended process is found out below
            print(json.dumps({"do": do, **given}), file=self._process.stdin, flush=True)
        answered = self._process.stdout.readline()
        if not answered:
            raise PeerError(f"the peer's process ended during {do!r}: {self._log.read_text()[-500:]}")
        answer = json.loads(answered)
        if "error" in answer:
            raise PeerError(answer["error"])
        return answer["result"]

    def close(self) -> None:
        """Ends the process."""
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._scratch.cleanup()


def main() -> None:
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    warnings.simplefilter("ignore")
    peer = Peer()
    for asked in sys.stdin:
        try:
            request = json.loads(asked)
            name = request.pop("do")
            if name.startswith("_") or not hasattr(peer, name):
                raise ValueError(f"expected an operation, got {name!r}")
            answer = {"result": getattr(peer, name)(**request)}
        except Exception as error:
            answer = {"error": line(error)}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    with suppress(BrokenPipeError):  # whoever asked has gone
        main()
