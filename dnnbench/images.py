"""Bytes -> array of pixels. No framework, no storage: errors know no key; who reads names it."""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING

from dnnbench.errors import DnnbenchError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL import Image

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff")


# What is decoded, by content: what Pillow could open besides is no picture of a training, and some of it starts
# other programs. The usual ones come first; the last two make Pillow load all that it knows.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF")
_PNG_END = b"IEND\xaeB`\x82"
_KNOWN = "JPEG, PNG, GIF, BMP, WebP, TIFF"


class DecodeError(DnnbenchError):
    """The bytes are no image that can be decoded whole."""


def is_image_name(key: str) -> bool:
    """Whether a key has an image's extension, in any case."""
    return key.lower().endswith(EXTENSIONS)


def decode(
    data: bytes, dimension: tuple[int, int], colour: bool = False, reduced: bool = False
) -> npt.NDArray[np.uint8]:
    """Decodes an image and resizes it bilinearly to ``dimension`` (height, width) in pixels.

    Returns uint8 [height, width], or [height, width, 3] with ``colour``. By default a picture is decoded
    in full, as training pipelines mostly do, and so the cost here is theirs.

    ``reduced`` decodes a JPEG at the smallest of 1/8, 1/4, 1/2 and 1 of its size that has no fewer pixels
    than the target in either direction, and a grey one from its luma alone; other formats are decoded in
    full. Pixels then differ from those of a full decode, in grey levels: of dnnbench's own images at
    32 x 32 by 1 in the mean and 6 at most; of smooth pictures with some noise, at any size, by 3 and 25;
    of a pattern as fine as the target's pixels by 100, for where the reduced size is nearly the target's,
    little is left for the resize to smooth. Grey at the scale of 1 differs where colours are so
    saturated that RGB clips them, by up to 12.

    Of several frames the first; an orientation in EXIF turns nothing; transparency is dropped, and the colour below
    it shown; of 16 bits the upper 8 are taken, as TensorFlow's decoder takes them; CMYK becomes RGB without a profile
    (docs/hostile-data.md).

    Raises `DecodeError` for what is truncated, no image, of 32 bits or more, or larger than Pillow takes for safe.
    """
    import numpy as np
    from PIL import Image, UnidentifiedImageError

    height, width = dimension
    mode = "RGB" if colour else "L"
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            # Pillow only warns up to twice its limit. Turning its warning into an error would turn it so for
            # every thread of the process.
            if image.width * image.height > (Image.MAX_IMAGE_PIXELS or math.inf):
                raise DecodeError(f"is too large an image ({image.width} x {image.height} pixels)")
            # A size that 8 does not divide is rounded up: without the box, the picture would be stretched a little.
            drafted = image.draft(mode, (width, height)) if reduced else None
            box = drafted[1] if drafted else None
            # Of JPEG's end Pillow asks by itself; a PNG it takes without.
            if image.format == "PNG" and data.rfind(_PNG_END) < 0:
                raise DecodeError("cannot be decoded (a PNG without its end: the file is truncated)")
            pixels = _in_8_bits(image).convert(mode).resize((width, height), Image.Resampling.BILINEAR, box)
    except DecodeError:
        raise
    except UnidentifiedImageError as exc:
        raise DecodeError(f"is no image of {_KNOWN} (its {len(data)} bytes start with {data[:8]!r})") from exc
    except Image.DecompressionBombError as exc:
        raise DecodeError(f"is too large an image ({exc})") from exc
    # What Pillow's decoders raise for damaged content has no common base.
    except Exception as exc:
        raise DecodeError(f"cannot be decoded ({' '.join(str(exc).split()) or type(exc).__name__})") from exc
    # A copy of our own: Pillow lends its pixels read-only.
    return np.array(pixels, dtype=np.uint8)


def _in_8_bits(image: Image.Image) -> Image.Image:
    """The image itself, or its upper 8 bits where it has 16: Pillow would make white of all that is above 255."""
    from PIL import Image

    # Pillow would work out what colour is transparent after a conversion, and warn where there are several.
    image.info.pop("transparency", None)
    if image.mode.startswith("I;16"):
        import numpy as np

        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode == "LAB":
        # Pillow makes grey of it and no colours.
        raise DecodeError("cannot be decoded (Lab is no colour space that becomes RGB here)")
    if image.mode in ("I", "F"):
        raise DecodeError(f"has pixels of 32 bits (Pillow's mode {image.mode}), whose scale is not known; convert it")
    return image
