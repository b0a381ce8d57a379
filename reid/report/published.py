"""Published results of these methods: single query, no re-ranking.

Each row names its source and setting, because it is comparable only as far as they agree.
"""

from typing import NamedTuple


class Published(NamedTuple):
    """map and rank1 in 0..1, with the digits of the source."""

    map: float
    rank1: float
    source: str
    setting: str


PAPER = "Park and Ham, AAAI 2020"
CIL = "CIL-ReID's re-evaluation of RRID"
RRID = "ResNet-50, 384x128, 80 epochs, 6+4+2"
CUHK = "protocol 767/700"
PADDLE = "PaddleClas ReID strong baseline"
PRESET = "ResNet-50, 256x128, 120 epochs, preset "
FAST = "FastReID"
BOT = "BagTricks, ResNet-50, 120 epochs, AMP"
IBN = "ResNet-50-ibn (a stronger backbone)"
LAYUMI = "layumi, Person_reID_baseline_pytorch"
CIRCLE = "ResNet-50, tricks and circle loss; trapezoid AP, lower than ours"
SUN = "Sun et al., ECCV 2018 (arXiv 1711.09349)"
WANG = "Wang et al., ACM MM 2018 (arXiv 1804.01438)"
PUBLISHED = (  # model, dataset, mAP and Rank-1 in percent, source, setting
    ("rrid", "market1501", 88.9, 95.2, PAPER, RRID),
    ("rrid", "market1501", 88.43, 95.19, CIL, RRID),
    ("rrid", "dukemtmc", 78.6, 89.7, PAPER, RRID),
    ("rrid", "cuhk03", 75.6, 77.9, PAPER, f"{RRID}, {CUHK}"),
    ("rrid", "cuhk03_detected", 69.6, 74.4, PAPER, f"{RRID}, {CUHK}"),
    ("rrid", "cuhk03_detected", 67.63, 74.99, CIL, f"{RRID}, {CUHK}"),
    ("baseline", "market1501", 79.8, 92.1, LAYUMI, CIRCLE),
    ("strong_baseline", "market1501", 74.37, 88.45, PADDLE, PRESET + "baseline"),
    ("strong_baseline", "market1501", 85.57, 94.29, PADDLE, PRESET + "softmax_triplet"),
    ("strong_baseline", "market1501", 85.82, 94.50, PADDLE, PRESET + "softmax_triplet_with_center"),
    ("strong_baseline", "market1501", 86.1, 94.4, FAST, BOT),
    ("strong_baseline", "dukemtmc", 77.0, 87.2, FAST, BOT),
    ("pcb", "market1501", 77.4, 92.3, SUN, "ResNet-50, 384x192, 60 epochs"),
    ("mgn", "market1501", 86.9, 95.7, WANG, "ResNet-50, 384x128, 80 epochs"),
    ("mgn", "market1501", 89.8, 95.8, FAST, IBN),
    ("mgn", "dukemtmc", 82.0, 91.1, FAST, IBN),
)


def published(model: str, dataset: str) -> list[Published]:
    """The published results of a model on a dataset, the method's own paper first.

    >>> published("rrid", "market1501")[0][:2]
    (0.889, 0.952)
    >>> published("rrid", "demo")
    []
    """
    rows = [row[2:] for row in PUBLISHED if row[:2] == (model, dataset)]
    return [Published(round(m / 100, 6), round(r / 100, 6), *rest) for m, r, *rest in rows]
