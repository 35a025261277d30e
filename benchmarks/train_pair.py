"""Trains the embedded pair from scratch: two small Llamas that answer questions about a dossier they read.

    python benchmarks/train_pair.py sender   --out runs/sender   --seed 1
    python benchmarks/train_pair.py receiver --out runs/receiver --seed 2

The two differ in width, depth, weights, tokenizer family and seed. Each row of a batch is one conversation: a document,
then a few questions with their answers. Three things make an in-context look-up form within minutes:

- short documents among the long ones, some of which state all attributes of one pool and nothing else, so that only
  the binding of value to attribute answers (without them the model stops at "some value of the right pool"),
- batches of random values said twice for the first third of the steps (they form the induction circuit),
- many questions per document.

Questions without any document are trained against the answers of documents nobody showed, so that a receiver without a
message answers with the prior of the pool.
"""

import argparse
import json
import math
import random
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional as F
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ilcp.models.prompt import text_ids
from ilcp.tasks import Case, case_files
from ilcp.tasks.case_files import PRESENT, compose
from ilcp.tasks.dossier import ATTRIBUTES, POOLS
from ilcp.training.precision import faster_in_bfloat16

SPECIAL = ["<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>"]
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}<|user|>{{ message['content'] }}"
    "{% else %}<|assistant|>{{ message['content'] }}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SHAPES = {
    "sender": dict(hidden_size=192, intermediate_size=384, num_hidden_layers=3, num_attention_heads=6),
    "receiver": dict(hidden_size=128, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4),
}
VOCABULARY = {"sender": 1984, "receiver": 1536}
LATER = 0.35  # of the schedule: from here on, random values are no longer said twice
LM_SHARE = 0.25  # of the rows are also trained to predict the document
IGNORE = -1_000_000


def build_tokenizer(role: str) -> PreTrainedTokenizerFast:
    """Trains a metaspace BPE with byte fallback for the sender, a byte-level BPE for the receiver."""
    if role == "receiver":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.ByteLevel(add_prefix_space=True), pre_tokenizers.Digits(individual_digits=True)]
        )
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        special = SPECIAL
    else:
        tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token=None))
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split("\n", "isolated"),
                pre_tokenizers.Metaspace(prepend_scheme="always"),
                pre_tokenizers.Punctuation(),
                pre_tokenizers.Digits(individual_digits=True),
            ]
        )
        tokenizer.decoder = decoders.Sequence(
            [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="always"), decoders.Fuse()]
        )
        alphabet = []
        special = SPECIAL + [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY[role], special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    if role == "sender":  # the byte tokens are fallbacks, not control tokens that a text could spell
        record = json.loads(tokenizer.to_str())
        record["added_tokens"] = [token for token in record["added_tokens"] if token["content"] in SPECIAL]
        tokenizer = Tokenizer.from_str(json.dumps(record))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<|user|>", "<|assistant|>"],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def _corpus():
    for case in case_files("train", seed=0, n=3000):
        yield case.context
        for question in case.questions:
            yield question.text
            yield question.answer


class Rows:
    """Draws training rows: ``(ids, labels, weights)`` of one conversation each."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, seed: int):
        self.tokenizer = tokenizer
        self.rng = random.Random(seed)
        self.seed = seed
        self.drawn = 0
        self.cache: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        ids = self.cache.get(text)
        if ids is None:
            ids = self.cache[text] = self.tokenizer.encode(text, add_special_tokens=False)
        return ids

    def case(self, facts: int) -> Case:
        self.drawn += 1
        return next(case_files("train", self.seed, 1, start=self.drawn, facts=facts))

    def clash(self) -> tuple[list[int], list[int]]:
        """Draws a conversation about one or two pools whose attributes are all stated: only binding tells them apart.

        Half of them are about people, whose offices are the joins: the last thing that is learned.
        """
        pools = ["person"] if self.rng.random() < 0.5 else self.rng.sample(sorted(POOLS), self.rng.choice((1, 2)))
        names = [a.name for a in ATTRIBUTES if a.pool in pools]
        self.drawn += 1
        rng = random.Random(f"clash {self.seed} {self.drawn}")
        return self.conversation(compose("clash", rng, self.rng.sample(names, self.rng.randint(2, len(names)))))

    def conversation(self, case: Case) -> tuple[list[int], list[int]]:
        present = [q for q in case.questions if q.kind != "absent"]
        absent = [q for q in case.questions if q.kind == "absent"]
        asked = present + self.rng.sample(absent, min(3, len(absent)))
        self.rng.shuffle(asked)
        ids: list[int] = []
        labels: list[int] = []
        for turn, question in enumerate(asked):
            if turn == 0:
                prompt = list(text_ids(self.tokenizer, case.context, question.text))
                read = self.rng.random() < LM_SHARE  # marked below zero: language-model targets
                labels += [-1 - token if read else IGNORE for token in prompt]
            else:
                prompt = self.bare_prompt(question.text)[1:]  # one conversation begins once
                labels += [IGNORE] * len(prompt)
            answer = self.encode(question.answer) + [self.tokenizer.eos_token_id]
            ids += prompt + answer
            labels += answer
        return ids, labels

    def bare_prompt(self, question: str) -> list[int]:
        key = f"prompt {question}"
        if key not in self.cache:
            self.cache[key] = list(text_ids(self.tokenizer, "", question))
        return self.cache[key]

    def bare_question(self) -> tuple[list[int], list[int]]:
        question = self.rng.choice(self.case(PRESENT).questions)
        prompt = self.bare_prompt(question.text)
        answer = self.encode(question.answer) + [self.tokenizer.eos_token_id]
        return prompt + answer, [IGNORE] * len(prompt) + answer

    def repeated(self) -> tuple[list[int], list[int]]:
        """Draws random values said twice: the second time each is predictable, from what followed it before."""
        values = [self.rng.choice(POOLS[self.rng.choice(sorted(POOLS))]) for _ in range(self.rng.randint(4, 30))]
        half = [token for value in values for token in self.encode(value)]
        return half + half, [IGNORE] * len(half) + half


def collate(rows: list[tuple[list[int], list[int]]], lm_weight: float) -> tuple[torch.Tensor, ...]:
    """Collates rows into right-padded ids, next-token labels and weights, ``"rows tokens"`` each."""
    width = -(-max(len(ids) for ids, _ in rows) // 32) * 32
    ids_batch = torch.zeros(len(rows), width, dtype=torch.long)
    labels_batch = torch.full((len(rows), width), IGNORE)
    weights = torch.zeros(len(rows), width)
    for row, (ids, labels) in enumerate(rows):
        ids_batch[row, : len(ids)] = torch.tensor(ids)
        for column, label in enumerate(labels):
            if label >= 0:
                labels_batch[row, column], weights[row, column] = label, 1.0
            elif label != IGNORE:
                labels_batch[row, column], weights[row, column] = -1 - label, lm_weight
    return ids_batch, labels_batch, weights


def weighted_loss(model: LlamaForCausalLM, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
    ids, labels, weights = batch
    keep = labels[:, 1:] != IGNORE
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=faster_in_bfloat16("cpu")):
        states = model.model(input_ids=ids).last_hidden_state[:, :-1][keep]
        logits = model.lm_head(states)
    losses = F.cross_entropy(logits.float(), labels[:, 1:][keep], reduction="none")
    kept = weights[:, 1:][keep]
    return (losses * kept).sum() / kept.sum()


@torch.no_grad()
def accuracy(model: LlamaForCausalLM, rows: Rows, n: int, seed: int = 5) -> dict[str, float]:
    """Measures exact match by kind of single questions on validation documents, teacher-forced (equal to greedy)."""
    right: dict[str, list[float]] = {}
    model.eval()
    for case in case_files("validation", seed, n):
        for question in rows.rng.sample(case.questions, 10):
            prompt = list(text_ids(rows.tokenizer, case.context, question.text))
            answer = rows.encode(question.answer) + [rows.tokenizer.eos_token_id]
            right.setdefault(question.kind, []).append(0.0)
            logits = model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
            right[question.kind][-1] = float(logits.argmax(-1).tolist() == answer)
    model.train()
    return {kind: round(sum(hits) / len(hits), 4) for kind, hits in sorted(right.items())}


def build_optimizers(model: LlamaForCausalLM, name: str, rate: float) -> list[torch.optim.Optimizer]:
    """Builds AdamW for everything, or Muon for the matrices and AdamW for the rest (embedding, norms)."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    if name == "adamw":
        return [torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.05)]
    rest = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    return [
        torch.optim.Muon(matrices, lr=rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def options() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("role", choices=sorted(SHAPES))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--start", type=Path, help="weights of an earlier run to go on from")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--optimizer", choices=("adamw", "muon"), default="muon")
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--tokens", type=int, default=3000, help="tokens per batch, roughly")
    parser.add_argument("--lm-weight", type=float, default=0.1)
    parser.add_argument("--minutes", type=float, default=1e9, help="the schedule ends here if it is sooner")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def main() -> None:
    args = options()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)

    tokenizer = (
        AutoTokenizer.from_pretrained(args.start, trust_remote_code=False) if args.start else build_tokenizer(args.role)
    )
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **SHAPES[args.role],
    )
    model = LlamaForCausalLM(config) if args.start is None else LlamaForCausalLM.from_pretrained(args.start)
    print(f"{args.role}: {sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters", flush=True)
    optimizers = build_optimizers(model, args.optimizer, args.lr)
    rows = Rows(tokenizer, args.seed)
    started = time.monotonic()
    average: dict[str, float] = {}
    for step in range(args.steps):
        elapsed_min = (time.monotonic() - started) / 60
        progress = max(step / args.steps, elapsed_min / args.minutes)
        if progress >= 1:
            break
        rate = args.lr * min(1, (step + 1) / 100) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))
        kind, batch = draw(rows, progress if args.start is None else max(progress, LATER), args)
        loss = weighted_loss(model, batch)
        if kind != "twice":
            loss = loss + 0.1 * weighted_loss(model, collate([rows.bare_question() for _ in range(8)], 1.0))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad()
        average[kind] = 0.97 * average.get(kind, loss.item()) + 0.03 * loss.item()
        if step % 100 == 0:
            shown = " ".join(f"{name} {value:.3f}" for name, value in sorted(average.items()))
            print(f"step {step} {elapsed_min:.1f} min: {shown}", flush=True)
        if step % 500 == 499:
            print(f"  validation {accuracy(model, rows, 30)}", flush=True)
            save(model, tokenizer, args.out)
    score = accuracy(model, rows, 200)
    print(f"end: step {step} validation {score}")
    save(model, tokenizer, args.out)
    note(args, score, step + 1, started)


def note(args: argparse.Namespace, score: dict[str, float], steps: int, started: float) -> None:
    """Writes beside the model how it was made."""
    command = {name: str(value) for name, value in vars(args).items() if value is not None}
    minutes = round((time.monotonic() - started) / 60, 1)
    record = {"command": command, "validation": score, "steps": steps, "minutes": minutes}
    (args.out / "training.json").write_text(json.dumps(record, indent=2) + "\n")


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Saves weights and tokenizer in a form that transformers 4 reads as well: it knows neither the class name nor the
    list of extra tokens that transformers 5 writes."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    config["additional_special_tokens"] = config.pop("extra_special_tokens", SPECIAL[3:])
    for local in ("backend", "is_local", "local_files_only"):
        config.pop(local, None)
    file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def draw(rows: Rows, progress: float, args: argparse.Namespace) -> tuple[str, tuple[torch.Tensor, ...]]:
    """Draws one batch: random values said twice, short documents, or long ones."""
    dice = rows.rng.random()
    if progress < LATER and dice < 0.25:
        return "twice", collate([rows.repeated() for _ in range(args.tokens // 100)], 1.0)
    dice = rows.rng.random()
    if dice < (0.2 if progress < 0.1 else 0.4 if progress < 0.6 else 0.15):
        return "clash", collate([rows.clash() for _ in range(args.tokens // 200)], args.lm_weight)
    if dice < (0.8 if progress < 0.1 else 0.5 if progress < 0.6 else 0.3):
        facts = rows.rng.choice((2, 4, 6, 8))
        return "short", collate(
            [rows.conversation(rows.case(facts)) for _ in range(args.tokens // 250)], args.lm_weight
        )
    facts = rows.rng.choice((PRESENT, PRESENT, PRESENT, 12, 20))
    return "long", collate([rows.conversation(rows.case(facts)) for _ in range(args.tokens // 560)], args.lm_weight)


if __name__ == "__main__":
    main()
