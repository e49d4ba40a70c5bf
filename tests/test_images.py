"""Bytes to pixels: what comes out, and that nothing but `DecodeError` does where they are no image."""

import io

import numpy as np
import pytest
from fakes import image_bytes
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dnnbench import synth
from dnnbench.datasets.samples import ImageSamples
from dnnbench.errors import DnnbenchError
from dnnbench.images import DecodeError, decode, is_image_name

WAYS = [pytest.param({}, id="full"), pytest.param({"reduced": True}, id="reduced")]
COLOUR = [pytest.param(False, id="grey"), pytest.param(True, id="colour")]


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


@pytest.mark.parametrize("colour", COLOUR)
def test_reduced_changes_our_own_images_by_few_grey_levels(colour):
    spec = synth.SynthSpec(labels=["a", "b", "c"], median_bytes=30_000)
    for number in range(6):
        mean, most = _difference(synth.image(spec, 0, number % 3, number), (32, 32), colour)
        assert 0 < mean <= 1
        assert most <= 6


@pytest.mark.parametrize("colour", COLOUR)
@pytest.mark.parametrize("dimension", [(32, 32), (33, 47), (64, 64), (128, 128), (224, 224)], ids=str)
def test_reduced_changes_smooth_pictures_by_few_grey_levels(dimension, colour):
    # 256 x 256 is the hardest: at 1/8, 1/4 and 1/2 it has the target's size, and nothing is left to resize.
    for seed, size in enumerate([(375, 500), (301, 523), (256, 256)]):
        mean, most = _difference(_encode(_photo(size, seed), "JPEG", quality=90), dimension, colour)
        assert mean <= 3
        assert most <= 25


def test_reduced_keeps_a_pattern_of_the_targets_pixels_that_a_full_decode_smooths():
    squares = np.kron(np.indices((32, 32)).sum(0) % 2 * 255, np.ones((8, 8))).astype(np.uint8)
    mean, most = _difference(_encode(squares, "JPEG", quality=95), (32, 32), colour=False)
    assert 90 <= mean <= most <= 100


def test_reduced_grey_is_the_luma_which_differs_where_rgb_clips():
    noise = np.random.default_rng(0).integers(0, 2, (24, 32, 3), dtype=np.uint8) * 255
    mean, most = _difference(_encode(np.kron(noise, np.ones((16, 16, 1), np.uint8)), "JPEG"), (224, 224), colour=False)
    assert 0.3 <= mean <= 1
    assert 3 <= most <= 12
    # And hardly where it does not.
    mean, most = _difference(_encode(_photo((375, 500), 0), "JPEG", quality=90), (224, 224), colour=False)
    assert mean <= 0.05
    assert most <= 2


@pytest.mark.parametrize("colour", COLOUR)
@pytest.mark.parametrize("dimension", [(188, 32), (32, 251), (400, 600)], ids=str)
def test_reduced_is_full_where_one_direction_has_no_pixel_to_spare(dimension, colour):
    assert _difference(_encode(_photo((375, 500), 0).mean(2).astype(np.uint8), "JPEG"), dimension, colour) == (0, 0)


@pytest.mark.parametrize("form", ["PNG", "BMP", "GIF", "WEBP", "TIFF"])
def test_other_formats_are_never_reduced(form):
    assert _difference(_encode(_photo((80, 90), 0), form), (4, 4), colour=True) == (0, 0)


def test_reduced_does_not_stretch_a_size_that_8_does_not_divide():
    # Of 257 columns libjpeg makes 33, the last of which holds one.
    ramp = np.tile(np.linspace(0, 255, 257).astype(np.uint8), (257, 1))
    mean, most = _difference(_encode(ramp, "JPEG", quality=95), (32, 32), colour=False)
    assert mean <= 1
    assert most <= 4


@pytest.mark.parametrize("way", WAYS)
def test_a_dataset_decodes_as_its_configuration_says(way):
    settings = {"decode": "reduced" if way.get("reduced") else "full", "image_mode": "colour"}
    data = _encode(_photo((256, 256), 0), "JPEG")
    assert (ImageSamples(config={"dataset": settings}).decode(data) == decode(data, (32, 32), True, **way)).all()


def test_a_dataset_decodes_in_full_by_default():
    data = _encode(_photo((256, 256), 0), "JPEG")
    assert (ImageSamples().decode(data) == decode(data, (32, 32))).all()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("colour", COLOUR)
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (17, 3), (63, 65)], ids=str)
@pytest.mark.parametrize("kind", ["plain", "progressive", "grey", "cmyk", "444", "rgb", "multi-picture", "trailing"])
def test_every_kind_of_jpeg_is_decoded(kind, size, colour, way):
    shade = (90, 90, 90) if kind == "grey" else (200, 120, 40)
    data = _jpeg(kind, shade, size)
    for dimension in [(1, 1), (5, 7), (70, 90)]:
        pixels = decode(data, dimension, colour, **way)
        assert pixels.shape == ((*dimension, 3) if colour else dimension)
        assert pixels.dtype == np.uint8
        expected = np.array(shade) if colour else np.dot(shade, [0.299, 0.587, 0.114])
        assert np.abs(pixels - expected).max() <= 4
        pixels[0, 0] = 9


@pytest.mark.parametrize("way", WAYS)
def test_an_orientation_in_exif_turns_nothing(way):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = _photo((40, 80), 0)
    turned, plain = _encode(picture, "JPEG", exif=exif), _encode(picture, "JPEG")
    assert turned != plain
    assert (decode(turned, (4, 8), True, **way) == decode(plain, (4, 8), True, **way)).all()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("data", [b"", b"not an image\n", b"<html></html>", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_image_is_a_decode_error(data, way):
    with pytest.raises(DecodeError) as caught:
        decode(data, (4, 4), **way)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, DnnbenchError)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("form", ["PNG", "JPEG", "BMP", "WEBP", "TIFF"])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_a_truncated_image_is_a_decode_error(form, share, way):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)
    data = _encode(noise, form)
    with pytest.raises(DecodeError):
        decode(data[: int(len(data) * share)], (4, 4), **way)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("colour", COLOUR)
@pytest.mark.parametrize("progressive", [False, True], ids=["baseline", "progressive"])
def test_a_jpeg_is_truncated_from_its_first_byte_to_its_last(progressive, colour, way):
    # The last two bytes are the end marker: all pixels are there without it, but the object is not whole.
    data = _encode(_photo((64, 64), 0), "JPEG", progressive=progressive)
    for length in [2, 3, 20, 100, 300, 500, 615, *range(625, len(data), 97), *range(len(data) - 40, len(data))]:
        with pytest.raises(DecodeError):
            decode(data[:length], (4, 4), colour, **way)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("form", ["PNG", "JPEG"])
@pytest.mark.parametrize("limit", [99, 30], ids=["warning", "error"])
def test_a_decompression_bomb_is_a_decode_error(monkeypatch, limit, form, way):
    # Pillow warns above its limit and raises above twice the limit: this image has 100 pixels.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(DecodeError, match="too large"):
        decode(image_bytes(1, (10, 10), form), (1, 1), **way)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@settings(max_examples=150, deadline=None)
@given(form=st.sampled_from(["PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF"]), data=st.data())
def test_damaged_bytes_give_pixels_or_a_decode_error(form, data):
    content = bytearray(image_bytes(100, (16, 16), form))
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    _outcome(bytes(content), {})


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_damaged_jpegs_are_taken_or_refused_whatever_the_way(data):
    kind = data.draw(st.sampled_from(["plain", "progressive", "grey", "cmyk", "444", "rgb"]))
    content = bytearray(_jpeg(kind, (200, 120, 40), (32, 24)))
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    outcomes = [_outcome(bytes(content), *way.values) for way in WAYS]
    assert len(set(outcomes)) == 1


def _outcome(content, way):
    """Whether there are pixels; what is raised is a `DecodeError` of one line."""
    try:
        assert decode(content, (4, 4), **way).shape == (4, 4)
    except DecodeError as exc:
        assert "\n" not in str(exc)  # noqa: PT017 (either outcome is right)
        return False
    return True


def _difference(data, dimension, colour, **way):
    """Mean and largest difference of the pixels that ``way`` makes from a full decode, in grey levels."""
    full = decode(data, dimension, colour).astype(int)
    apart = np.abs(decode(data, dimension, colour, **(way or {"reduced": True})) - full)
    return apart.mean(), apart.max()


def _photo(size, seed):
    """A smooth picture [height, width, 3] with tiles of two brightnesses and some noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: size[0], : size[1]]
    waves = [np.sin(x / rng.uniform(15, 60) + y / rng.uniform(15, 60) + rng.uniform(0, 6)) for _ in range(3)]
    tiles = 30 * ((x // rng.integers(20, 60) + y // rng.integers(20, 60)) % 2)
    picture = 113 + 60 * np.stack(waves, axis=2) + tiles[:, :, None] + rng.normal(0, 8, (*size, 1))
    return np.clip(picture, 0, 255).astype(np.uint8)


def _jpeg(kind, shade, size):
    """A JPEG of one shade; ``size`` is (height, width)."""
    picture = Image.new("RGB", size[::-1], shade)
    mode = {"grey": "L", "cmyk": "CMYK"}.get(kind, "RGB")
    options = {
        "progressive": {"progressive": True},
        "444": {"subsampling": 0},
        "rgb": {"keep_rgb": True},
        "multi-picture": {"save_all": True, "append_images": [Image.new("RGB", (5, 5))]},
    }
    form = "MPO" if kind == "multi-picture" else "JPEG"
    tail = b"\0" * 50 if kind == "trailing" else b""
    return _encode(picture.convert(mode), form, quality=90, **options.get(kind, {})) + tail


def _encode(picture, form="PNG", **options):
    buffer = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(buffer, form, **options)
    return buffer.getvalue()
