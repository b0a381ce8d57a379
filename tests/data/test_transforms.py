"""Transforms against one image at a time, and the statistics of random erasing."""

from dataclasses import asdict

import numpy as np
import pytest
import torch
from PIL import Image as PILImage
from torchvision.transforms.v2 import functional as tv

from reid.config import Config
from reid.data.loader import ImageStore, decode
from reid.data.records import Image
from reid.data.transforms import Augmentation, augment, cover, draw_augmentation, normalise
from reid.errors import InputError


def draw(seed, n, h, w, **settings):
    settings = Augmentation(**settings)
    return draw_augmentation(np.random.default_rng(seed), n, h, w, settings)


def test_settings_come_from_the_configuration():
    """The recipe of the paper by default; each flag reaches its setting."""
    assert Augmentation.of(Config()) == Augmentation()
    changed = {"erasing_probability": 0.3, "erasing": "published", "erasing_area": 0.4}
    changed |= {"erasing_fill": "mean", "crop_padding": 10}
    assert asdict(Augmentation.of(Config(**changed))) == changed


def plain_augment(images, a):
    h, w = images.shape[2:]
    padded = torch.nn.functional.pad(images, [h] * 4)
    result = images.clone()
    for i, image in enumerate(result):
        y, x = h - a.down[i], h - a.right[i]
        image[:] = padded[i, :, y : y + h, x : x + w]
        top, left, height, width = (x[i] for x in a[1:5])
        image[:, top : top + height, left : left + width] = torch.from_numpy(a.colour[i])[:, None, None]
        if a.flip[i]:
            result[i] = image.flip(2)
    return result


@pytest.mark.parametrize("erasing, padding", [("in_place", 0), ("published", 0), ("in_place", 10)])
def test_augment_equals_one_by_one(erasing, padding):
    images = torch.randint(0, 256, (64, 3, 96, 32), dtype=torch.uint8)
    drawn = draw(0, 64, 96, 32, erasing=erasing, crop_padding=padding)
    before = images.clone()
    assert torch.equal(augment(images, drawn), plain_augment(images, drawn))
    assert torch.equal(images, before)


def test_eraser_in_place():
    """Half of the images; patches of 2 to 20 % of the area, at any place inside."""
    a = draw(1, 20_000, 384, 128)
    erased = a.height > 0
    assert erased.mean() == pytest.approx(0.5, abs=0.01)
    assert a.flip.mean() == pytest.approx(0.5, abs=0.01)
    area = (a.height * a.width)[erased] / (384 * 128)
    assert area.mean() == pytest.approx(0.107, abs=0.002)
    assert (a.top >= 0).all() and (a.top + a.height <= 384).all() and (a.left + a.width <= 128).all()
    middle = (a.top + a.height / 2)[erased] / 384
    assert middle.mean() == pytest.approx(0.5, abs=0.01)
    assert (middle < 0.2).mean() > 0.05 and (middle > 0.8).mean() > 0.05  # head and feet too


def test_published_eraser():
    """Probability 0.75 at p = 0.5, pasted at (own width, own height).

    The mean erased area is 8.8 %; heads are never erased.
    """
    a = draw(2, 20_000, 384, 128, erasing="published")
    erased = a.height > 0
    assert erased.mean() == pytest.approx(0.75, abs=0.01)
    assert (a.top == a.height).all() and (a.left == a.width).all()
    inside = np.clip(384 - a.top, 0, a.height) * np.clip(128 - a.left, 0, a.width)
    assert inside[erased].mean() / (384 * 128) == pytest.approx(0.088, abs=0.002)


def test_no_erasing():
    assert not draw(0, 1000, 64, 32, erasing_probability=0.0).height.any()


def test_normalise():
    x = torch.randint(0, 256, (2, 3, 8, 4), dtype=torch.uint8)
    expected = tv.normalize(tv.to_dtype(x, torch.float32, scale=True), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    torch.testing.assert_close(normalise(x), expected)


@pytest.fixture()
def files(tmp_path):
    rng = np.random.default_rng(0)
    images = []
    for i in range(10):
        path = tmp_path / f"{i}.png"
        PILImage.fromarray(rng.integers(0, 256, (100 + i, 50, 3), dtype=np.uint8)).save(path)
        images.append(Image(str(path), i, 0))
    return images


def test_decode_is_pillows_bilinear(files):
    """Upwards, torchvision's independent implementation is equal to the bit.

    Downwards, less than 1 % of the pixels differ, by one level of 255.
    """
    with PILImage.open(files[0].path) as image:
        raw = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)
        for h, w in ((192, 64), (48, 16)):
            pixels = decode(files[0].path, h, w)
            assert (pixels == np.asarray(image.resize((w, h), PILImage.Resampling.BILINEAR))).all()
            resized = tv.resize(raw, [h, w], interpolation=tv.InterpolationMode.BILINEAR, antialias=True)
            difference = np.abs(resized.permute(1, 2, 0).numpy().astype(int) - pixels)
            assert difference.max() <= (0 if h > 100 else 1) and (difference > 0).mean() < 0.01


@pytest.mark.parametrize("cache", ["none", "ram", "auto"])
@pytest.mark.parametrize("workers", [0, 4])
def test_store_gives_the_same_pixels(files, cache, workers):
    store = ImageStore(files, 32, 16, workers, cache)
    wanted = [[3, 1, 3], [0], [9, 8, 7, 6]]
    got = list(store.batches(wanted))
    for rows, batch in zip(wanted, got, strict=True):
        expected = np.stack([decode(files[i].path, 32, 16) for i in rows]).transpose(0, 3, 1, 2)
        assert batch.dtype == torch.uint8 and (batch.numpy() == expected).all()


def test_gpu_cache_without_gpu(files):
    with pytest.raises(InputError, match="--cache ram"):
        ImageStore(files, 32, 16, 0, "gpu", "cpu")


@pytest.mark.parametrize("workers", [0, 4])
def test_unreadable_images_are_named(files, tmp_path, workers):
    jpeg = tmp_path / "cut.jpg"
    PILImage.new("RGB", (64, 128), (200, 30, 90)).save(jpeg)
    jpeg.write_bytes(jpeg.read_bytes()[:400])
    (tmp_path / "page.jpg").write_text("<html>not found</html>", encoding="utf-8")
    (tmp_path / "empty.jpg").write_bytes(b"")
    for name in ("cut.jpg", "page.jpg", "empty.jpg", "gone.jpg"):
        store = ImageStore([*files, Image(str(tmp_path / name), 0, 0)], 32, 16, workers)
        with pytest.raises(InputError, match=name):
            list(store.batches([[0, 1], [10, 2]]))


def test_huge_header_is_refused(tmp_path):
    path = tmp_path / "bomb.png"
    PILImage.new("1", (9000, 9000)).save(path)
    with pytest.raises(InputError, match="9000 x 9000"):
        decode(str(path), 32, 16)


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "1", "RGBA"])
def test_other_modes_become_rgb(tmp_path, mode):
    path = tmp_path / ("x.jpg" if mode in ("L", "CMYK") else "x.png")
    PILImage.new("RGB", (20, 40), (250, 10, 10)).convert(mode).save(path)
    assert decode(str(path), 32, 16).shape == (32, 16, 3)


def test_strong_baseline_images():
    """Patches of up to 40 % in ImageNet's mean colour, which is 0 when normalised.

    Images move by up to 10 pixels.
    """
    a = draw(1, 20_000, 256, 128, erasing_area=0.4, erasing_fill="mean", crop_padding=10)
    area = (a.height * a.width)[a.height > 0] / (256 * 128)
    assert 0.39 < area.max() <= 0.4
    assert set(a.down) == set(a.right) == set(range(-10, 11))
    painted = normalise(torch.from_numpy(a.colour[:1])[:, :, None, None])
    assert painted.abs().max() < 0.01


def test_covered_bands():
    """Six bands together cover the image once; the mean colour is 0 when normalised."""
    images = torch.randint(0, 256, (2, 3, 96, 32), dtype=torch.uint8)
    hidden = [normalise(cover(images, band)).abs() < 0.01 for band in range(1, 7)]
    assert all(h[:, :, 16 * i : 16 * i + 16].all() for i, h in enumerate(hidden))
    for band in range(1, 7):
        covered, left = cover(images, band), [r for r in range(96) if r // 16 != band - 1]
        assert torch.equal(covered[:, :, left], images[:, :, left])
