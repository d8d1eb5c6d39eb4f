"""This module lets files share the blocks of equal bytes, where their filesystem can do that (XFS, btrfs)."""

import errno
import fcntl
import os
import struct
from pathlib import Path
from typing import Final

_FICLONERANGE: Final = 0x4020940D
_FIDEDUPERANGE: Final = 0xC0189436
_CLONE: Final = struct.Struct("=qQQQ")
_SAME: Final = struct.Struct("=QQHHI")
_TARGET: Final = struct.Struct("=qQQiI")
_BLOCK: Final = 4096


def can_share(directory: Path) -> bool:
    """Tell whether files in a directory can share blocks, by trying it in a file without a name, which `du` never sees. Blocks; never raises."""
    try:
        descriptor = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError:
        return False
    try:
        os.pwrite(descriptor, bytes(_BLOCK - 1) + b"x", 0)
        fcntl.ioctl(descriptor, _FICLONERANGE, _CLONE.pack(descriptor, 0, _BLOCK, _BLOCK))
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def share(source: int, source_offset: int, target: int, target_offset: int, length: int) -> int:
    """Let a range of the file `target` share the blocks of one of `source`, if both have the same bytes; return how many bytes do.

    The kernel compares, and holds both files still for that time, so that no byte of either changes; fewer than all, or 0, means that they
    differ. Offsets and length are multiples of the filesystem's block. Blocks: what was not written yet is written first. Raises OSError.
    """
    request = bytearray(_SAME.pack(source_offset, length, 1, 0, 0) + _TARGET.pack(target, target_offset, 0, 0, 0))
    fcntl.ioctl(source, _FIDEDUPERANGE, request)
    _, _, shared, status, _ = _TARGET.unpack_from(request, _SAME.size)
    if status < 0:
        raise OSError(-status, os.strerror(-status))
    return shared if status == 0 else 0


NOT_SHAREABLE: Final = frozenset({errno.EOPNOTSUPP, errno.EINVAL, errno.ENOTTY, errno.EXDEV, errno.EPERM})
"""What `share` fails with where nothing can be shared, today or tomorrow."""
