"""File operations that survive a crash of the machine: synced folders, checksums, links to whole files.

Owns these operations; must not import anything outside the standard library.
"""

import errno
import mmap
import os
import shutil
import zlib
from pathlib import Path
from typing import BinaryIO

_NO_LINKS = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP)


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder durable. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def crc32_of(file: BinaryIO) -> int:
    """CRC-32 of all bytes of an open file. Raises OSError."""
    if not os.fstat(file.fileno()).st_size:  # an empty file cannot be mapped
        return 0
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        return zlib.crc32(mapped)


def link_or_copy(source: Path, target: Path) -> None:
    """Gives a file that never changes a second name; makes a synced copy where the file system has no links.

    Does nothing if the target exists. Raises OSError.
    """
    try:
        target.hardlink_to(source)
    except FileExistsError:
        pass
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        shutil.copyfile(source, target)
        with target.open("rb") as copied:
            os.fsync(copied.fileno())
