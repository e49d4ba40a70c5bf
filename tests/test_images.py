"""Bytes to pixels: what comes out, and that nothing but `DecodeError` does where they are no image."""

import numpy as np
import pytest
from fakes import image_bytes
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dnnbench.errors import DnnbenchError
from dnnbench.images import DecodeError, decode, is_image_name


@pytest.mark.parametrize("key", ["a.jpg", "a.JPEG", "x/y.Png", "a.bmp", "a.gif", "a.webp", "a.tif", "a.b.TIFF"])
def test_images_are_known_by_their_extension(key):
    assert is_image_name(key)


@pytest.mark.parametrize("key", ["a.txt", "jpg", "a.jpg/", "a.jpg.part", "", "LICENSE"])
def test_other_names_are_no_images(key):
    assert not is_image_name(key)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF"])
def test_grey_pixels_have_the_dimension_asked_for(form):
    pixels = decode(image_bytes(200, (40, 20), form), (5, 7))
    assert pixels.shape == (5, 7)
    assert pixels.dtype == np.uint8
    assert abs(int(pixels.mean()) - 200) <= 2


def test_colour_has_a_third_axis_in_the_order_red_green_blue():
    pixels = decode(image_bytes((250, 120, 5), (9, 9), mode="RGB"), (4, 3), colour=True)
    assert pixels.shape == (4, 3, 3)
    assert pixels[0, 0].tolist() == [250, 120, 5]


def test_a_grey_image_read_in_colour_has_three_equal_channels():
    assert (decode(image_bytes(77), (2, 2), colour=True) == 77).all()


@pytest.mark.parametrize(("mode", "shade"), [("1", 1), ("L", 255), ("RGBA", (255, 255, 255, 0)), ("I;16", 255)])
def test_every_mode_becomes_grey(mode, shade):
    assert decode(image_bytes(shade, mode=mode), (3, 3)).shape == (3, 3)


def test_height_comes_first():
    # Left half black, right half white: (height, width) swapped would turn it.
    picture = np.zeros((10, 20), dtype=np.uint8)
    picture[:, 10:] = 255
    pixels = decode(_encode(picture), (1, 2))
    assert pixels.shape == (1, 2)
    assert pixels[0, 0] < 64
    assert pixels[0, 1] > 192


def test_resizing_is_bilinear_over_all_pixels():
    picture = np.indices((64, 64)).sum(0) % 2 * 255
    # A decoder that skips pixels would give 0 or 255.
    assert 120 <= decode(_encode(picture.astype(np.uint8)), (4, 4)).mean() <= 135


def test_pixels_may_be_written_to():
    decode(image_bytes(3), (2, 2))[0, 0] = 9


@pytest.mark.parametrize("data", [b"", b"not an image\n", b"<html></html>", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_image_is_a_decode_error(data):
    with pytest.raises(DecodeError) as caught:
        decode(data, (4, 4))
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, DnnbenchError)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "BMP", "WEBP", "TIFF"])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_a_truncated_image_is_a_decode_error(form, share):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)
    data = _encode(noise, form)
    with pytest.raises(DecodeError):
        decode(data[: int(len(data) * share)], (4, 4))


@pytest.mark.parametrize("limit", [99, 30], ids=["warning", "error"])
def test_a_decompression_bomb_is_a_decode_error(monkeypatch, limit):
    # Pillow warns above its limit and raises above twice the limit: this image has 100 pixels.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(DecodeError, match="too large"):
        decode(image_bytes(1, (10, 10)), (2, 2))


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@settings(max_examples=150, deadline=None)
@given(form=st.sampled_from(["PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF"]), data=st.data())
def test_damaged_bytes_give_pixels_or_a_decode_error(form, data):
    content = bytearray(image_bytes(100, (16, 16), form))
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        assert decode(bytes(content), (4, 4)).shape == (4, 4)
    except DecodeError as exc:
        assert "\n" not in str(exc)  # noqa: PT017 (either outcome is right)


def _encode(picture, form="PNG"):
    import io

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, form)
    return buffer.getvalue()
