"""What may run beside what: any number of threads read and answer with one model, and nobody gets another's result."""

import os
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event, Thread
from typing import Any

import pytest
import torch
from torch import nn

from ilcp import Receiver
from ilcp.codec.context import Context
from ilcp.codec.keys_values import KeysValues
from ilcp.codec.memory import CacheMemory, TextMemory
from ilcp.codec.protocols import Codec
from ilcp.codec.registry import codec_class, codec_names
from ilcp.models.reading import backbone
from ilcp.nn.inference import evaluating, lock_of
from ilcp.tasks import Case, Question
from ilcp.training import Models
from ilcp_codecs.facts import FactsCodec
from ilcp_codecs.kv import AlignedCodec, CompactCodec, ExactCodec, Int4Codec, Int8Codec, PcaCodec
from ilcp_codecs.kv.aligned import Ends
from ilcp_codecs.kv.container import Shape
from ilcp_codecs.text import HeadCodec, LmCodec, PlainCodec, TailCodec, ZstdCodec
from ilcp_codecs.trace import Plan, Segment, Trace, TraceCodec
from ilcp_codecs.trace.trace import content_of
from tests.families import build
from tests.helpers import make_model, make_tokenizer, sender_of
from tests.test_families import spelled

THREADS = 8
TINY = dict(width=32, heads=4, speller_width=32, blocks=1)
TOKENIZER = make_tokenizer(300)
TEXTS = [f"Case {number} " + "is owned by Mara in Oslo. " * (1 + number % 5) for number in range(12)]


def held(memory: Any) -> Any:
    """The text of a memory, its numbers, or what they are known by."""
    if isinstance(memory, CacheMemory):
        return memory.digest()
    return memory.text if isinstance(memory, TextMemory) else memory.vectors.tolist()


def hooks_of(model: nn.Module) -> int:
    """How many hooks hang on the model."""
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.modules())


@pytest.fixture
def restless() -> Iterator[None]:
    """Threads that give way a thousand times as often as they do by themselves."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(5e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("restless")
@pytest.mark.parametrize("layers", [(0, 1, 2), (0, 2, 4)])
def test_senders_of_one_model_work_in_any_number_of_threads(layers: tuple[int, ...]) -> None:
    """Encodings by eight threads and two senders give the messages that they give one by one; a thread that calls the
    model itself meanwhile gets what it gets alone, and its calls are in no message."""
    model = build("llama", len(TOKENIZER), layers=4)
    senders = sender_of(model, TOKENIZER, layers), sender_of(model, TOKENIZER, (1, 3))
    expected = [[sender.encode(text) for text in TEXTS] for sender in senders]
    ids = torch.tensor([TOKENIZER(TEXTS[0]).input_ids])

    def call() -> tuple[Any, Any]:
        with torch.no_grad():
            return model(ids).logits, model.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=1)

    alone, done, called, failed = call(), Event(), 0, list[BaseException]()

    def bystander() -> None:
        nonlocal called
        try:
            while not done.is_set() or not called:
                assert all(map(torch.equal, alone, call()))
                called += 1
        except BaseException as error:
            failed.append(error)

    def work(worker: int) -> list[bool]:
        sender, messages = senders[worker % 2], expected[worker % 2]
        order = [(worker + step) % len(TEXTS) for step in range(2 * len(TEXTS))]
        return [messages[number] == sender.encode(TEXTS[number]) for number in order]

    thread = Thread(target=bystander)
    thread.start()
    try:
        with ThreadPoolExecutor(THREADS) as pool:
            right = [each for some in pool.map(work, range(THREADS)) for each in some]
    finally:
        done.set()
        thread.join()
    assert [] == failed
    assert called
    assert [True] * (THREADS * 2 * len(TEXTS)) == right
    assert 0 == hooks_of(model)


def test_a_hook_that_comes_or_goes_reads_nothing_of_others() -> None:
    """torch forgets the named arguments of a hook that another thread adds or takes away during a call: such a call is
    somebody else's, so it is left alone."""
    sender = sender_of(build("llama", len(TOKENIZER)), TOKENIZER)
    with sender.capture() as capture:
        sender.model(torch.tensor([[5, 6, 7]]))
        for part in sender.model.modules():
            assert all(hook(part, (torch.zeros(1, 9, 32),)) is None for hook in part._forward_pre_hooks.values())
    assert 3 == sender.read(capture).tokens


@pytest.mark.usefixtures("restless")
def test_receivers_answer_in_any_number_of_threads() -> None:
    """Answers, scores and caches of many threads at a time are those of one."""
    receiver = Receiver(build("llama", len(TOKENIZER)), TOKENIZER, PlainCodec(), allow_unmeasured=True)
    memories = [spelled(receiver.model, text) for text in TEXTS[:4]]

    def ask(number: int) -> Any:
        memory = memories[number % len(memories)]
        return (
            receiver.generate(memory, "Who?", max_new_tokens=5),
            receiver.generate(memory, "Who?", max_new_tokens=5, cache=receiver.prefill(memory)),
            receiver.generate(memory, "Who?", max_new_tokens=5, cache_implementation="static"),
            receiver.answers([(memory, "Who?"), (memory, "Where?")], max_new_tokens=5),
            receiver.score([(memory, "Who?", "Mara"), (memory, "Where?", "Oslo")]),
        )

    expected = [ask(number) for number in range(len(memories))]
    with ThreadPoolExecutor(THREADS) as pool:
        for number, got in enumerate(pool.map(ask, range(2 * THREADS))):
            assert expected[number % len(memories)] == got


def keys_values(seed: int, tokens: int = 40) -> KeysValues:
    """Keys and values of two layers, two heads and sixteen dimensions, drawn."""
    drawn = torch.manual_seed(seed)
    keys, values = ([torch.randn(2, tokens, 16, generator=drawn) for _ in range(2)] for _ in range(2))
    return KeysValues(tuple(keys), tuple(values), tokens, 0, ((1.0, 0.1),) * 2, (0, 0))


SHAPE = Shape.of(keys_values(0), 100)


@pytest.fixture(scope="module")
def codecs(small, models: Models) -> dict[str, Codec]:
    """Every built-in codec."""
    torch.manual_seed(0)
    question = Question("Who?", "Mara", facts=(("who", "Mara"),))
    facts = FactsCodec.untrained_for(models, TINY, [Case(f"{n}", "Mara owns it.", (question,)) for n in range(9)])
    made: tuple[Codec, ...] = (
        *(kind(20_000) for kind in (PlainCodec, HeadCodec, TailCodec)),
        ZstdCodec.fit([f"Case {number} is owned by Mara, since {number * 7} days." for number in range(300)], 2000),
        LmCodec(make_model(300), TOKENIZER, 60),
        small.codec,
        FactsCodec.from_network(facts.eval(), small.codec.trained.sender, small.codec.trained.receiver),
        *(kind(small.codec.trained.receiver, SHAPE) for kind in (ExactCodec, Int8Codec, Int4Codec)),
        CompactCodec(small.codec.trained.receiver, SHAPE, ["Who?"], 0.5),
        TraceCodec(small.codec.trained.receiver, small.codec.trained.receiver, SHAPE, Plan()),
        AlignedCodec(
            Ends(small.codec.trained.receiver, small.codec.trained.receiver, SHAPE, SHAPE, "float32"),
            [(0, 1), (1,)],
            {
                f"{part}.{layer}": torch.randn(shape)
                for layer, width in enumerate((128, 64))
                for part, shape in (("weight", (width, 64)), ("bias", (64,)))
            },
        ),
        PcaCodec.fit_caches(
            small.codec.trained.receiver, SHAPE, [keys_values(seed, 80) for seed in range(4)], bytes_per_token=9
        ),
    )
    return {each.spec.name: each for each in made}


def traced(kv: KeysValues, model: str) -> Trace:
    """Keys and values as one agent's trace."""
    content = content_of(kv, range(kv.tokens))
    return Trace(kv=kv, segments=(Segment("planner", model, kv.tokens, 0, "soft", "", content),))


@pytest.mark.usefixtures("restless")
@pytest.mark.parametrize(
    "name", [name for name in codec_names() if codec_class(name).__module__.startswith("ilcp_codecs.")]
)
def test_a_codec_works_in_any_number_of_threads(codecs: dict[str, Codec], name: str) -> None:
    """Of every installed codec, payloads and memories of eight threads are those of one."""
    codec = codecs[name]
    hidden = codec.config.sender_hidden if codec.layers else 1  # type: ignore[attr-defined]
    states = [torch.randn(len(codec.layers), 5, hidden, generator=torch.manual_seed(each)) for each in range(4)]
    length = 1 if name == "text-lm" else 100
    texts = [" ".join(f"Case {at * step * 7919 % 10007} is Mara's." for step in range(length)) for at in range(1, 5)]
    drawn = [keys_values(seed) for seed in range(4)]
    looked = [tuple(keys[..., 0].abs() for keys in kv.keys) for kv in drawn]
    contexts = [
        Context(text, each, kv=kv, attended=most)
        for text, each, kv, most in zip(texts, states, drawn, looked, strict=True)
    ]
    if name == "trace":
        contexts = [traced(kv, codec.trained.sender.digest().hex()) for kv in drawn]
    payloads = [codec.encode(context) for context in contexts]
    memories = [held(codec.decode(payload)) for payload in payloads]
    decodes, encodes = (1, 1) if name == "text-lm" else (150, 3)

    def work(worker: int) -> None:
        for step in range(decodes):
            number = (worker + step) % len(contexts)
            assert memories[number] == held(codec.decode(payloads[number]))
        for number in range(encodes):
            assert payloads[number] == codec.encode(contexts[number])

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(work, range(THREADS)))


def test_captures_of_several_threads_hold_their_own_calls() -> None:
    """Workers that each capture what they call on one model get their own tokens, at the same time."""
    sender = sender_of(build("llama", len(TOKENIZER)), TOKENIZER)
    expected = [sender.read(text).text for text in TEXTS]

    def capture(number: int) -> str | None:
        with sender.capture() as captured:
            sender.model(torch.tensor([TOKENIZER(TEXTS[number]).input_ids]))
        return sender.read(captured).text

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(lambda _: Event().wait(0.05), range(THREADS)))  # starts all workers before the first capture
        assert expected == list(pool.map(capture, range(len(TEXTS))))
    assert 0 == hooks_of(sender.model)


def test_a_text_coded_by_another_thread_meanwhile_is_not_taken_for_ones_own() -> None:
    """The language model's codec keeps the latest text; what it compares is what it returns."""
    codec = LmCodec(make_model(300), TOKENIZER, 400)
    mine, other = codec.encode(Context(text="Mara")), codec.encode(Context(text="Oslo"))

    class Interrupted(str):
        """A text that another thread's is coded beside, just when it is compared."""

        __hash__ = str.__hash__

        def __eq__(self, text: object) -> bool:
            codec.encode(Context(text="Oslo"))
            return str.__eq__(self, text)

    assert mine != other
    assert mine == codec.encode(Context(text="Mara"))
    assert mine == codec.encode(Context(text=Interrupted("Mara")))


def test_a_mode_comes_back_when_the_last_call_has_ended() -> None:
    """Calls that overlap, of a model and of a part of it, keep evaluation mode while one needs it; then every module is
    in the mode that it had."""
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout(), nn.BatchNorm1d(3).eval()))
    before = [part.training for part in model.modules()]
    first, second = evaluating(model), evaluating(model[1])
    first.__enter__()
    second.__enter__()
    assert not any(part.training for part in model.modules())
    first.__exit__(None, None, None)
    assert [True, True, False, False, False] == [part.training for part in model.modules()]
    second.__exit__(None, None, None)
    assert before == [part.training for part in model.modules()]


def test_a_fork_while_another_thread_reads_does_not_hang_the_child() -> None:
    """The child has locks of its own."""
    sender = sender_of(make_model(300), TOKENIZER)
    reading, done = Event(), Event()

    def read() -> None:
        with lock_of(backbone(sender.model)):
            reading.set()
            done.wait(60)

    thread = Thread(target=read)
    thread.start()
    assert reading.wait(60)
    child = os.fork()
    if child == 0:
        signal.alarm(10)
        with lock_of(backbone(sender.model)), evaluating(sender.model):
            os._exit(0)
    done.set()
    thread.join()
    assert 0 == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
