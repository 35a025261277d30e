"""Writers: frozen agents that read their part behind a trace, and then take latent steps.

::

    trace so far, ids of the prompt --backbone--> last state --rule--> next input --backbone--> ... n times

No token is chosen and no gradient is kept. What is appended are keys and values: of the prompt, then one of each step.
"""

import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ilcp.codec.registry import codec_class
from ilcp.errors import ConfigError, DecodeError, EncodeError, IdentityError
from ilcp.handoff import Receiver
from ilcp.inputs import listed, require_text
from ilcp.models.adapter import plain, unwrapped
from ilcp.models.fingerprint import Known, identify
from ilcp.models.forward import embed, require_room
from ilcp.models.kv import placed, taken
from ilcp.models.prompt import continuation, layout
from ilcp.models.reading import backbone, tapped
from ilcp.models.rope import ropes_of
from ilcp.models.support import forward_takes, require_receiver, require_sender, require_tokenizer
from ilcp.nn.inference import inference
from ilcp_codecs.trace.rules import Rule
from ilcp_codecs.trace.trace import MAX_ROLE, MAX_STEPS, Segment, Trace, content_of, held_of

__all__ = ["STEPS", "TEXT_HERE", "Behind", "Writer", "cut", "write_rows", "written"]

STEPS, RULE = 0, "soft"  # where facts are asked, steps bring nothing (benchmarks/README.md); by this rule most
TEXT_HERE = "{text}"  # in a writer's prompt
SAY = "Summarise the text above."
CUTS = ("\n\n", "\n", ". ", " ")  # between the parts of a text, the coarsest first


class Behind:
    """Runs a model's layers behind a cache, which grows: several rows of equal length, without logits."""

    def __init__(self, model: Any, cache: Any, position: int = 0):
        self.base, self.cache, self.position = backbone(model), cache, position
        self._places = forward_takes(self.base, "position_ids")

    def __call__(self, embeds: Tensor) -> Tensor:
        """Returns the last token's last state ``"rows hidden"`` of inputs ``"rows tokens hidden"``."""
        rows, tokens, _ = embeds.shape
        end = self.position + tokens
        places = torch.arange(self.position, end, device=embeds.device).expand(rows, -1)
        out = self.base(
            inputs_embeds=embeds,
            attention_mask=torch.ones(rows, end, dtype=torch.long, device=embeds.device),
            past_key_values=self.cache,
            use_cache=True,
            **({"position_ids": places} if self._places else {}),
        )
        self.position = end
        state: Tensor = out.last_hidden_state[:, -1]
        return state

    def steps(self, state: Tensor, rule: Rule, steps: int) -> list[Tensor]:
        """Takes latent steps; returns the state before the first one and after each, ``"rows hidden"``."""
        states = [state]
        for _ in range(steps):
            states.append(self(rule(states[-1])[:, None]))
        return states


def write_rows(
    model: Any, prefix: Sequence[int], agents: Sequence[Tensor], rule: Rule, steps: int
) -> tuple[Any, list[list[Tensor]]]:
    """Returns a cache of several traces side by side, every position of every layer, and the states of all steps.

    Gradients flow where they are wanted: into the rule, through the steps and what is read behind them.

    Args:
        prefix: ids that stand before a trace; their places are in the cache.
        agents: for each agent the ids of its prompts ``"rows tokens"``, of equal length.
    """
    from transformers import DynamicCache

    rows, cache = agents[0].shape[0], DynamicCache()
    run, states = Behind(model, cache), []
    if prefix:
        run(embed(model, prefix).expand(rows, -1, -1))
    for ids in agents:
        states.append(run.steps(run(model.get_input_embeddings()(ids.to(model.device))), rule, steps))
    return cache, states


class Writer:
    """An agent that writes to a trace.

    Args:
        model: a transformers causal language model whose keys can be turned (RoPE); its weights never change.
        tokenizer: the model's tokenizer.
        role: the agent's name, on each of its segments.
        steps: latent steps behind each prompt, unless ``write`` says otherwise; ``ilcp trace tune`` finds how many.
        rule: how a state becomes the next input, one of ``ilcp_codecs.trace.RULES``; or a ``Rule``, such as a trained
            codec's.
        prompt: what the agent reads: ``{text}`` stands for what it is given.
        layers: whose states are kept in the trace, for a codec that reads states (``codec.layers``); none for caches.

    Raises:
        ConfigError: one of them is not what its name says, or the model keeps no such keys and values.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        role: str,
        steps: int = STEPS,
        rule: str | Rule = RULE,
        prompt: str = TEXT_HERE,
        layers: Sequence[int] = (),
    ):
        require_tokenizer(tokenizer, "writer")
        self.model = plain(model).eval()
        require_sender(self.model)  # which says what is no model at all
        require_receiver(self.model)
        role = require_text(role, "a writer's role", error=ConfigError)
        if len(role) > MAX_ROLE or not role.isprintable():
            raise ConfigError(f"expected a role of at most {MAX_ROLE} printable characters, got {role[:MAX_ROLE]!r}")
        if require_text(prompt, "a writer's prompt", error=ConfigError).count(TEXT_HERE) != 1:
            raise ConfigError(f"expected a prompt with {TEXT_HERE} in it once, got {prompt!r}")
        self.tokenizer, self.role, self.prompt = tokenizer, role, prompt
        if not all(type(layer) is int for layer in layers):
            raise ConfigError(f"expected layers as numbers, such as codec.layers, got {layers!r}")
        self.steps, self.layers = _count(steps), tuple(layers)
        self.rule = rule if isinstance(rule, Rule) else Rule(rule, self.model)
        self.identity = identify(self.model, tokenizer)
        self._known = Known("writer", [self.identity])
        self._ropes = ropes_of(self.model)
        if not all(self._ropes):
            raise ConfigError(
                f"expected a writer whose keys can be turned (RoPE), got {type(unwrapped(self.model)).__name__}"
            )
        self._prefix = tuple(layout(tokenizer, "").prefix)

    def write(self, text: str, on: Trace | None = None, *, steps: int | None = None) -> Trace:
        """Returns the trace with one segment more: what this agent reads, and its steps.

        Args:
            text: stands in the prompt; it is read behind all that ``on`` holds.
            on: what other agents wrote; None to begin.
            steps: in place of the writer's own.

        Raises:
            EncodeError: there is no text, or the trace leaves no room for it in the model's window.
            IdentityError: the trace is another model's; or the model is no longer as this writer was made with it.
            DecodeError: its keys and values are not those that its writers computed.
            ConfigError: the number of steps is none.
        """
        self._known.require(self.model, self.tokenizer)
        wanted = self.steps if steps is None else _count(steps)
        ids = continuation(self.tokenizer, self.prompt.replace(TEXT_HERE, require_text(text)))[0]
        before = self._before(on)
        held = 0 if on is None else on.kept.tokens
        require_room(
            self.model,
            len(self._prefix) + held + len(ids),
            wanted + 1,
            what="a trace, a text behind it and its steps",
            way_out="write less, or begin a new trace",
        )
        return self._written(ids, wanted, on, before)

    def say(self, text: str, on: str = "", *, tokens: int, instruction: str = SAY) -> str:
        """Returns what the agent says in place of a trace, for a pipeline of texts of the same shape.

        Args:
            text: what it reads, behind ``on``, what those before it said.
            tokens: it says at most.
            instruction: it is asked, behind the text.

        Raises:
            EncodeError: there is no text, or it leaves no room in the model's window.
            IdentityError: the model is no longer the one that this writer was made with.
        """
        self._known.require(self.model, self.tokenizer)
        reader = Receiver(self.model, self.tokenizer, codec_class("text-head")(), allow_unmeasured=True)
        context = "\n".join(part for part in (on, self.prompt.replace(TEXT_HERE, require_text(text))) if part)
        return reader.generate(None, instruction, context=context, max_new_tokens=tokens).strip()

    def _before(self, on: Trace | None) -> list[Any]:
        """Returns what stands before the segment to come, if it is this model's."""
        rows: list[Any] = [embed(self.model, self._prefix)] if self._prefix else []
        if on is None:
            return rows
        if not isinstance(on, Trace):
            raise ConfigError(f"expected a Trace to write on, got {type(on).__name__}: open a message with its codec")
        other = next((segment for segment in on.segments if segment.model != self.identity.digest().hex()), None)
        if other is not None:
            raise IdentityError(f"expected a trace of this model, got a segment of another's by {other.role!r}")
        on.require_whole()
        return [*rows, on.kept]

    @inference(lambda writer: unwrapped(writer.model))
    def _written(self, ids: Sequence[int], steps: int, on: Trace | None, before: list[Any]) -> Trace:
        from transformers import DynamicCache

        start = len(self._prefix)
        if on is not None:
            cache = placed(self.model, before)
        else:
            cache = DynamicCache(config=self.model.config)
            if before:
                Behind(self.model, cache)(before[0][None])
        kept: list[list[Tensor]] = [[] for _ in self.layers]
        with tapped(self.model, self.layers, lambda place, state: kept[place].append(state[0].detach().clone())):
            run = Behind(self.model, cache, cache.get_seq_length())
            run.steps(run(embed(self.model, ids)[None]), self.rule, steps)
        kv = taken(cache, self.model, start, self._ropes)
        places = range(kv.tokens - len(ids) - steps, kv.tokens)
        segment = Segment(
            role=self.role,
            model=self.identity.digest().hex(),
            prompt_tokens=len(ids),
            steps=steps,
            rule=self.rule.name,
            before="" if on is None else on.digest,
            content=content_of(kv, places),
            held=held_of(kv),
            on="" if on is None else on.carried,
        )
        states = torch.stack([torch.cat(each) for each in kept]) if kept else None
        if states is not None and on is not None:
            if on.states is None or on.states.shape[0] != states.shape[0]:
                raise EncodeError("expected a trace that kept states of as many layers, got another: write it so too")
            states = torch.cat([on.states.to(states), states], 1)
        segments = (*(() if on is None else on.segments), segment)
        try:
            return Trace(kv=kv, states=states, segments=segments, carried="" if on is None else on.carried)
        except DecodeError as error:
            raise EncodeError(f"expected room for one segment more, got: {error}") from error


def cut(text: str, parts: int) -> list[str]:
    """Returns a text in so many parts, as its agents read it: cut between paragraphs, else lines, sentences or words.

    Where it has exactly so many paragraphs, each is a part.

    Raises:
        EncodeError: it has fewer words than that.
    """
    if type(parts) is not int or parts < 1:
        raise ConfigError(f"expected at least one part, got {parts!r}")
    require_text(text)
    for between in CUTS:
        pieces = [piece for piece in re.split(f"(?<={re.escape(between)})", text) if piece.strip()]
        if len(pieces) >= parts:
            ends = [round(len(pieces) * number / parts) for number in range(parts + 1)]
            return ["".join(pieces[a:b]).strip() for a, b in pairwise(ends)]
    raise EncodeError(f"expected a text of at least {parts} words to share among as many agents, got {text[:40]!r}")


def written(writers: Iterable[Writer], texts: Iterable[str], on: Trace | None = None) -> Trace:
    """Returns the trace that writers make in turn, each of its own text.

    Raises:
        ConfigError: there is none, or not a text for each.
        EncodeError, IdentityError: as ``Writer.write``.
    """
    agents, parts = list(writers), listed(texts, "texts in a list", "text", error=ConfigError)
    if not agents or len(agents) != len(parts):
        raise ConfigError(f"expected a text for each of one or more writers, got {len(parts)} for {len(agents)}")
    for writer, text in zip(agents, parts, strict=True):
        on = writer.write(text, on)
    assert on is not None
    return on


def _count(steps: int) -> int:
    if type(steps) is not int or not 0 <= steps <= MAX_STEPS:
        raise ConfigError(f"expected 0 to {MAX_STEPS} steps, got {steps!r}")
    return steps
