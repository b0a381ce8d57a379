"""Numbers for the user's labels of identities and cameras."""

import logging
import unicodedata
from collections import defaultdict
from collections.abc import Sequence

from reid.data.messages import indented
from reid.errors import InputError

logger = logging.getLogger(__name__)

MOST_PID = 100_000  # smaller whole numbers are kept as pids; other labels are numbered


def numbered(groups: Sequence[set[str]], what: str, keep: bool = False) -> dict[str, int]:
    """A number for each label: those of the first group first, each group in order.

    what: "identities" or "cameras", for messages. keep: whole numbers below MOST_PID keep
    their number where there is one group. Raises InputError for labels that look the same.
    """
    labels = set().union(*groups)
    assert_distinct(labels, what)
    whole = all(label.isdecimal() for label in labels)
    if keep and whole and len(groups) == 1 and max(map(int, labels), default=0) < MOST_PID:
        return {label: int(label) for label in sorted(labels)}
    ordered: dict[str, int] = {}
    for group in groups:
        for label in sorted(group, key=lambda label: (int(label) if whole else 0, label)):
            ordered.setdefault(label, len(ordered))
    return ordered


def assert_distinct(labels: set[str], what: str) -> None:
    """Raises InputError for labels with outer blanks, and for labels that look the same.

    '12' and '0012' are an error; 'Anna' and 'anna' are two identities with a warning.
    """
    if blank := sorted(label for label in labels if label != label.strip()):
        lines = [f"{label!r}" + (f", beside {label.strip()!r}" if label.strip() in labels else "") for label in blank]
        raise InputError(f"{what} with blanks at the ends; remove the blanks:{indented(lines)}")
    alike: dict[str, list[str]] = defaultdict(list)
    folded: dict[str, list[str]] = defaultdict(list)
    for label in sorted(labels):
        text = " ".join(unicodedata.normalize("NFKC", label).split())
        alike[str(int(text)) if text.isdecimal() else text].append(label)
        folded[text.casefold()].append(label)
    if same := [some for some in alike.values() if len(some) > 1]:
        raise InputError(
            f"{what} that are the same number or look the same, but are written differently; write each in one way, "
            f"or rename one:{indented([' and '.join(map(ascii, some)) for some in same])}"
        )
    for some in (some for some in folded.values() if len(some) > 1):
        logger.warning(f"{what} {' and '.join(some)} differ in letter case only; they count as {len(some)}")
