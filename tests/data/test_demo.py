"""The drawn dataset: reproducible, complete, and of a useful difficulty."""

import hashlib

import numpy as np
import pytest
import torch
from PIL import Image as PILImage

from reid.data.demo import COLOURS, draw, identity
from reid.data.loader import ImageStore, in_order
from reid.data.prepare import open_dataset
from reid.evaluation.ranking import rank
from reid.inference.describe import extract
from reid.inference.engines import TorchEngine
from reid.models.rrid import RRID


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return open_dataset("demo", tmp_path_factory.mktemp("datasets"))


def digest(folder):
    h = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            h.update(path.name.encode() + path.read_bytes())
    return h.hexdigest()


@pytest.mark.slow
def test_the_same_bytes_each_time(demo, tmp_path):
    again = open_dataset("demo", tmp_path)
    assert digest(again.folder) == digest(demo.folder)
    assert again.fingerprint == demo.fingerprint


@pytest.mark.slow
def test_counts(demo):
    def people(images):
        return len({i.pid for i in images})

    assert (people(demo.trainval), len(demo.trainval)) == (64, 1024)
    assert (people(demo.query), len(demo.query)) == (32, 128)
    assert (people(demo.gallery), len(demo.gallery)) == (40, 288)
    assert demo.num_cameras == 4 and len(demo.distractors) == 8
    for query in demo.query:
        assert any(g.pid == query.pid and g.camid != query.camid for g in demo.gallery)
    with PILImage.open(demo.query[0].path) as image:
        assert image.size == (64, 128)


def test_look_alikes_share_a_top_and_differ_below():
    """Groups of four have one top; the cameras see the same person in other colours."""
    looks = [identity(pid) for pid in range(4)]
    tops = {tuple(look.top) for look in looks}
    rest = {(tuple(look.bottom), look.hairdo, look.bag) for look in looks}
    assert len(tops) == 1 and len(rest) == 4
    means = [np.asarray(draw(0, camid, 0), float).mean((0, 1)) for camid in range(4)]
    assert min(np.abs(a - b).max() for i, a in enumerate(means) for b in means[:i]) > 20
    assert all(0 <= c <= 255 for colour in COLOURS.values() for c in colour)


@pytest.mark.slow
def test_untrained_networks_stay_low(demo):
    """Random weights match identities across cameras little better than chance."""
    torch.manual_seed(0)
    model = RRID(0, backbone="mobilenet_v2").eval()
    images = [*demo.query, *demo.gallery]
    batches = ImageStore(images, 192, 64).batches(in_order(len(images), 32))
    features = extract(TorchEngine(model), batches, len(images))
    n = len(demo.query)
    pids, camids = np.array([i.pid for i in images]), np.array([i.camid for i in images])
    result = rank(-features[:n] @ features[n:].T, pids[:n], pids[n:], camids[:n], camids[n:])
    assert 0.02 < result.mean_ap < 0.35
