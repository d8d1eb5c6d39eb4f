"""Tests of the plans that read an ext filesystem, against what mke2fs made and what debugfs says of it."""

import re
import struct
from pathlib import Path

import pytest

from imagefs.profile import ext4
from imagefs.profile.ext4_volume import HEAD, Ext4Volume, open_volume
from imagefs.profile.volume import Node
from imagefs.units import KIB, MIB
from tests.support.plans import bytes_of, debugfs, make_ext, plant, run_plan

KINDS = [
    ("ext4", ("-t", "ext4", "-b", "4096")),
    ("ext4 of 1 KiB", ("-t", "ext4", "-b", "1024")),
    ("ext4 without 64bit", ("-t", "ext4", "-O", "^64bit,^metadata_csum,^flex_bg")),
    ("meta_bg", ("-t", "ext4", "-b", "1024", "-O", "meta_bg,^resize_inode")),
    ("ext3", ("-t", "ext3", "-b", "1024")),
    ("ext2", ("-t", "ext2", "-b", "1024", "-I", "128")),
]
START = 3 * 64 * KIB


def opened(disk: bytes, start: int = 0) -> Ext4Volume | None:
    volume, _ = run_plan(open_volume(start, len(disk) - start, disk[start : start + HEAD]), disk)
    return volume


def names_below(volume: Ext4Volume, disk: bytes, number: int = 2, path: str = "") -> dict[str, Node]:
    """Return all nodes by their paths."""
    found: dict[str, Node] = {}
    nodes, _ = run_plan(volume.nodes([number]), disk)
    listing, _ = run_plan(volume.listings(list(nodes.values())), disk)
    children = {name: child for name, child in listing[number].items() if name not in (".", "..")}
    below, _ = run_plan(volume.nodes(list(children.values())), disk)
    for name, child in children.items():
        found[f"{path}/{name}"] = below[child]
        if below[child].kind == "directory":
            found |= names_below(volume, disk, child, f"{path}/{name}")
    return found


@pytest.fixture(params=KINDS, ids=[name for name, _ in KINDS])
def image(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    files: dict[str, bytes | str] = {f"many/{'n' * 40}{number}": b"%d" % number for number in range(300)}
    files |= {"small": b"x" * 100, "empty": b"", "large": bytes(range(256)) * 40 * KIB, "dir/link": "/large", "dir/long": "/" + "l" * 200}
    plant(tree, files)
    path = tmp_path / "image"
    make_ext(tree, path, 64 * MIB, *request.param[1])
    return path


def test_finds_every_file_and_its_bytes(image: Path) -> None:
    """Names, kinds, sizes and bytes are those that mke2fs was given."""
    disk = image.read_bytes()
    volume = opened(disk)
    assert volume is not None
    found = names_below(volume, disk)
    tree = image.parent / "tree"
    assert {path for path in found if path != "/lost+found"} == {f"/{path.relative_to(tree)}" for path in tree.rglob("*")}
    files = {path: node for path, node in found.items() if node.kind == "file"}
    spread, _ = run_plan(volume.spread(list(files.values())), disk)
    for path, node in files.items():
        assert bytes_of(disk, spread[node.number], node.size) == (tree / path[1:]).read_bytes(), path
    assert found["/dir/link"].target == "/large"
    assert found["/dir/long"].target is None
    assert found["/dir/long"].size == 201


def test_places_are_the_blocks_that_debugfs_names(image: Path) -> None:
    """The places of a large file are the blocks that debugfs maps it to, one for one."""
    disk = image.read_bytes()
    volume = opened(disk)
    assert volume is not None
    node = names_below(volume, disk)["/large"]
    block_size = KIB << struct.unpack_from("<I", disk, 1024 + 24)[0]
    spread, _ = run_plan(volume.spread([node]), disk)
    blocks = [at // block_size for offset, length in spread[node.number] for at in range(offset, offset + length, block_size)]
    sample = range(0, len(blocks), max(1, len(blocks) // 12))
    assert [blocks[index] for index in sample] == [int(debugfs(image, "bmap", "/large", str(index))) for index in sample]


def test_all_of_a_level_is_one_round(image: Path) -> None:
    """Looking at many nodes costs one round trip, however many they are."""
    disk = image.read_bytes()
    volume = opened(disk)
    assert volume is not None
    _, course = run_plan(volume.nodes(list(range(1, 500))), disk)
    assert len(course.rounds) == 1


def test_bitmaps_and_journal_are_where_debugfs_says(tmp_path: Path) -> None:
    """What mounting reads is known: block bitmaps of all groups that have one, and the journal's node."""
    plant(tmp_path / "tree", {"file": b"x"})
    make_ext(tmp_path / "tree", tmp_path / "image", 300 * MIB, "-t", "ext4", "-b", "4096")
    disk = (tmp_path / "image").read_bytes()
    volume = opened(disk)
    assert volume is not None
    said = re.findall(r"block bitmap at (\d+), inode bitmap at (\d+)(.*?)(?=Group|$)", debugfs(tmp_path / "image", "stats"), re.DOTALL)
    wanted = {int(block) for block, _, rest in said if "Block not init" not in rest} | {
        int(inode) for _, inode, rest in said if "Inode not init" not in rest
    }
    assert len(said) == 3
    assert {offset // (4 * KIB) for offset, _ in volume.bitmaps} == wanted
    journal, _ = run_plan(volume.nodes([volume.journal]), disk)
    assert journal[volume.journal].size >= MIB


def test_a_filesystem_may_begin_anywhere(tmp_path: Path) -> None:
    """Places count from the disk's start, not from the filesystem's."""
    plant(tmp_path / "tree", {"file": b"found" * 1000})
    make_ext(tmp_path / "tree", tmp_path / "image", 16 * MIB, "-t", "ext4", start=START)
    disk = (tmp_path / "image").read_bytes()
    volume = opened(disk, START)
    assert volume is not None
    node = names_below(volume, disk)["/file"]
    spread, _ = run_plan(volume.spread([node]), disk)
    assert bytes_of(disk, spread[node.number], node.size) == b"found" * 1000


def test_an_extent_tree_with_levels_is_followed(tmp_path: Path) -> None:
    """A file with more extents than its inode holds is found through the tree's blocks."""
    plant(tmp_path / "tree", {"holes": b""})
    with (tmp_path / "tree" / "holes").open("wb") as file:
        for index in range(1500):
            file.seek(index * 8 * KIB)
            file.write(b"%08d" % index * 128)
    make_ext(tmp_path / "tree", tmp_path / "image", 64 * MIB, "-t", "ext4", "-b", "1024")
    disk = (tmp_path / "image").read_bytes()
    volume = opened(disk)
    assert volume is not None
    node = names_below(volume, disk)["/holes"]
    spread, course = run_plan(volume.spread([node]), disk)
    assert any(course.rounds), "the map did not fit into the inode"
    assert [cut[:8] for cut in (disk[offset : offset + 8] for offset, _ in spread[node.number])][:1500] == [b"%08d" % index for index in range(1500)]


def superblock(**changes: tuple[str, int, int]) -> bytes:
    """Return a sound superblock with some fields (format, offset, value) changed."""
    raw = bytearray(1024)
    fields = {
        "inodes": ("<I", 0, 1024),
        "blocks": ("<I", 4, 8192),
        "first": ("<I", 20, 1),
        "blocks_per_group": ("<I", 32, 8192),
        "inodes_per_group": ("<I", 40, 1024),
        "magic": ("<H", 56, 0xEF53),
        "revision": ("<I", 76, 1),
        "inode_size": ("<H", 88, 256),
    } | changes
    for form, offset, value in fields.values():
        struct.pack_into(form, raw, offset, value)
    return bytes(raw)


def test_a_sound_superblock_is_taken() -> None:
    """The one that the next test damages is sound."""
    assert ext4.parse_superblock(superblock(), 8 * MIB) is not None


@pytest.mark.parametrize(
    "change",
    [
        ("<H", 56, 0), ("<I", 24, 31), ("<I", 4, 0), ("<I", 4, 0xFFFFFFFF), ("<I", 32, 0), ("<I", 32, 0xFFFFFFFF), ("<I", 40, 0),
        ("<H", 88, 0), ("<H", 88, 300), ("<H", 88, 0x8000), ("<I", 20, 5), ("<I", 40, 1 << 30),
    ],
)  # fmt: skip
def test_a_damaged_superblock_is_none(change: tuple[str, int, int]) -> None:
    """Sizes of zero, of nonsense or beyond the disk are refused, so that nothing is divided by or looped over."""
    assert ext4.parse_superblock(superblock(damage=change), 8 * MIB) is None


def test_a_directory_block_that_goes_round_ends() -> None:
    """An entry whose length is 0 or leads outside ends the block."""
    geometry = ext4.parse_superblock(superblock(), 8 * MIB)
    assert geometry is not None
    good = struct.pack("<IHBB", 12, 12, 1, 0) + b"a\0\0\0"
    for bad in (
        struct.pack("<IHBB", 13, 0, 1, 0),
        struct.pack("<IHBB", 13, 2000, 1, 0),
        struct.pack("<IHBB", 13, 9, 1, 0),
        struct.pack("<IHBB", 13, 8, 99, 0),
    ):
        assert [entry.name for entry in ext4.entries(geometry, good + bad + bytes(500))] == ["a"]


def test_an_extent_tree_that_points_to_itself_ends() -> None:
    """Each level below must be lower than the one above, so that loops end after MAX_EXTENT_DEPTH."""
    geometry = ext4.parse_superblock(superblock(), 8 * MIB)
    assert geometry is not None
    loop = struct.pack("<HHHHI", 0xF30A, 1, 4, 5, 0) + struct.pack("<IIHH", 0, 77, 0, 0)
    inode = ext4.Inode(0o100644, MIB, 0x80000, loop + bytes(60 - len(loop)))
    volume = Ext4Volume(0, geometry, [ext4.Group(3, 4, 5, 1024)])
    node = Node(12, "file", MIB, None, inode)
    spread, course = run_plan(volume.spread([node]), bytes(77 * KIB) + loop + bytes(MIB))
    assert spread == {12: []}
    assert len(course.rounds) <= ext4.MAX_EXTENT_DEPTH + 1
