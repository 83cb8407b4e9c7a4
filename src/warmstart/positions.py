"""The numbers that positions give, computed in fp32 once for all frameworks: sinusoids, buckets, rotations, slopes."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from warmstart.spec import DisentangledSpec, EmbeddingSpec, RelativeSpec, RotarySpec


def sinusoids(spec: EmbeddingSpec) -> np.ndarray:
    """The table of computed positions (rows, size) in float32: sines in the first half of a row, cosines in the other.

    "plain" has the wave lengths of Vaswani et al. 2017, section 3.5; "stretched" those of their code (tensor2tensor),
    in which the last is 10000 * 2 * pi exactly, and a row of zeros for padding.

    >>> sinusoids(EmbeddingSpec(vocabulary=9, size=4, positions=2, sinusoids="plain"))[1].round(3).tolist()
    [0.8410000205039978, 0.009999999776482582, 0.5400000214576721, 1.0]
    """
    half = spec.size // 2
    rows = np.arange(spec.positions + spec.position_offset)
    if spec.sinusoids == "plain":
        angles = rows[:, None] / 10000.0 ** (np.arange(half) * 2 / spec.size)
    else:
        step = np.float32(math.log(10000.0) / max(half - 1, 1))
        angles = rows[:, None].astype(np.float32) * np.exp(np.arange(half, dtype=np.float32) * -step)
    table = np.concatenate([np.sin(angles), np.cos(angles)], 1).astype(np.float32)
    table = np.pad(table, ((0, 0), (0, spec.size % 2)))
    if spec.sinusoids == "stretched" and spec.padding_id is not None and spec.padding_id < len(table):
        table[spec.padding_id] = 0.0
    return table


def relative_buckets(relative: RelativeSpec) -> np.ndarray:
    """The bucket of each distance from `-relative.distance` to `relative.distance`, a key's place less the query's.

    Half of the buckets are for small distances, one each; the others grow with the logarithm.

    >>> relative_buckets(RelativeSpec(buckets=8, distance=6, both_ways=False)).tolist()
    [7, 6, 4, 3, 2, 1, 0, 0, 0, 0, 0, 0, 0]
    """
    away = np.arange(-relative.distance, relative.distance + 1)
    buckets = relative.buckets // 2 if relative.both_ways else relative.buckets
    first = (away > 0) * buckets if relative.both_ways else np.zeros_like(away)
    away = np.abs(away) if relative.both_ways else -np.minimum(away, 0)
    exact = buckets // 2
    near = away < exact
    times = np.maximum(away, 1).astype(np.float32) / np.float32(exact)
    far = np.log(times) / np.float32(math.log(relative.distance / exact)) * np.float32(buckets - exact)
    return first + np.where(near, away, np.minimum(exact + np.where(near, 0, far).astype(int), buckets - 1))


def disentangled_rows(spec: DisentangledSpec) -> np.ndarray:
    """The row of each distance from `-spec.distance` to `spec.distance`, a key's place less the query's.

    The middle row is no distance, those before it are keys after the query. With buckets, distances to half of them
    have a row each; the rows of others grow with the logarithm.

    >>> disentangled_rows(DisentangledSpec(distance=9, buckets=4)).tolist()
    [7, 7, 7, 7, 7, 7, 7, 6, 5, 4, 3, 2, 1, 1, 1, 1, 1, 1, 0]
    """
    back = np.arange(spec.distance, -spec.distance - 1, -1)
    if spec.buckets:
        exact, size = spec.buckets // 2, np.abs(back)
        times = np.maximum(size, 1).astype(np.float32) / np.float32(exact)
        most = np.log(np.float32((spec.distance - 1) / exact))
        far = np.ceil(np.log(times) / most * np.float32(exact - 1)).astype(int) + exact
        back = np.where(size <= exact, back, np.sign(back) * far)
    return np.clip(back + spec.span, 0, 2 * spec.span - 1)


def inverse_frequencies(rotary: RotarySpec) -> tuple[np.ndarray, float]:
    """Inverse frequencies (size / 2,) in float32, and the factor on cosine and sine.

    Kinds: "default"; "linear" (position interpolation, Chen et al. 2023); "llama3" (Llama 3.1's `apply_scaling`);
    "yarn" (Peng et al. 2023, sections 3.2 to 3.4); "dynamic" (their appendix B.2) and "longrope" (Ding et al. 2024),
    whose frequencies are others beyond the trained length: see `beyond`.

    >>> frequencies, factor = inverse_frequencies(RotarySpec(size=4, theta=100.0))
    >>> [round(float(x), 3) for x in frequencies], factor
    ([1.0, 0.1], 1.0)
    """
    plain = (1.0 / _wave_lengths(rotary)).astype(np.float32)
    frequencies, factor = _SCALINGS[rotary.kind](plain, rotary)
    return frequencies.astype(np.float32), factor


class Beyond(NamedTuple):
    """The frequencies of a pass over more positions than `trained`: of length l, those of `at`."""

    trained: int
    frequencies: np.ndarray
    exponents: np.ndarray
    slope: float

    def at(self, length: Any) -> Any:
        """Inverse frequencies (size / 2,) for a length beyond the trained one: a number, or a framework's scalar."""
        return self.frequencies * (1 + self.slope * (length - self.trained)) ** self.exponents


def beyond(rotary: RotarySpec) -> Beyond | None:
    """What becomes of the frequencies where a text is longer than the model was trained for; None is nothing.

    Keys that a cache holds stay as they were turned, as in the reference, so that what is written past that length one
    token at a time is not what one pass over all of it would give.

    >>> beyond(RotarySpec(size=4, theta=100.0, scaling={"rope_type": "dynamic", "factor": 2.0}, positions=8)).at(16)[0]
    np.float32(1.0)
    """
    plain = (1.0 / _wave_lengths(rotary)).astype(np.float32)
    steps = np.arange(0, rotary.size, 2, dtype=np.float32)
    if rotary.kind == "dynamic":  # the base grows so that the slowest frequency is divided by the share of the length
        growing = -steps / np.float32(max(rotary.size - 2, 1))
        return Beyond(rotary.positions, plain, growing, rotary.scaling["factor"] / rotary.positions)
    if rotary.kind == "longrope":
        return Beyond(_trained(rotary), plain / np.float32(rotary.scaling["long_factor"]), np.zeros_like(steps), 0.0)
    return None


def _wave_lengths(rotary: RotarySpec) -> np.ndarray:
    exponents = np.arange(0, rotary.size, 2, dtype=np.float32) / np.float32(rotary.size)
    return np.asarray(np.float32(rotary.theta) ** exponents)


def _trained(rotary: RotarySpec) -> int:
    return int(rotary.scaling.get("original_max_position_embeddings") or rotary.positions)


def alibi_slopes(heads: int) -> np.ndarray:
    """How much each head minds distance (heads,) in float32 (Press et al. 2022, section 3).

    A geometric series for powers of two; for other counts, between it come values of the next power's.

    >>> [float(x) for x in alibi_slopes(4)]
    [0.25, 0.0625, 0.015625, 0.00390625]
    """
    power = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * (index + 1) / power) for index in range(power)]
    slopes += [2 ** (-4 * (index + 1) / power) for index in range(0, 2 * (heads - power), 2)]
    return np.array(slopes, np.float32)


def _default(plain: np.ndarray, rotary: RotarySpec) -> tuple[np.ndarray, float]:
    return plain, 1.0


def _linear(plain: np.ndarray, rotary: RotarySpec) -> tuple[np.ndarray, float]:
    return plain / np.float32(rotary.scaling["factor"]), 1.0


def _llama3(plain: np.ndarray, rotary: RotarySpec) -> tuple[np.ndarray, float]:
    factor, low, high, trained = (
        rotary.scaling[name]
        for name in ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    )
    turns = trained * plain / (2 * np.pi)  # how often a frequency turns within the trained length
    blend = np.clip((turns - low) / (high - low), 0.0, 1.0).astype(np.float32)
    return plain / np.float32(factor) * (1 - blend) + plain * blend, 1.0


def _yarn(plain: np.ndarray, rotary: RotarySpec) -> tuple[np.ndarray, float]:
    scaling, size = rotary.scaling, rotary.size
    factor = scaling["factor"]
    trained = _trained(rotary)

    def index_that_turns(times: float) -> float:
        return size * math.log(trained / (times * 2 * math.pi)) / (2 * math.log(rotary.theta))

    low, high = index_that_turns(scaling.get("beta_fast") or 32), index_that_turns(scaling.get("beta_slow") or 1)
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    ramp = np.clip((np.arange(size // 2, dtype=np.float32) - low) / ((high - low) or 0.001), 0.0, 1.0)
    return plain / np.float32(factor) * ramp + plain * (1 - ramp), _yarn_magnitude(scaling, factor)


def _yarn_magnitude(scaling: dict[str, Any], factor: float) -> float:
    def magnitude(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    if (given := scaling.get("attention_factor")) is not None:
        return float(given)
    if scaling.get("mscale") and scaling.get("mscale_all_dim"):
        return magnitude(scaling["mscale"]) / magnitude(scaling["mscale_all_dim"])
    return magnitude(1.0)


def _longrope(plain: np.ndarray, rotary: RotarySpec) -> tuple[np.ndarray, float]:
    scaling, trained = rotary.scaling, _trained(rotary)
    factor = scaling.get("factor") or rotary.positions / trained
    magnitude = math.sqrt(1 + math.log(factor) / math.log(trained)) if factor > 1 else 1.0
    given = scaling.get("attention_factor")
    return plain / np.float32(scaling["short_factor"]), magnitude if given is None else float(given)


# kind of scaling (`ROTARY_KINDS`) -> how it is computed
_SCALINGS = {
    "default": _default,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
    "dynamic": _default,
    "longrope": _longrope,
}
