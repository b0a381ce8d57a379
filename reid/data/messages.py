"""Long lists in messages, cut to a readable length."""

from collections.abc import Sequence


def shortened(values: Sequence, most: int = 5) -> str:
    """'1, 2, 3, ... (9 in all)'."""
    text = ", ".join(map(str, values[:most]))
    return text if len(values) <= most else f"{text}, ... ({len(values):,} in all)"


def indented(lines: Sequence, most: int = 20) -> str:
    """One line of text for each of the first values, then how many more there are."""
    shown = [f"\n  {line}" for line in lines[:most]]
    if len(lines) > most:
        shown.append(f"\n  ... and {len(lines) - most:,} more")
    return "".join(shown)
