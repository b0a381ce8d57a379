"""What a batch is. A batch is an array of indices into the training images; every draw comes from (seed, epoch).

An epoch visits each image `visits` times; 0 stands for K times, the published length, or once for the random sampler.
"""

from collections.abc import Sequence

import numpy as np

from reid.errors import InputError


def pk_batches(
    pids: Sequence[int], batch_size: int, k: int, seed: int, epoch: int, visits: int = 0
) -> list[np.ndarray]:
    """P distinct identities x K images in each batch of an epoch, P = batch_size / K.

    Identities come from one shuffled queue after another, so their numbers of visits differ by one at most
    (by two where a batch would have met one twice); so do the images of an identity, whose own queue lasts
    over the epoch. An identity with fewer than K images repeats them. Hermans et al. 2017, section 2.
    Raises InputError when there are fewer than P identities.
    """
    identities = group_by_pid(pids)
    p = batch_size // k
    if len(identities) < p:
        raise InputError(
            f"a batch of {batch_size} with {k} images an identity needs {p} identities, the training set has "
            f"{len(identities)}; use --batch_size {max(1, len(identities)) * k} or less"
        )
    rng = np.random.default_rng([seed, epoch])
    names = list(identities)
    queue: list[int] = []  # identities still to be visited
    waiting: dict[int, list[int]] = {pid: [] for pid in names}  # images still to be visited
    batches = []
    for _ in range(-(-len(pids) * (visits or k) // batch_size)):
        chosen: list[int] = queue[:p]
        queue = queue[p:]
        if len(chosen) < p:
            order = [names[i] for i in rng.permutation(len(names))]
            fresh = [pid for pid in order if pid not in chosen][: p - len(chosen)]
            queue = [pid for pid in order if pid not in fresh]
            chosen = chosen + fresh
        batches.append(np.concatenate([draw_images(identities[pid], waiting[pid], k, rng) for pid in chosen]))
    return batches


def draw_images(images: np.ndarray, waiting: list[int], k: int, rng: np.random.Generator) -> np.ndarray:
    """K images from an identity's queue, refilled by shuffling; distinct where it has K images."""
    drawn: list[int] = []
    while len(drawn) < k:
        if not waiting:
            order = rng.permutation(images).tolist()
            early = [i for i in order if i not in drawn]  # what this batch has already comes last
            waiting.extend(early + [i for i in order if i in drawn])
        drawn.append(waiting.pop(0))
    return np.array(drawn)


def anchor_batches(
    pids: Sequence[int], batch_size: int, k: int, seed: int, epoch: int, visits: int = 0
) -> list[np.ndarray]:
    """The published sampler: for every image, shuffled, K other images of its identity, itself excluded.

    Identities may meet twice in a batch, and the last batch may be smaller. With fewer than K others they are
    drawn with repetition; an identity of one image repeats it (the published code crashes there). Every image is an
    anchor once, whatever `visits`.
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
    """Images in random order, whoever is on them (K has no part in it). What does not fill a batch is left out, as
    batch norm wants full ones. Raises InputError when there are fewer images than a batch has."""
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
    order = np.argsort(array, kind="stable")
    values, starts = np.unique(array[order], return_index=True)
    return dict(zip(values.tolist(), np.split(order, starts[1:])))


SAMPLERS = {"pk": pk_batches, "anchor": anchor_batches, "random": random_batches}
