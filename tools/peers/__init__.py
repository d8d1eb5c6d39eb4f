"""This package is everybody whom tools/bench compares: imagefs, and what one would use instead."""

from typing import Final

from tools.peers.copies import CopyAndOverlay, FullCopy, LocalFile
from tools.peers.network_disks import Nbdkit, QemuCurl
from tools.peers.own import FreshNode, RestartedNode, SecondNode
from tools.peers.peer import Peer
from tools.peers.rclone import Rclone
from tools.peers.s3fs import S3fs

PEERS: Final[tuple[Peer, ...]] = (
    FreshNode(),
    SecondNode(),
    RestartedNode(),
    LocalFile(),
    S3fs(),
    Rclone(is_tuned=False),
    Rclone(is_tuned=True),
    Nbdkit("64K"),
    Nbdkit("256K"),
    QemuCurl(),
    CopyAndOverlay(),
    FullCopy(),
)
"""In the order of a round: the three states of imagefs follow from one another."""
