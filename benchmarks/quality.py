"""What the embedded pair's message is worth on test documents, in every arm, beside its controls.

    python benchmarks/quality.py                      # writes benchmarks/results/quality.json

Test documents are of a seed and split that no training and no choice has seen. At most four look-ups, three joins, two
absent attributes and one code are asked per document.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import torch

from ilcp import Sender
from ilcp.measure import Computed, Measured, Quality, provenance, quality
from ilcp.measure.quality import thin
from ilcp.pair import Pair, load_pair
from ilcp.tasks import case_files
from ilcp_codecs.text import HeadCodec, TailCodec, ZstdCodec

RESULTS = Path(__file__).parent / "results"
PER_KIND = {"lookup": 4, "join": 3, "absent": 2, "code": 1}
DICTIONARY_DOCUMENTS = 4000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=500)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--codec", type=Path, help="another codec's folder for the embedded pair")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, default=RESULTS / "quality.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    pair = load_pair(args.codec)
    cases = [thin(case, PER_KIND, i) for i, case in enumerate(case_files("test", args.seed, args.documents))]
    zstd = ZstdCodec.fit(case.context for case in case_files("train", args.seed, DICTIONARY_DOCUMENTS))
    texts = {"head": HeadCodec(), "tail": TailCodec(), "zstd": zstd}
    scores = quality(pair.sender, pair.receiver, cases, text_codecs=texts, seed=args.seed, progress=True)
    trained = pair.sender.codec.trained
    figures = sizes(pair, cases[0].context) | claims(scores, len(cases[0].questions[0].choices or ()))
    record = {
        "n_documents": args.documents,
        "seed": args.seed,
        "entropy_bits": asdict(
            Measured(sum(case.entropy_bits or 0 for case in cases) / len(cases), "bits", len(cases))
        ),
        "arms": scores.to_dict(),
        "claims": {name: asdict(figure) for name, figure in figures.items()},
        "provenance": provenance(sender=asdict(trained.sender), receiver=asdict(trained.receiver)),
    }
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    for name, figure in figures.items():
        print(f"{name}: {figure}")


def sizes(pair: Pair, text: str) -> dict[str, Measured | Computed]:
    """A whole message, bare and sealed."""
    sealed = Sender(pair.sender.model, pair.sender.tokenizer, pair.sender.codec, key=bytes(32))
    return {
        "message, everything counted": Measured(len(pair.sender.encode(text)), "B", 1),
        "the same, sealed": Measured(len(sealed.encode(text)), "B", 1),
    }


def claims(scores: Quality, pool: int) -> dict[str, Measured | Computed]:
    """The figures that the README states, each with its interval."""
    full = max(int(arm.split("-")[1]) for arm in scores.exact if arm.startswith("head-"))
    texts = [arm for arm in scores.exact if arm.endswith(f"-{full}")]
    best = max(texts, key=lambda arm: scores.mean(arm, "lookup").value)
    return {
        "full text, look-up": scores.mean("text", "lookup"),
        "full text, absent": scores.mean("text", "absent"),
        "nothing, look-up": scores.mean("none", "lookup"),
        "chance, look-up": Computed(1 / pool, "", "1 / values in the pool", {"values": pool}),
        "nothing, look-up, nats": scores.mean("none", "lookup", of="nats"),
        "recovery, look-up": scores.recovery("message", "lookup"),
        "recovery, join": scores.recovery("message", "join"),
        "absent answered unknown": scores.mean("message", "absent"),
        "absent, message minus full text": scores.difference("message", "text", "absent"),
        "other case's message minus nothing, look-up": scores.difference("other", "none", "lookup"),
        **{
            f"recovery at {arm.split('-')[1]} bytes{text}, look-up": scores.recovery(kind + arm.split("-")[1], "lookup")
            for arm in scores.exact
            if arm.startswith("message-")
            for text, kind in (("", "message-"), (" of text (zstd)", "zstd-"))
        },
        "exact codes": scores.mean("message", "code"),
        "content gain, look-up": scores.content_gain("lookup"),
        "content gain, look-up, nats": scores.content_gain("lookup", of="nats"),
        f"message minus {best}, the best text of equal bytes, look-up": scores.difference("message", best, "lookup"),
    }


if __name__ == "__main__":
    main()
