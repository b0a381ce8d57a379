"""The published counts of the known datasets."""

from collections.abc import Iterator

Counts = dict[str, tuple[int, int]]  # {subset: (identities, images)}

# Numbers of images are None if they differ between the 20 splits of a classic set.
CLASSIC = {"trainval": (1_367, None), "query": (100, None), "gallery": (100, None)}
VEHICLEID = (13_164, 113_346)
MSMT17 = {"trainval": (1_041, 32_621), "query": (3_060, 11_659), "gallery": (3_060, 82_161)}
PUBLISHED: dict[str, dict[str, tuple[int, int | None]]] = {
    "market1501": {"trainval": (751, 12_936), "query": (750, 3_368), "gallery": (751, 15_913)},
    "dukemtmc": {"trainval": (702, 16_522), "query": (702, 2_228), "gallery": (1_110, 17_661)},
    "occluded_duke": {"trainval": (702, 15_618), "query": (519, 2_210), "gallery": (1_110, 17_661)},
    "cuhk03": {"trainval": (767, 7_368), "query": (700, 1_400), "gallery": (700, 5_328)},
    "cuhk03_detected": {"trainval": (767, 7_365), "query": (700, 1_400), "gallery": (700, 5_332)},
    "cuhk03_classic": {"all": (1_467, 14_096), **CLASSIC},
    "cuhk03_classic_detected": {"all": (1_467, 14_097), **CLASSIC},
    "msmt17_v1": {**MSMT17},
    "msmt17_v2": {**MSMT17},
    "veri776": {"trainval": (576, 37_778), "query": (200, 1_678), "gallery": (200, 11_579)},
    "vehicleid_small": {"trainval": VEHICLEID, "query": (800, 6_493), "gallery": (800, 6_493)},
    "vehicleid_medium": {"trainval": VEHICLEID, "query": (1_600, 13_377), "gallery": (1_600, 13_377)},
    "vehicleid_large": {"trainval": VEHICLEID, "query": (2_400, 19_777), "gallery": (2_400, 19_777)},
}
GT_BBOX = {"market1501": 25_259}  # images of hand-drawn boxes
ENLARGED = "gallery enlarged by"  # first words of the note of a set with more distractors


def differences(name: str, counts: Counts) -> Iterator[str]:
    """One sentence for each subset in `counts` that differs from the published dataset."""
    for subset, (pids, images) in PUBLISHED.get(name, {}).items():
        here = counts.get(subset)
        if here and (here[0] != pids or images not in (None, here[1])):
            known = f"{pids:,} identities" + (f" and {images:,} images" if images else "")
            yield f"{subset} has {here[0]:,} identities and {here[1]:,} images; published: {known}"
