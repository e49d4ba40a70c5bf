"""The synthetic data set: the same bytes for the same seed, sizes as asked, and categories that can be told apart."""

import hashlib
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dnnbench.images import decode
from dnnbench.synth import SynthError, SynthSpec, image, keys, size_bytes

LABELS = ("roses", "sunflowers", "tulips", "daisy", "dandelion")
SMALL = SynthSpec(LABELS, median_bytes=6_000, images_per_category=30)


def _digest(spec):
    return hashlib.sha256(b"".join(image(spec, *place) for _, place in list(keys(spec))[:20])).hexdigest()


def test_another_process_makes_the_same_bytes():
    code = "import sys; sys.path[:0] = sys.argv[1:]\nfrom test_synth import SMALL, _digest\nprint(_digest(SMALL))"
    here = Path(__file__).parent
    told = subprocess.run(
        [sys.executable, "-c", code, str(here.parent), str(here)], capture_output=True, text=True, check=True
    )
    assert told.stdout.strip() == _digest(SMALL)


def test_an_image_does_not_depend_on_the_others():
    more = SynthSpec(LABELS, sources=7, images_per_category=1000, median_bytes=6_000)
    assert image(more, 1, 2, 3) == image(SMALL, 1, 2, 3)


def test_every_image_and_every_seed_differs():
    made = [image(SMALL, *place) for _, place in list(keys(SMALL))[:60]]
    assert len(set(made)) == 60
    assert image(SynthSpec(LABELS, seed=1, median_bytes=6_000), 0, 0, 0) != made[0]


def test_keys_are_source_label_number():
    spec = SynthSpec(("a", "b"), sources=2, images_per_category=2)
    assert [key for key, _ in keys(spec)] == [
        f"source{s}/{label}/00000{i}.jpg" for s in (1, 2) for label in ("a", "b") for i in (0, 1)
    ]


@pytest.mark.parametrize(("median_bytes", "spread"), [(110_000, 0.35), (20_000, 0.8), (50_000, 0.0)])
def test_sizes_are_log_normal_as_asked(median_bytes, spread):
    spec = SynthSpec(LABELS, median_bytes=median_bytes, spread=spread, images_per_category=30)
    sizes = np.array([len(image(spec, *place)) for _, place in list(keys(spec))[:150]])
    # The standard error of a log-normal's median is about 1.25 sigma / sqrt(n).
    error = 1.25 * spread / np.sqrt(len(sizes))
    assert abs(np.log(np.median(sizes) / median_bytes)) <= 4 * error + 1e-4
    assert np.std(np.log(sizes)) == pytest.approx(spread, rel=0.15, abs=1e-4)


@given(st.integers(1, 30_000), st.floats(0, 1), st.integers(0, 2**40), st.integers(0, 4))
@settings(max_examples=40, deadline=None)
def test_any_size_decodes_and_is_exact_where_a_jpeg_can_be(median_bytes, spread, seed, category):
    spec = SynthSpec(LABELS, median_bytes=median_bytes, spread=spread, seed=seed)
    data = image(spec, 0, category, 0)
    with Image.open(io.BytesIO(data)) as opened:
        opened.load()
        assert opened.mode == "RGB"
    if spread == 0 and median_bytes > 1_000:
        assert len(data) == median_bytes
    assert size_bytes(spec, 0, category, 0) in (None, len(data))


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        ({"sources": 0}, "sources"),
        ({"images_per_category": 0}, "images_per_category"),
        ({"median_bytes": 0}, "median_bytes"),
        ({"median_bytes": 10**12}, "median_bytes"),
        ({"spread": -0.1}, "spread"),
        ({"spread": float("nan")}, "spread"),
        ({"seed": -1}, "seed"),
        ({"labels": ()}, "labels"),
    ],
)
def test_a_data_set_that_cannot_be_is_refused(wrong, name):
    with pytest.raises(SynthError, match=name):
        SynthSpec(**{"labels": LABELS} | wrong)


def _features(data):
    """Strength of each slow wave in a 32 x 32 grey image: what a first convolution can see."""
    pixels = decode(data, (32, 32)).astype(float)
    return np.abs(np.fft.fft2(pixels - pixels.mean()))[:6, :].ravel() / 1000


def _accuracy(train, train_labels, test, test_labels):
    centroids = np.array([train[train_labels == c].mean(axis=0) for c in range(len(LABELS))])
    nearest = ((test[:, None, :] - centroids) ** 2).sum(axis=2).argmin(axis=1)
    return (nearest == test_labels).mean()


def test_categories_can_be_learnt_and_a_wrong_label_shows():
    places = [place for _, place in keys(SMALL)]
    features = np.array([_features(image(SMALL, *place)) for place in places])
    labels = np.array([category for _, category, _ in places])
    first = np.array([source == 0 for source, _, _ in places])
    assert _accuracy(features[first], labels[first], features[~first], labels[~first]) > 0.8
    shuffled = np.random.default_rng(0).permutation(labels)
    assert _accuracy(features[first], shuffled[first], features[~first], labels[~first]) < 0.4
