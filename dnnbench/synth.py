"""A deterministic data set of JPEGs: what is drawn depends on the seed alone, to the byte.

A category is the direction of a slow wave (and a hue), which a small network learns and which
survives a resize to 32 x 32 grey. Everything is integer arithmetic on a table of sines: no
processor's floating-point unit can change a pixel. Bytes hold for one version of Pillow's encoder.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from dnnbench.errors import DnnbenchError

QUALITY = 85
# Bytes per pixel of our noise at that quality, measured; photographs of ImageNet have about 0.6.
BYTES_PER_PIXEL = 0.66
# What a JPEG of ours takes before its pixels: tables and markers.
HEADER_BYTES = 620
SMALLEST_SIDE = 8
# From this length on an image is as long as it is asked to be: the smallest JPEG of ours is shorter.
SURELY_EXACT_BYTES = 1_500
LARGEST_BYTES = 64 * 1024 * 1024
_SINES = np.array([round(1000 * math.sin(2 * math.pi * i / 1024)) for i in range(1024)], dtype=np.int32)


class SynthError(DnnbenchError):
    """A data set that cannot be made."""


@dataclass(frozen=True)
class SynthSpec:
    """What to make. Sizes are log-normal: ``median_bytes``, and ``spread``, the sigma of their logarithm.

    ImageNet's training images have a median of about 110 KB. Raises `SynthError` for values out of range.
    """

    labels: Sequence[str]
    sources: int = 2
    images_per_category: int = 40
    median_bytes: int = 110_000
    spread: float = 0.35
    seed: int = 0

    def __post_init__(self) -> None:
        limits = {
            "sources": (self.sources, 1, 10_000),
            "images_per_category": (self.images_per_category, 1, 10_000_000),
            "median_bytes": (self.median_bytes, 1, LARGEST_BYTES),
            "spread": (self.spread, 0, 3),
            "seed": (self.seed, 0, 2**63),
        }
        for name, (value, low, high) in limits.items():
            if not low <= value <= high:
                raise SynthError(f"{name}: found {value}, expected {low} to {high}")
        if not self.labels:
            raise SynthError("labels: expected at least one category")


Place = tuple[int, int, int]


def keys(spec: SynthSpec) -> Iterator[tuple[str, Place]]:
    """(key, (source, category, number)) of every image, such as ``source1/roses/000000.jpg``."""
    for source in range(spec.sources):
        for category, label in enumerate(spec.labels):
            for number in range(spec.images_per_category):
                yield f"source{source + 1}/{label}/{number:06d}.jpg", (source, category, number)


def image(spec: SynthSpec, source: int, category: int, number: int) -> bytes:
    """One JPEG, the same whatever other images there are.

    As long as its share of the distribution asks, to the byte, unless that is less than a JPEG can be.
    """
    rng = _stream(spec, source, category, number)
    # One stream for the size and one for the picture: re-encoding must not change either.
    target_bytes = _target_bytes(spec, rng)
    picture_seed = int(rng.integers(2**62))
    area = max(target_bytes - HEADER_BYTES, 1) / BYTES_PER_PIXEL
    data = b""
    for _ in range(8):
        width = max(round(math.sqrt(area * 4 / 3)), SMALLEST_SIDE)
        height = max(round(area / width), SMALLEST_SIDE)
        data = _encode(_draw(picture_seed, category, len(spec.labels), height, width))
        if len(data) <= target_bytes or (width, height) == (SMALLEST_SIDE, SMALLEST_SIDE):
            break
        too_large = max(len(data) - HEADER_BYTES, 1) / max(target_bytes - HEADER_BYTES, 1)
        area = width * height / max(too_large, 1.01) * 0.99
    return _pad(data, target_bytes)


def size_bytes(spec: SynthSpec, source: int, category: int, number: int) -> int | None:
    """The length of an image, without drawing it; None where it is so short that only drawing it tells."""
    target_bytes = _target_bytes(spec, _stream(spec, source, category, number))
    return target_bytes if target_bytes >= SURELY_EXACT_BYTES else None


def _stream(spec: SynthSpec, source: int, category: int, number: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([spec.seed, source, category, number])))


def _target_bytes(spec: SynthSpec, rng: np.random.Generator) -> int:
    # Box and Muller's normal from two uniform integers: the generator's own may change with its version.
    first, second = (int(value) + 1 for value in rng.integers(2**53 - 1, size=2))
    normal = math.sqrt(-2 * math.log(first / 2**53)) * math.cos(2 * math.pi * second / 2**53)
    return min(round(spec.median_bytes * math.exp(spec.spread * normal)), LARGEST_BYTES)


def _draw(seed: int, category: int, categories: int, height: int, width: int) -> npt.NDArray[np.uint8]:
    """Pixels [height, width, 3] of a wave in the category's direction and hue, with noise over it."""
    rng = np.random.Generator(np.random.PCG64(seed))
    phase, contrast, brightness = (int(rng.integers(*limits)) for limits in ((0, 1024), (30, 70), (90, 165)))
    angle = category * 512 // categories
    # Two to three waves across the picture, whatever its size.
    waves = int(rng.integers(2048, 3072))
    across = waves * int(_SINES[(angle + 256) % 1024]) // 1000
    down = waves * int(_SINES[angle]) // 1000
    columns = np.arange(width, dtype=np.int64) * across // width
    rows = np.arange(height, dtype=np.int64) * down // height
    wave = _SINES[(columns[None, :] + rows[:, None] + phase) % 1024] * contrast // 1000 + brightness
    hues = [int(_SINES[(category * 1024 // categories + third) % 1024]) * 25 // 1000 for third in (0, 341, 683)]
    noise = np.frombuffer(rng.bytes(height * width), dtype=np.uint8).reshape(height, width) >> 2
    pixels = wave[:, :, None] + np.array(hues, dtype=np.int32) + noise[:, :, None].astype(np.int32) - 32
    bounded: npt.NDArray[np.uint8] = np.clip(pixels, 0, 255).astype(np.uint8)
    return bounded


def _encode(pixels: npt.NDArray[np.uint8]) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=QUALITY)
    return out.getvalue()


def _pad(data: bytes, target_bytes: int) -> bytes:
    """Adds JPEG comments after the start marker until the length is right; each takes 4 bytes at least."""
    missing = target_bytes - len(data)
    comments = b""
    while missing >= 4:
        length = min(missing, 65_537)
        # What is left over must be nothing or enough for a comment of its own.
        if 0 < missing - length < 4:
            length -= 4
        comments += b"\xff\xfe" + (length - 2).to_bytes(2, "big") + b"\0" * (length - 4)
        missing -= length
    # Bytes after the end marker are ignored by decoders, and 1 to 3 are too few for a comment.
    return data[:2] + comments + data[2:] + b"\0" * max(missing, 0)
