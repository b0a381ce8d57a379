"""Lists of images, also as Windows writes them."""

import pytest

from reid.data.images import find_images
from reid.errors import InputError


def test_lists_from_elsewhere(images, tmp_path):
    listed = tmp_path / "list.txt"
    listed.write_text(f"{images[0]}\t5\n{images[1]}\n", encoding="utf-8-sig")  # as Windows writes it
    found = find_images([str(listed)])
    assert [(i.path, i.pid, i.camid) for i in found] == [(images[0], 5, -1), (images[1], -1, -1)]
    for pid in ("9" * 19, "9" * 30, "five"):
        listed.write_text(f"{images[0]}\t{pid}\n", encoding="utf-8")
        with pytest.raises(InputError, match="line 1: expected 'path'"):
            find_images([str(listed)])
