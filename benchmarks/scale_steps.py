"""The steps that ``scale.py`` measures, the models of its sizes, and the machine they run on.

::

    Machine                     milliseconds and peak of a piece of work, and what memory is left
    Size --make_model--> models, with an untrained codec between them --> Hop --> Document --> steps
"""

import random
import re
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import psutil
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen2Config

from ilcp.codec.memory import SoftPrompt, TextMemory
from ilcp.errors import ConfigError
from ilcp.handoff import Receiver, Sender
from ilcp.measure import Measured
from ilcp.measure.prefill import cache_text
from ilcp.message import Message
from ilcp.models.fingerprint import identify
from ilcp.models.forward import Prefill, embed
from ilcp.models.prompt import text_ids
from ilcp_codecs.vae import VaeCodec, VaeConfig, VaeNetwork

WINDOW_TOKENS = 65_536
QUESTION_TOKENS = 16
WORDS = 500  # of the tokenizer, one token each: no step's time depends on which
LAYERS_READ = 5  # of the sender, evenly spaced from the embedding to the last
CACHED = "text in the prefix cache"
PROMPTS = ("text", CACHED, "memory", "as many tokens", "nothing")
STEPS = (
    "sender reads",
    "sender reads and captures",
    "codec encodes",
    "wire out",
    "wire in",
    "codec decodes",
    *(f"first token, {prompt}" for prompt in PROMPTS),
)
Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Size:
    """The shape of a published model (Qwen2.5's), or of one for tests."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int
    tied: bool
    window: int = WINDOW_TOKENS

    def config(self) -> Qwen2Config:
        """Returns the configuration as transformers takes it."""
        return Qwen2Config(
            hidden_size=self.hidden,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            intermediate_size=self.intermediate,
            vocab_size=self.vocabulary,
            tie_word_embeddings=self.tied,
            max_position_embeddings=self.window,
        )

    def layers_read(self) -> tuple[int, ...]:
        """Returns the layers that the codec reads."""
        return tuple(sorted({round(place) for place in np.linspace(0, self.layers, LAYERS_READ)}))

    def parameters(self) -> int:
        """Counts the weights; tied ones once."""
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(self.config())
        return sum(weight.numel() for weight in model.parameters())


SIZES = {
    "0.5B": Size(896, 24, 14, 2, 4864, 151_936, tied=True),
    "1.5B": Size(1536, 28, 12, 2, 8960, 151_936, tied=True),
    "7B": Size(3584, 28, 28, 4, 18_944, 152_064, tied=False),
    "tiny": Size(32, 2, 4, 2, 64, 512, tied=True, window=256),  # for the tests
}


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of what torch makes in its block, as long as it is alive; ``peak`` is the most at once.

    It sees tensors; what a kernel allocates for itself it does not.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in given | self._known | {0}:
                self._follow(tensor.untyped_storage())
        return made

    def _follow(self, storage: Any) -> None:
        place, size = storage.data_ptr(), storage.nbytes()
        self._known.add(place)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._freed, place, size).atexit = False

    def _freed(self, place: int, size: int) -> None:
        self._known.discard(place)
        self.live -= size


@dataclass(frozen=True)
class Machine:
    """The device that the models live on, with its clock and its memory."""

    device: torch.device
    dtype: torch.dtype

    @property
    def on_gpu(self) -> bool:
        """Says whether work runs on behind the call that starts it."""
        return self.device.type == "cuda"

    @property
    def name(self) -> str:
        """The device's name, as a file name takes it."""
        return re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name(self.device).lower()) if self.on_gpu else "cpu"

    @property
    def peak_source(self) -> str:
        """The meaning of a peak here, in words."""
        if self.on_gpu:
            return "torch.cuda.max_memory_allocated, beyond what was allocated before the step"
        return (
            "the bytes of live tensors that the step made, by a TorchDispatchMode; kernels' own buffers are not in it"
        )

    def settle(self) -> None:
        """Waits for what was started."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def milliseconds(self, work: Callable[[], object]) -> float:
        """Returns how long ``work`` takes until all of it is done."""
        self.settle()
        started = time.perf_counter()
        work()
        self.settle()
        return 1000 * (time.perf_counter() - started)

    def peak_bytes(self, work: Callable[[], object]) -> int:
        """Returns the most that ``work`` holds at once, beyond what was held before."""
        if self.on_gpu:
            before = torch.cuda.memory_allocated(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            work()
            self.settle()
            return torch.cuda.max_memory_allocated(self.device) - before
        with LiveBytes() as meter:
            work()
        return meter.peak

    def free_bytes(self) -> int:
        """Returns how much memory is free."""
        if self.on_gpu:
            unused = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
            return torch.cuda.mem_get_info(self.device)[0] + unused
        return psutil.virtual_memory().available


class Hop:
    """One sender, one receiver and an untrained codec between them, made on the machine."""

    def __init__(self, sizes: Sequence[str], machine: Machine, seed: int):
        self.machine = machine
        self.sizes = tuple(SIZES[name] for name in sizes)
        tokenizer = word_tokenizer()
        made = {name: make_model(SIZES[name], machine, seed + place) for place, name in enumerate(dict.fromkeys(sizes))}
        self.about = {}
        identities = {}

        def hash_weights(name: str) -> None:
            identities[name] = identify(made[name], tokenizer)

        for name, model in made.items():
            hashing_ms = machine.milliseconds(partial(hash_weights, name))
            self.about[name] = about(SIZES[name], model, hashing_ms) | {"identity": asdict(identities[name])}
        torch.manual_seed(seed)
        sending, receiving = self.sizes
        network = VaeNetwork(VaeConfig(sending.layers_read(), sending.hidden, receiving.hidden))
        rows = made[sizes[1]].get_input_embeddings().weight[:WORDS].detach().float()
        with torch.no_grad():
            network.projector.scale.fill_(float(rows.square().mean().sqrt()))  # memory as long as an embedding
        codec = VaeCodec.from_network(network.to(machine.device), *(identities[name] for name in sizes))
        self.sender = Sender(made[sizes[0]], tokenizer, codec)
        self.receiver = Receiver(made[sizes[1]], tokenizer, codec, allow_unmeasured=True)


class Document:
    """One document of so many tokens, and the steps of its hand-off."""

    def __init__(self, hop: Hop, tokens: int, seed: int):
        rng = random.Random(f"scale {seed} {tokens}")
        self.hop, self.sender, self.receiver = hop, hop.sender, hop.receiver
        words = [f"w{rng.randrange(WORDS)}" for _ in range(tokens)]
        self.question = " ".join(f"w{rng.randrange(WORDS)}" for _ in range(QUESTION_TOKENS))
        self.prefill = Prefill(self.receiver.model)
        self.ids = list(text_ids(self.sender.tokenizer, " ".join(words), ""))
        self.read = self.sender.read(self.ids)
        self.payload = self.sender.codec.encode(self.read)
        self.message = self.sender.pack(self.payload)
        memory = self.receiver.decode(self.message)
        assert isinstance(memory, SoftPrompt)
        self.memory = memory
        self.prompt_ids = text_ids(self.receiver.tokenizer, " ".join(words), self.question)
        self.twin = TextMemory(" ".join(words[place % tokens] for place in range(self.memory.shape[0])))
        self.cached = cache_text(self.receiver, " ".join(words), self.question)
        if len(self.ids) != tokens or self.cached.tokens != tokens:
            raise ConfigError(f"expected a document of {tokens} tokens, got {len(self.ids)} and {self.cached.tokens}")

    def steps(self) -> dict[str, Callable[[], object]]:
        """Returns every step, to be run once: none depends on another's result."""
        sender, receiver = self.sender, self.receiver
        fresh = self.cached.copy()
        return {
            "sender reads": self._read_plainly,
            "sender reads and captures": lambda: sender.read(self.ids),
            "codec encodes": lambda: sender.codec.encode(self.read),
            "wire out": lambda: sender.pack(self.payload),
            "wire in": lambda: Message.from_bytes(self.message),
            "codec decodes": lambda: receiver.codec.decode(self.payload),
            "first token, text": lambda: self._first(embed(receiver.model, self.prompt_ids).detach()),
            f"first token, {CACHED}": lambda: int(self.cached.first_logits(self.prefill, fresh).argmax()),
            "first token, memory": lambda: self._first(receiver.prompt(self.memory, self.question)),
            "first token, as many tokens": lambda: self._first(receiver.prompt(self.twin, self.question)),
            "first token, nothing": lambda: self._first(receiver.prompt(None, self.question)),
        }

    def prompt_tokens(self) -> dict[str, int]:
        """Counts the tokens whose keys and values the receiver holds, by prompt."""
        receiver, question, text = self.receiver, self.question, len(self.prompt_ids)
        short = {"memory": self.memory, "as many tokens": self.twin, "nothing": None}
        return {"text": text, CACHED: self.cached.tokens + len(self.cached.rest)} | {
            name: len(receiver.prompt(memory, question)) for name, memory in short.items()
        }

    def samples(self, repetitions: int) -> dict[str, list[float]]:
        """Takes milliseconds per step, one of each per repetition, after one that is thrown away."""
        taken: dict[str, list[float]] = {step: [] for step in STEPS}
        for repetition in range(-1, repetitions):
            steps = self.steps()
            for step in random.Random(repetition).sample(STEPS, len(STEPS)):
                milliseconds = self.hop.machine.milliseconds(steps[step])
                if repetition >= 0:
                    taken[step].append(milliseconds)
        return taken

    def _first(self, prompt: Tensor) -> int:
        return int(self.prefill(prompt).argmax())

    @torch.no_grad()
    def _read_plainly(self) -> None:
        row = torch.tensor([self.ids], device=self.sender.model.device)
        self.sender.model.base_model(input_ids=row, attention_mask=torch.ones_like(row), use_cache=False)


def word_tokenizer() -> Any:
    """Makes a tokenizer of which every word is one token, with none before them."""
    tokenizer = Tokenizer(models.WordLevel({f"w{number}": number for number in range(WORDS)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def make_model(size: Size, machine: Machine, seed: int) -> Any:
    """Makes a model of random weights on the device where it stays.

    They stay trainable, as ``from_pretrained`` leaves them: with frozen ones torch copies the whole head on a CPU to
    multiply one row, which takes longer than all layers.
    """
    torch.manual_seed(seed)
    with torch.device(machine.device):
        model = AutoModelForCausalLM.from_config(size.config(), dtype=machine.dtype)
    return model.eval()


def about(size: Size, model: Any, hashing_ms: float) -> Record:
    """Describes a model, and how long its identity takes, which either end makes once per load."""
    weights = sum(weight.nbytes for weight in model.parameters())
    return {
        "shape": asdict(size),
        "layers_read": size.layers_read(),
        "attention": model.config._attn_implementation,
        "parameters": asdict(Measured(sum(weight.numel() for weight in model.parameters()), "", 1)),
        "weights": asdict(Measured(weights, "B", 1)),
        "identity, once per load": asdict(Measured(hashing_ms, "ms", 1)),
    }
