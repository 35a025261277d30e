"""Measures the limit by which the embedded pair tells a dossier from a text of another kind.

    python benchmarks/domain_limit.py                 # writes ilcp/embedded/domain.json

The limit is the largest surprise over validation dossiers, short and long, with a margin; what texts of another kind
reach is the test's business.
"""

import json

from ilcp.embedded import load_pair
from ilcp.embedded.domain import LIMIT_FILE, surprise_bits_per_byte
from ilcp.measure import provenance
from ilcp.tasks import case_files

SEED = 3
PER_LENGTH = 100
MARGIN = 1.25


def main() -> None:
    sender = load_pair().sender
    texts = [
        case.context for facts in (2, 8, 17, 20) for case in case_files("validation", SEED, PER_LENGTH, facts=facts)
    ]
    surprises = sorted(surprise_bits_per_byte(sender, text) for text in texts)
    record = {
        "limit_bits_per_byte": round(MARGIN * surprises[-1], 3),
        "formula": "margin * max over validation dossiers",
        "margin": MARGIN,
        "largest_bits_per_byte": surprises[-1],
        "median_bits_per_byte": surprises[len(surprises) // 2],
        "n": len(surprises),
        "seed": SEED,
        "provenance": provenance(),
    }
    LIMIT_FILE.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"limit {record['limit_bits_per_byte']} bits per byte (largest of {len(surprises)}: {surprises[-1]:.3f})")


if __name__ == "__main__":
    main()
