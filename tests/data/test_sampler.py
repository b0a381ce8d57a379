"""The samplers: P x K, the published one, and random order."""

import numpy as np
import pytest

from reid.data.sampler import anchor_batches, pk_batches, random_batches
from reid.errors import InputError

# images per identity as in Market-1501's trainval: 751 identities, 12,936 images, 2 to 72 each
rng = np.random.default_rng(0)
MARKET = np.clip(rng.multinomial(12_936 - 2 * 751, np.ones(751) / 751) + 2, 2, 72)
PIDS = np.repeat(np.arange(751), MARKET)
SMALL = [7] * 9 + [3] * 4 + [5] * 2 + [12] * 1  # a one-image identity among them


def test_published_lengths_of_an_epoch():
    """4 x images / 64: 809 batches on Market trainval, the last of 32; 720 on train (11,509 images)."""
    lengths = [len(s(PIDS[:n], 64, 4, 0, 1)) for n in (12_936, 11_509) for s in (pk_batches, anchor_batches)]
    assert lengths == [809, 809, 720, 720]
    assert [len(pk_batches(PIDS, 64, 4, 0, 1, visits)) for visits in (1, 2)] == [203, 405]
    assert len(PIDS) == 12_936
    batches = anchor_batches(PIDS, 64, 4, 0, 1)
    assert [len(b) for b in batches] == [64] * 808 + [32]


def test_pk_has_distinct_identities_and_images():
    for batch in pk_batches(PIDS, 64, 4, seed=0, epoch=1):
        groups = PIDS[batch].reshape(16, 4)
        assert (groups == groups[:, :1]).all()
        assert len(set(groups[:, 0])) == 16
        for i, pid in enumerate(groups[:, 0]):
            assert len(set(batch[4 * i : 4 * i + 4])) == min(4, MARKET[pid])


def test_pk_visits_evenly():
    batches = pk_batches(PIDS, 64, 4, seed=0, epoch=1)
    visits = np.bincount(PIDS[np.concatenate(batches)], minlength=751) / 4
    assert visits.max() - visits.min() <= 2
    images = np.bincount(np.concatenate(batches), minlength=len(PIDS))
    for pid in (0, 100, 750):
        mine = images[pid == PIDS]
        assert mine.max() - mine.min() <= 1


def test_one_image_identity_is_repeated():
    for batch in pk_batches(SMALL, 8, 4, 0, 1) + anchor_batches(SMALL, 8, 4, 0, 1):
        pids = np.array(SMALL)[batch]
        assert len(batch) % 4 == 0
        for i in range(0, len(batch), 4):
            assert len(set(pids[i : i + 4])) == 1
    lone = [b for b in pk_batches(SMALL, 16, 4, 0, 1) if 15 in b]
    assert lone and all((b == 15).sum() == 4 for b in lone)


def test_every_image_is_an_anchor_once():
    drawn = np.concatenate(anchor_batches(PIDS, 64, 4, 0, 1)).reshape(-1, 4)
    np.testing.assert_array_equal(np.bincount(PIDS[drawn[:, 0]], minlength=751), MARKET)


def test_anchor_batches_on_the_real_list(shared):
    """The published sampler on Market's trainval: 15.8 distinct identities and 0.34 duplicate images a batch."""
    lines = (shared / "data/lists/triplet-reid/market1501_train.csv").read_text(encoding="utf-8").split()
    pids = np.array([int(line.split(",")[0]) for line in lines])
    batches = [b for epoch in range(3) for b in anchor_batches(pids, 64, 4, 0, epoch) if len(b) == 64]
    assert len(batches) == 3 * 808
    assert np.mean([len(set(pids[b])) for b in batches]) == pytest.approx(15.8, abs=0.05)
    assert np.mean([64 - len(set(b)) for b in batches]) == pytest.approx(0.34, abs=0.05)


def test_anchor_excludes_itself():
    """With five images and K = 4, each batch lacks exactly its anchor."""
    pids = [1] * 5
    missing = [
        set(range(5)) - set(row.tolist()) for row in np.concatenate(anchor_batches(pids, 4, 4, 3, 1)).reshape(-1, 4)
    ]
    assert sorted(min(m) for m in missing) == [0, 1, 2, 3, 4]


def test_anchor_with_few_others_repeats():
    for row in np.concatenate(anchor_batches([1, 1, 1], 4, 4, 0, 1)).reshape(-1, 4):
        assert len(set(row.tolist())) <= 2


@pytest.mark.parametrize("sampler", [pk_batches, anchor_batches])
def test_same_seed_same_batches(sampler):
    one, again = sampler(PIDS, 64, 4, 5, 2), sampler(PIDS, 64, 4, 5, 2)
    assert all((a == b).all() for a, b in zip(one, again, strict=True))
    for other in (sampler(PIDS, 64, 4, 5, 3), sampler(PIDS, 64, 4, 6, 2)):
        assert any(len(a) != len(b) or (a != b).any() for a, b in zip(one, other, strict=True))


def test_too_few_identities():
    with pytest.raises(InputError, match=r"needs 16 identities, the training set has 4; use --batch_size 16"):
        pk_batches(SMALL, 64, 4, 0, 1)
    with pytest.raises(InputError, match="no images"):
        pk_batches([], 64, 4, 0, 1)


def test_random_batches():
    """Each image at most once per epoch, in another order in each; incomplete batches are left out."""
    first, second = (random_batches(PIDS, 64, 4, 0, epoch) for epoch in (1, 2))
    assert [len(b) for b in first] == [64] * 202
    assert len(set(np.concatenate(first).tolist())) == 202 * 64
    assert not np.array_equal(first[0], second[0])
    assert len(random_batches(PIDS, 64, 4, 0, 1, visits=2)) == 404
    with pytest.raises(InputError, match="--batch_size 64 is more than the 16 training images"):
        random_batches(SMALL, 64, 4, 0, 1)
