"""Samplers: which images form a batch.

A batch is an array of indices into the training images. Every draw depends only on (seed,
epoch). An epoch visits each image `visits` times; 0 means K times, the published length
(for the random sampler: once).
"""

from collections.abc import Sequence

import numpy as np

from reid.errors import InputError


def pk_batches(
    pids: Sequence[int], batch_size: int, k: int, seed: int, epoch: int, visits: int = 0
) -> list[np.ndarray]:
    """Batches of P distinct identities with K images each, P = batch_size / K.

    Identities come from one shuffled queue after another, so their numbers of visits differ
    by at most one (by two where a batch would have contained an identity twice). The images
    of an identity come from a queue of the same kind; fewer than K images are repeated. Hermans et
    al. 2017, section 2. Raises InputError if there are fewer than P identities.
    """
    identities = group_by_pid(pids)
    p = batch_size // k
    if len(identities) < p:
        raise InputError(
            f"a batch of {batch_size} with {k} images per identity needs {p} identities, the training "
            f"set has {len(identities)}; use --batch_size {len(identities) * k} or less"
        )
    rng = np.random.default_rng([seed, epoch])
    names = list(identities)
    queue: list[int] = []  # identities to visit
    waiting: dict[int, list[int]] = {pid: [] for pid in names}  # images to visit
    batches = []
    for _ in range(-(-len(pids) * (visits or k) // batch_size)):
        chosen, queue = queue[:p], queue[p:]
        if len(chosen) < p:
            order = [names[i] for i in rng.permutation(len(names))]
            fresh = [pid for pid in order if pid not in chosen][: p - len(chosen)]
            queue = [pid for pid in order if pid not in fresh]
            chosen = chosen + fresh
        drawn = [draw_images(identities[pid], waiting[pid], k, rng) for pid in chosen]
        batches.append(np.concatenate(drawn))
    return batches


def draw_images(images: np.ndarray, waiting: list[int], k: int, rng: np.random.Generator) -> np.ndarray:
    """K images from the queue of an identity; distinct if it has K images.

    An empty queue is filled with all images, shuffled; those already in the batch come last.
    """
    drawn: list[int] = []
    while len(drawn) < k:
        if not waiting:
            order = rng.permutation(images).tolist()
            waiting.extend(sorted(order, key=lambda i: i in drawn))
        drawn.append(waiting.pop(0))
    return np.array(drawn)


def anchor_batches(
    pids: Sequence[int], batch_size: int, k: int, seed: int, epoch: int, visits: int = 0
) -> list[np.ndarray]:
    """The published sampler: for each image, shuffled, K other images of its identity.

    Identities can occur twice in a batch, and the last batch can be smaller. Fewer than K
    other images are repeated, and so is a single image (the published code fails there).
    Each image is an anchor once, whatever `visits` is.
    """
    identities = group_by_pid(pids)
    rng = np.random.default_rng([seed, epoch])
    drawn = []
    for anchor in rng.permutation(len(pids)):
        images = identities[pids[anchor]]
        others = images[images != anchor] if len(images) > 1 else images
        drawn.append(rng.choice(others, k, replace=len(others) < k))
    size = batch_size // k  # anchors in a batch
    return [np.concatenate(drawn[i : i + size]) for i in range(0, len(drawn), size)]


def random_batches(
    pids: Sequence[int], batch_size: int, k: int, seed: int, epoch: int, visits: int = 0
) -> list[np.ndarray]:
    """All images in random order; the last, incomplete batch is left out. K is not used.

    Raises InputError if there are fewer images than a batch has.
    """
    if len(pids) < batch_size:
        raise InputError(f"--batch_size {batch_size} is more than the {len(pids)} training images; use a smaller one")
    rng = np.random.default_rng([seed, epoch])
    order = np.concatenate([rng.permutation(len(pids)) for _ in range(visits or 1)])
    return list(order[: len(order) // batch_size * batch_size].reshape(-1, batch_size))


def group_by_pid(pids: Sequence[int]) -> dict[int, np.ndarray]:
    """{pid in increasing order: indices of its images}."""
    if not len(pids):
        raise InputError("the training set has no images")
    array = np.asarray(pids)
    return {int(pid): np.flatnonzero(array == pid) for pid in np.unique(array)}


SAMPLERS = {"pk": pk_batches, "anchor": anchor_batches, "random": random_batches}
