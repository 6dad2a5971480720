"""Anonymous shared memory of large messages, used again once all who read it are done.

Owns memory files and the rule of when one is free; must not import anything but the standard library.

Making the pages of 18 MB takes 20 ms, writing into pages that exist takes 4 ms (AMD EPYC).
"""

from __future__ import annotations

import fcntl
import mmap
import os
import weakref
from collections.abc import Sequence
from contextlib import suppress

_KEPT_BYTES = 32 << 20
_KEPT_FILES = 8
_F_SETLEASE = getattr(fcntl, "F_SETLEASE", 1024)


class Memory:
    """Shared memory for reading. The kernel frees it with the last process that holds or maps it."""

    def __init__(self, descriptor: int, num_bytes: int) -> None:
        self.descriptor = descriptor
        self.num_bytes = num_bytes
        weakref.finalize(self, os.close, descriptor)

    def view(self) -> memoryview:
        """Maps the memory, read-only; the mapping lives as long as arrays that use it."""
        flags = mmap.MAP_SHARED | mmap.MAP_POPULATE
        return memoryview(mmap.mmap(self.descriptor, self.num_bytes, flags=flags, prot=mmap.PROT_READ))


class MemoryPool:
    """Shared memory that one process writes, for one thread. It keeps 8 files and 32 MB at most for later."""

    def __init__(self) -> None:
        self._files: list[_File] = []
        """The most recently used one is the last."""

    def write(self, views: Sequence[memoryview], offsets: Sequence[int], num_bytes: int) -> Memory:
        """Memory of num_bytes with each of these bytes at its offset. Raises OSError if there is no room."""
        file = self._free(num_bytes)
        # Writing makes the pages, so that a lack of memory is an error here and no SIGBUS of a reader.
        for view, offset in zip(views, offsets, strict=True):
            _write(file.descriptor, view, offset)
        file.num_bytes = max(file.num_bytes, num_bytes)
        os.ftruncate(file.descriptor, file.num_bytes)
        if file.is_free():  # else the kernel grants no leases, and would never tell
            self._files.append(file)
        memory = Memory(file.reader(), num_bytes)
        while len(self._files) > _KEPT_FILES or sum(one.num_bytes for one in self._files) > _KEPT_BYTES:
            self._files.pop(0)
        return memory

    def _free(self, num_bytes: int) -> _File:
        """The smallest file with room that nobody reads, else the largest one, else a new one."""
        for file in sorted(
            self._files, key=lambda one: (one.num_bytes < num_bytes, abs(one.num_bytes - num_bytes))
        ):
            if file.is_free():
                self._files.remove(file)
                return file
        return _File()


class _File:
    """A memory file, opened for writing once, by its owner; all who read it have opened it for reading."""

    def __init__(self) -> None:
        made = os.memfd_create("qfleet")
        try:
            # Opened anew, because the kernel does not count a memory file's first descriptor as a writer.
            self.descriptor = os.open(f"/proc/self/fd/{made}", os.O_RDWR | os.O_CLOEXEC)
        finally:
            os.close(made)
        self.num_bytes = 0
        weakref.finalize(self, os.close, self.descriptor)

    def reader(self) -> int:
        """A new descriptor for reading, to be passed on."""
        return os.open(f"/proc/self/fd/{self.descriptor}", os.O_RDONLY | os.O_CLOEXEC)

    def is_free(self) -> bool:
        """Whether nobody has it open for reading, maps it, or will get it by a message on its way.

        The kernel tells: it grants a write lease only to a file's single user, and forgets readers that die.
        """
        with suppress(OSError):
            fcntl.fcntl(self.descriptor, _F_SETLEASE, fcntl.F_WRLCK)
            fcntl.fcntl(self.descriptor, _F_SETLEASE, fcntl.F_UNLCK)
            return True
        return False


def _write(descriptor: int, view: memoryview, offset: int) -> None:
    """Writes the view whole: one call writes 2 GB at most."""
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written
