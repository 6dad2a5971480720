"""Memory that one process owns and others of its host use, found by an address that messages can carry.

Owns the memory file, its address and who reaches it; must not import anything but the standard library.
"""

import mmap
import os
import sys
import weakref
from dataclasses import dataclass


@dataclass(frozen=True)
class MemoryAddress:
    """The owner's descriptor of the memory file, and the file's device and inode."""

    host: str
    pid: int
    descriptor: int
    device: int
    inode: int
    num_bytes: int


class HostMemory:
    """An anonymous memory file. The kernel frees it with its last mapping, however the processes end, and the
    size of /dev/shm does not limit it.

    Other processes of the host open it through the owner's /proc entry, as long as this object lives.

    Attributes:
        address: what `reach` needs.
        mapping: num_bytes, initially zero.

    Raises OSError if the system has no such memory, or too little.
    """

    def __init__(self, name: str, num_bytes: int) -> None:
        if sys.platform != "linux":
            raise OSError("anonymous memory files need Linux")
        descriptor = os.memfd_create(name)
        weakref.finalize(self, os.close, descriptor)
        # Allocates the pages now: if memory ran out later, a copy would end in a SIGBUS.
        os.posix_fallocate(descriptor, 0, num_bytes)
        file = os.fstat(descriptor)
        self.address = MemoryAddress(
            host_name(), os.getpid(), descriptor, file.st_dev, file.st_ino, num_bytes
        )
        self.mapping = mmap.mmap(descriptor, num_bytes)


def reach(address: MemoryAddress) -> mmap.mmap | None:
    """Maps the memory; None if this process is on another host or in another container, or the owner ended.

    Raises OSError if the system grants no access.
    """
    if address.host != host_name():
        return None
    descriptor = os.open(f"/proc/{address.pid}/fd/{address.descriptor}", os.O_RDWR)
    try:
        # The owner may have ended, and another process or file may have its numbers now.
        file = os.fstat(descriptor)
        same = (file.st_dev, file.st_ino) == (address.device, address.inode)
        return mmap.mmap(descriptor, address.num_bytes) if same else None
    finally:
        os.close(descriptor)


def host_name() -> str:
    """A name that processes share if they see each other under /proc: same boot, same namespace of pids."""
    with open("/proc/sys/kernel/random/boot_id") as boot:
        return f"{boot.read().strip()} {os.readlink('/proc/self/ns/pid')}"
