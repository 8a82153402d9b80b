"""Finds the blocks that other writers append to a directory while this process reads from it.

It lists the directory and reads the record headers of what grew since the last look; it keeps no index. A
record that was seen is not told again, and one that is not whole yet is told once it is.
"""

from __future__ import annotations

from pathlib import Path

from kvstore.errors import StoreError
from kvstore.files import Files
from kvstore.keys import WeightsId
from kvstore.layout import BlockLayout
from kvstore.segment_contents import SegmentContents
from kvstore.segment_files import is_segment_name
from kvstore.segment_scan import scan_segment


class SegmentFollower:
    """The segments of one directory that somebody else writes. One thread at a time."""

    def __init__(self, directory: Path, layout: BlockLayout, files: Files, *, writer_id: str) -> None:
        """`writer_id`: this process's own, whose segments are left out."""
        self._directory = directory
        self._layout = layout
        self._files = files
        self._own = f".{writer_id}."
        self._sizes: dict[str, int] = {}
        self._told: dict[str, int] = {}
        """Per segment, the offset of the last record told."""

    def grown(self, weights_id: WeightsId) -> list[tuple[SegmentContents, range]]:
        """Segments of `weights_id` with the records that are new since the last look.

        Raises StoreError where the directory cannot be listed.
        """
        found = []
        for name, nbytes in self._listed(weights_id).items():
            if self._sizes.get(name) == nbytes:
                continue
            contents = scan_segment(self._directory, name, self._files)
            if not isinstance(contents, SegmentContents):
                continue  # not whole yet, or not there any more
            self._sizes[name] = nbytes
            if contents.layout != self._layout or not len(contents):
                continue
            told = self._told.get(name, -1)
            first = next((i for i, offset in enumerate(contents.offsets) if offset > told), len(contents))
            self._told[name] = contents.offsets[-1]
            if first < len(contents):
                found.append((contents, range(first, len(contents))))
        return found

    def _listed(self, weights_id: WeightsId) -> dict[str, int]:
        sizes = {}
        try:
            for name in self._files.list(self._directory):
                if is_segment_name(name) and name.startswith(f"{weights_id}.") and self._own not in name:
                    try:
                        sizes[name] = self._files.size(self._directory / name)
                    except FileNotFoundError:
                        continue
        except OSError as error:
            raise StoreError(
                f"kvstore.path {self._directory} cannot be listed: {error.strerror or error}"
            ) from error
        for gone in self._sizes.keys() - sizes.keys():
            del self._sizes[gone]
            self._told.pop(gone, None)
        return sizes
