"""Bytes -> array of pixels. No framework, no storage: errors know no key; who reads names it."""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING

from dnnbench.errors import DnnbenchError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff")


class DecodeError(DnnbenchError):
    """The bytes are no image that can be decoded whole."""


def is_image_name(key: str) -> bool:
    """Whether a key has an image's extension, in any case."""
    return key.lower().endswith(EXTENSIONS)


def decode(data: bytes, dimension: tuple[int, int], colour: bool = False) -> npt.NDArray[np.uint8]:
    """Decodes an image in full and resizes it bilinearly to ``dimension`` (height, width) in pixels.

    Returns uint8 [height, width], or [height, width, 3] with ``colour``. The decoder's scaled mode
    is not used: training pipelines decode in full, and so the cost here is theirs.
    Raises `DecodeError` for what is truncated, no image, or larger than Pillow takes for safe.
    """
    import numpy as np
    from PIL import Image, UnidentifiedImageError

    height, width = dimension
    try:
        with Image.open(io.BytesIO(data)) as image:
            # Pillow only warns up to twice its limit. Turning its warning into an error would turn it so for
            # every thread of the process.
            if image.width * image.height > (Image.MAX_IMAGE_PIXELS or math.inf):
                raise DecodeError(f"is too large an image ({image.width} x {image.height} pixels)")
            pixels = image.convert("RGB" if colour else "L").resize((width, height), Image.Resampling.BILINEAR)
    except UnidentifiedImageError as exc:
        raise DecodeError(f"is no image (its {len(data)} bytes start with {data[:8]!r})") from exc
    except Image.DecompressionBombError as exc:
        raise DecodeError(f"is too large an image ({exc})") from exc
    # What Pillow's decoders raise for damaged content has no common base.
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, OverflowError, TypeError, MemoryError) as exc:
        raise DecodeError(f"cannot be decoded ({exc})") from exc
    # A copy of our own: Pillow lends its pixels read-only.
    return np.array(pixels, dtype=np.uint8)
