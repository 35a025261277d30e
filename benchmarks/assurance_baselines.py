"""What others do to notice a change, by payloads' bits: over windows KS on norms, MMD, and a domain classifier; of each
message, the distance to its nearest neighbours among usual ones."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["BASELINES", "WINDOW", "limits", "neighbours", "windows"]

WINDOW = 50
CALM = 200  # windows that a baseline's limit is found from
NEAREST = 5
AMONG = 500  # usual payloads that a window is compared with

Bits = NDArray[np.float64]


def ks_of_norms(usual: Bits, window: Bits) -> float:
    """Kolmogorov and Smirnov's distance of the distances from the mean."""
    middle = usual.mean(0)
    a, b = (np.sort(np.linalg.norm(each - middle, axis=1)) for each in (usual, window))
    places = np.concatenate([a, b])
    return float(
        np.abs(np.searchsorted(a, places, "right") / len(a) - np.searchsorted(b, places, "right") / len(b)).max()
    )


def mmd(usual: Bits, window: Bits) -> float:
    """Maximum mean discrepancy (Gretton et al., 2012), with the median distance as width of a Gaussian kernel."""
    usual = usual[:AMONG]
    width = 2 * usual.shape[1]  # of the squared distance of two payloads with nothing in common

    def kernel(a: Bits, b: Bits) -> Bits:
        squared = (a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T
        return np.exp(-squared / width)

    own, other = kernel(window, window), kernel(usual, usual)
    np.fill_diagonal(own, 0)
    np.fill_diagonal(other, 0)
    m, n = len(window), len(usual)
    return float(own.sum() / m / (m - 1) + other.sum() / n / (n - 1) - 2 * kernel(window, usual).mean())


def domain_classifier(usual: Bits, window: Bits) -> float:
    """A ridge classifier learns half of the window apart from usual payloads; how well it tells the other half."""
    usual = usual[:AMONG]
    half, middle = len(window) // 2, len(usual) // 2
    x = np.concatenate([usual[:middle], window[:half]])
    y = np.concatenate([-np.ones(middle) / middle, np.ones(half) / half]) * len(x) / 2
    mean = x.mean(0)
    centred = x - mean
    weights = centred.T @ np.linalg.solve(centred @ centred.T + 100 * np.eye(len(x)), y)
    a, b = (usual[middle:] - mean) @ weights, (window[half:] - mean) @ weights
    return float((b[:, None] > a).mean())


BASELINES: dict[str, Callable[[Bits, Bits], float]] = {
    "KS on norms": ks_of_norms,
    "MMD": mmd,
    "domain classifier": domain_classifier,
}


def limits(payloads: Sequence[bytes], seed: int) -> dict[str, Any]:
    """Returns usual payloads as bits, and the limit of each baseline that 1 % of windows in distribution exceed."""
    bits = _bits(payloads)
    usual, rest = bits[: len(bits) // 2], bits[len(bits) // 2 :]
    drawn = np.random.default_rng(seed)
    calm = [rest[drawn.choice(len(rest), WINDOW, replace=False)] for _ in range(CALM)]
    found = {name: float(np.quantile([of(usual, each) for each in calm], 0.99)) for name, of in BASELINES.items()}
    return {"usual": usual, "limits": found, "drawn": drawn}


def windows(payloads: Sequence[bytes], known: dict[str, Any]) -> dict[str, float]:
    """Returns, for each baseline, the share of 50 windows of payloads that exceed its limit."""
    bits = _bits(payloads)
    some = [bits[known["drawn"].choice(len(bits), WINDOW, replace=False)] for _ in range(50)]
    return {
        name: float(np.mean([of(known["usual"], each) > known["limits"][name] for each in some]))
        for name, of in BASELINES.items()
    }


def neighbours(payloads: Sequence[bytes], known: dict[str, Any]) -> Bits:
    """Returns the mean squared distance of each payload to its five nearest among those that are usual."""
    bits, usual = _bits(payloads), known["usual"]
    squared = (bits**2).sum(1)[:, None] + (usual**2).sum(1) - 2 * bits @ usual.T
    return np.sort(squared, axis=1)[:, :NEAREST].mean(1)


def _bits(payloads: Sequence[bytes]) -> Bits:
    rows = [np.unpackbits(np.frombuffer(each, np.uint8)) for each in payloads]
    return np.stack(rows).astype(np.float64) * 2 - 1
