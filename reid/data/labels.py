"""The user's own names of identities, cameras and images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Labels:
    """Names by number. A dataset without them shows its numbers.

    identities: the label of each pid. cameras: the label of each camid. sources: the original
    name of each file in images/. tracks: the track of each gallery file, in a dataset that has them.
    """

    identities: Sequence[str] = ()
    cameras: Sequence[str] = ()
    sources: Mapping[str, str] = field(default_factory=dict)
    tracks: Mapping[str, str] = field(default_factory=dict)

    @property
    def given(self) -> bool:
        """Whether identities or cameras have names of their own."""
        return bool(self.identities or self.cameras)

    def identity(self, pid: int) -> str:
        return named(self.identities, pid)

    def camera(self, camid: int) -> str:
        return named(self.cameras, camid)

    def source(self, file: str) -> str:
        return self.sources.get(file, file)


def named(labels: Sequence[str], number: int) -> str:
    return labels[number] if 0 <= number < len(labels) else str(number)
