"""File operations that survive a crash of the machine: whole files, synced folders, checksums, links.

Owns these operations; must not import anything outside the standard library.
"""

import errno
import mmap
import os
import shutil
import zlib
from pathlib import Path
from typing import BinaryIO

# Object stores, FUSE and CIFS say these instead of doing what they cannot do.
UNSUPPORTED = (errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOTTY)
_NO_LINKS = (errno.EXDEV, errno.EPERM, errno.EMLINK, *UNSUPPORTED)


def sync_folder(folder: Path) -> bool:
    """Makes the names in a folder durable; returns False where the file system cannot. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        return False
    finally:
        os.close(descriptor)
    return True


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file, synced; at any time `path` holds the old file or the whole new one. Raises OSError."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        partial.unlink(missing_ok=True)  # the disk may be full
        raise
    partial.replace(path)
    # The rename itself is durable only once the folder is synced.
    sync_folder(path.parent)


def crc32_of(file: BinaryIO) -> int:
    """CRC-32 of all bytes of an open file. Raises OSError."""
    if not os.fstat(file.fileno()).st_size:  # an empty file cannot be mapped
        return 0
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        return zlib.crc32(mapped)


def link_or_copy(source: Path, target: Path) -> bool:
    """Gives a file that never changes a second name; makes a synced copy where the file system has no links.

    Does nothing if the target exists. Returns whether no copy was needed. Raises OSError.
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
        return False
    return True
