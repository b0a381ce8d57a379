"""The shapes of image files: pictures that keep the aspect ratio, and whether an input size suits a dataset."""

import logging
from collections.abc import Sequence

import numpy as np
from PIL import Image as PILImage

from reid.data.loader import decode
from reid.data.records import Image
from reid.errors import InputError

logger = logging.getLogger(__name__)

ORIENTATION, TURNED = 0x0112, (5, 6, 7, 8)  # the EXIF tag, and its values for an image turned by a quarter
LOOKED_AT = 200  # images whose shapes stand for a dataset
FAR = 2  # an input whose aspect ratio differs from the images' by more than this factor


def size_of(path: str) -> tuple[int, int]:
    """(height, width) of an upright image file, from its header. Raises InputError."""
    try:
        with PILImage.open(path) as image:
            if image.format == "TIFF":
                image.load()  # Pillow turns it then, and removes the orientation
            turned = image.getexif().get(ORIENTATION) in TURNED
            return (image.width, image.height) if turned else (image.height, image.width)
    except Exception as e:  # Pillow raises OSError, SyntaxError, ValueError, struct.error and others for bad files
        raise InputError(f"{path} cannot be read as an image: {e}") from e


def fitted(path: str, height: int, width: int) -> np.ndarray:
    """RGB pixels (h, w, 3) uint8 of a file: as large as height and width allow, in its own aspect ratio.

    Raises InputError.
    """
    h, w = size_of(path)
    scale = min(height / h, width / w)
    return decode(path, max(1, round(h * scale)), max(1, round(w * scale)))


def warn_of_shape(images: Sequence[Image], h: int, w: int) -> None:
    """Logs a warning where the input shape is far from the median aspect ratio of the images."""
    ratios = []
    for image in images[:: -(-len(images) // LOOKED_AT)]:
        try:
            height, width = size_of(image.path)
        except InputError:  # is reported where the image is decoded
            continue
        ratios.append(width / height)
    if not ratios:
        return
    median = float(np.median(ratios))
    if not 1 / FAR <= (w / h) / median <= FAR:
        logger.warning(
            f"the input is {h} high and {w} wide, but the images are {median:.2g} times as wide as high "
            "(median): they are squashed. Train and evaluate with --h and --w of their shape"
        )
