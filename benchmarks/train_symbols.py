"""Trains the symbol model of the split graphs from scratch: a Llama of two layers that follows edges, word by word.

    python benchmarks/train_symbols.py --out runs/symbols-1 --seed 1

Two thirds of the rows are what the two agents read, and the questions with their answers; in half of them each part is
followed by a walk along the edges known so far, and in half all nodes that can be reached stand before the questions. A
third are many walks from anywhere. Walks are drawn at random, so behind "from ma" the model learns to say each node
that ma leads to alike, and "end" where none is known. In the first part of the schedule a third of the rows are random
words said twice instead: they form the look-up.
"""

import argparse
import json
import random
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ilcp.tasks.graphs import NODES, Graph, graphs

WORDS = ("<pad>", "<s>", "</s>", "<unk>", ";", "from", "end", "or", "?", "all")
HOPS = (1, 2, 3, 4)
IGNORE = -100
BATCH = 64
WALK, WALKS = 5, 8
EARLY = 0.3  # of the steps


def build_tokenizer() -> PreTrainedTokenizerFast:
    words = {word: number for number, word in enumerate((*WORDS, *NODES))}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def walk(graph: Graph, agents: int, rng: random.Random, at: str) -> list[str]:
    """A walk from a node along what so many agents know, to where it ends."""
    known = [edge for own in graph.edges[:agents] for edge in own]
    said: list[str] = []
    while len(said) < WALK:
        nexts = [b for a, b in known if a == at]
        if not nexts:
            return [*said, "end"]
        at = rng.choice(nexts)
        said.append(at)
    return said


def reached(graph: Graph, rng: random.Random) -> list[str]:
    """All nodes that the root leads to, the nearest first."""
    said: list[str] = []
    for nodes in graph.case.frontier[-1]:
        said += rng.sample(nodes, len(nodes))
    return ["all", *said, "end"]


def row(graph: Graph, rng: random.Random, *, walks: bool, listed: bool) -> tuple[list[str], list[bool]]:
    """The words of a row, and which of them are learned."""
    words, learned = ["<s>"], [False]
    for number, text in enumerate(graph.case.context.split("\n\n"), start=1):
        own = text.split()
        words += own
        learned += [False] * len(own)
        if walks:
            said = walk(graph, number, rng, graph.root)
            words += said
            learned += [True] * len(said)
    if listed:
        said = reached(graph, rng)
        words += said
        learned += [False] + [True] * (len(said) - 1)
    for question in rng.sample(graph.case.questions, len(graph.case.questions)):
        asked = question.text.split()
        words += [*asked, question.answer, "</s>"]
        learned += [False] * len(asked) + [True, True]
    return words, learned


def walks(graph: Graph, rng: random.Random) -> tuple[list[str], list[bool]]:
    """Many walks from anywhere, behind all edges."""
    words = ["<s>", *(word for own in graph.edges for a, b in own for word in (a, b, ";"))]
    learned = [False] * len(words)
    sources = sorted({a for own in graph.edges for a, _ in own})
    for at in rng.sample(sources, min(WALKS, len(sources))):
        said = walk(graph, 2, rng, at)
        words += ["from", at, *said]
        learned += [False, False, *([True] * len(said))]
    return words, learned


def twice(rng: random.Random) -> tuple[list[str], list[bool]]:
    """Random words said twice, of which the second time is learned."""
    said = [rng.choice(NODES) for _ in range(rng.randint(10, 40))]
    return ["<s>", *said, *said], [False] * (len(said) + 2) + [True] * (len(said) - 1)


def batch(
    number: int, seed: int, ids: dict[str, int], rng: random.Random, *, early: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    rows = []
    for at, graph in enumerate(graphs("train", seed, BATCH, start=number * BATCH, hops=HOPS)):
        if at % 3 == 0:
            rows.append(walks(graph, rng))
        elif at % 3 == 1 and early:
            rows.append(twice(rng))
        else:
            rows.append(row(graph, rng, walks=rng.random() < 0.5, listed=rng.random() < 0.5))
    longest = max(len(words) for words, _ in rows)
    tokens, labels = torch.zeros(BATCH, longest, dtype=torch.long), torch.full((BATCH, longest), IGNORE)
    for at, (words, learned) in enumerate(rows):
        tokens[at, : len(words)] = torch.tensor([ids[word] for word in words])
        known = torch.tensor(learned)
        labels[at, : len(words)][known] = tokens[at, : len(words)][known]
    return tokens, labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--hidden", type=int, default=192)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    tokenizer = build_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=options.hidden,
        intermediate_size=2 * options.hidden,
        num_hidden_layers=2,
        num_attention_heads=6,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.01)
    rng, ids, began = random.Random(f"rows {options.seed}"), tokenizer.get_vocab(), time.monotonic()
    running: dict[str, float] = {}
    for step in range(options.steps):
        rate = min(1.0, (step + 1) / 100) * (0.05 + 0.95 * (1 - step / options.steps))
        for group in optimiser.param_groups:
            group["lr"] = 1e-3 * rate
        tokens, labels = batch(step, options.seed, ids, rng, early=step < EARLY * options.steps)
        logits = model(tokens[:, :-1]).logits.float()
        wanted = labels[:, 1:]
        known = wanted != IGNORE
        losses = F.cross_entropy(logits[known], wanted[known], reduction="none")
        loss = losses.mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        answers = (tokens[:, :-1] == ids["?"])[known]
        right = logits.argmax(-1)[known] == wanted[known]
        now = {
            "loss": loss.item(),
            "answers": right[answers].float().mean().item(),
            "walk": losses[~answers].mean().item(),
        }
        running = {name: 0.98 * running.get(name, value) + 0.02 * value for name, value in now.items()}
        if (step + 1) % 100 == 0:
            print(
                json.dumps(
                    {
                        "step": step + 1,
                        "s": round(time.monotonic() - began),
                        **{k: round(v, 4) for k, v in running.items()},
                    }
                ),
                flush=True,
            )
    model.save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)


if __name__ == "__main__":
    main()
