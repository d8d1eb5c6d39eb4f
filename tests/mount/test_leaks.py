"""A matrix of callers, images and properties on a real mount: nobody learns what it may not see, in whatever order callers come.

What each caller may see and do is worked out here from three tables, apart from the code under test.
"""

import contextlib
import dataclasses
import errno
import itertools
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec
import pytest

from imagefs.store.configured import open_configured
from imagefs.store.record import ImageRecord, Member
from tests.support.mounted import Mounted, mounted, run_imagefs, write_config
from tests.support.user import User, open_the_way, user

pytestmark = pytest.mark.mount

OURS, THEIRS, GUESTS = "project-ours", "project-theirs", "project-guests"


@dataclasses.dataclass(frozen=True)
class Person:
    """One caller: ids, and what the configuration maps them to."""

    uid: int
    roles: frozenset[str]
    project: str | None


PEOPLE: Final = {
    "root": Person(0, frozenset({"admin"}), None),
    "owner": Person(61001, frozenset({"member", "reader"}), OURS),
    "colleague": Person(61002, frozenset({"reader"}), OURS),
    "guest": Person(61003, frozenset({"member", "reader"}), GUESTS),
    "stranger": Person(61004, frozenset({"member", "reader"}), THEIRS),
    "nobody": Person(61005, frozenset(), None),
}
CONFIG: Final = f"""
allow_other = true
[protection]
property_protection_file = "rules.conf"
[identity]
default_roles = []
[[identity.map]]
uid = 61001
roles = ["Member", "reader"]
project_id = "{OURS}"
[[identity.map]]
gid = 61002
roles = ["reader"]
project_id = "{OURS}"
[[identity.map]]
uid = 61003
roles = ["member", "reader"]
project_id = "{GUESTS}"
[[identity.map]]
uid = 61004
roles = ["member", "reader"]
project_id = "{THEIRS}"
"""
CLASSES: Final = {  # prefix: roles that may (read, update, delete); "@" is everybody
    "all": ("@", "@", "@"),
    "mem": ("member", "member", "member"),
    "adm": ("admin", "admin", "admin"),
    "ro": ("reader", "admin", "admin"),
    "upd": ("member,admin", "member,admin", "admin"),
    "wo": ("admin", "member,admin", "member"),
    "none": ("!", "!", "!"),
    "ghost": ("!", "@", "@"),
}
RULES: Final = "".join(
    f"[^{prefix}_]\ncreate = admin\nread = {read}\nupdate = {update}\ndelete = {delete}\n" for prefix, (read, update, delete) in CLASSES.items()
)
PROPERTIES: Final = {f"{prefix}_{number}": f"value of {prefix}_{number}" for prefix in CLASSES for number in range(5)}
IMAGES: Final = {
    name: ImageRecord(
        id=f"{number}1111111-1111-4111-8111-111111111111",
        created_at="2026-01-02T03:04:05Z",
        updated_at="2026-01-02T03:04:05Z",
        name=f"image-{name}",
        status="active",
        visibility=visibility,
        owner=OURS,
        disk_format="raw",
        container_format="bare",
        properties=PROPERTIES,
        members=(Member(GUESTS, status),) if status else (),
    )
    for number, (name, visibility, status) in enumerate(
        [
            ("public", "public", ""),
            ("community", "community", ""),
            ("shared", "shared", "accepted"),
            ("pending", "shared", "pending"),
            ("private", "private", ""),
        ]
    )
}
BODY: Final = b"nobody's business" * 1000


# -- what should be -----------------------------------------------------------------------------


def sees(person: Person, image: ImageRecord) -> bool:
    """Glance's visibility and its default policy get_image."""
    if "admin" in person.roles:
        return True
    if "reader" not in person.roles:
        return False
    member = image.visibility == "shared" and any(member.project_id == person.project for member in image.members)
    return image.visibility in {"public", "community"} or person.project == image.owner or member


def lists(person: Person, image: ImageRecord) -> bool:
    """The default listing: no community image of others, and shared ones once they are accepted."""
    if not sees(person, image):
        return False
    if image.visibility == "community":
        return person.project == image.owner
    accepted = any(member.project_id == person.project and member.status == "accepted" for member in image.members)
    return "admin" in person.roles or image.visibility != "shared" or person.project == image.owner or accepted


def downloads(person: Person, image: ImageRecord) -> bool:
    """The default policy download_image."""
    return "admin" in person.roles or (sees(person, image) and "member" in person.roles)


def modifies(person: Person, image: ImageRecord) -> bool:
    """The default policy modify_image."""
    return "admin" in person.roles or ("member" in person.roles and person.project == image.owner)


def permitted(person: Person, name: str, operation: int) -> bool:
    """What the rules file says: 0 read, 1 update, 2 delete."""
    roles = CLASSES[name.partition("_")[0]][operation]
    return roles == "@" or bool(set(roles.split(",")) & person.roles)


# -- the mount ----------------------------------------------------------------------------------


@dataclasses.dataclass
class Stage:
    """A mount with all images on it, and a process for each caller."""

    mount: Mounted
    users: dict[str, User]

    def path(self, image: ImageRecord, face: str = "images") -> str:
        """Return where an image is."""
        return str(self.mount.mountpoint / face / image.id)

    def in_order(self, may: dict[str, bool], *, allowed_first: bool) -> list[str]:
        """Return the callers, those who may something first, or last."""
        return sorted(self.users, key=lambda name: may[name] != allowed_first)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Five images on a mount that lets everybody in."""
    directory = tmp_path_factory.mktemp("stage")
    open_the_way(directory)
    config = write_config(directory, extra=CONFIG)
    (directory / "rules.conf").write_text(RULES)
    source = directory / "disk.raw"
    source.write_bytes(BODY)
    for image in IMAGES.values():
        run_imagefs(config, "image", "create", "--disk-format", "raw", "--id", image.id, "--file", str(source), str(image.name))
        _store_record(config, image)
    with contextlib.ExitStack() as stack:
        users = {name: stack.enter_context(user(person.uid, person.uid)) for name, person in PEOPLE.items()}
        yield Stage(stack.enter_context(mounted(directory, config)), users)


def _store_record(config: Path, wanted: ImageRecord) -> None:
    """Give an image its properties, owner and members past all rules, as another node's admin might have."""
    from imagefs.config import load

    store = open_configured(load(config).store)
    store.update(
        wanted.id,
        lambda old: msgspec.structs.replace(
            old, visibility=wanted.visibility, owner=wanted.owner, properties=dict(wanted.properties), members=wanted.members
        ),
    )


ORDERS: Final = pytest.mark.parametrize("allowed_first", [True, False], ids=["allowed-first", "denied-first"])
FACES: Final = pytest.mark.parametrize("face", ["images", "raw"])
EACH_IMAGE: Final = pytest.mark.parametrize("image", IMAGES.values(), ids=IMAGES)


@EACH_IMAGE
@FACES
@ORDERS
def test_names_and_bytes_are_for_those_who_may(stage: Stage, image: ImageRecord, face: str, allowed_first: bool) -> None:
    """Lookup, stat, access, open and read, in both orders and again: hidden is ENOENT, seen but not to be downloaded EACCES."""
    seen = {name: sees(person, image) for name, person in PEOPLE.items()}
    path = stage.path(image, face)
    for _, name in itertools.product(range(2), stage.in_order(seen, allowed_first=allowed_first)):
        who, person = stage.users[name], PEOPLE[name]
        assert who.call("lookup", path) is seen[name], name
        read = 0 if downloads(person, image) else errno.EACCES
        if not seen[name]:
            for call in (("stat", path), ("open", path), ("read", path), ("listxattr", path), ("open", path, os.O_RDWR)):
                assert who.errno(*call) == errno.ENOENT, (name, call)
            assert who.call("access", path, os.F_OK) is False
            continue
        assert who.call("stat", path) == (stat.S_IFREG, len(BODY)), name
        assert who.call("access", path, os.R_OK) is (read == 0), name
        assert who.errno("open", path) == who.errno("read", path) == read, name
        assert who.errno("open", path, os.O_RDWR) == errno.EROFS, name
        if read == 0:
            assert who.call("read_all", path) == BODY


@FACES
@ORDERS
def test_directories_show_each_caller_its_own(stage: Stage, face: str, allowed_first: bool) -> None:
    """Readdir has what Glance's default listing has; a caller without get_images gets EACCES; names/ is the same by name."""
    may = {name: "reader" in person.roles or "admin" in person.roles for name, person in PEOPLE.items()}
    root = stage.mount.mountpoint
    for _, name in itertools.product(range(2), stage.in_order(may, allowed_first=allowed_first)):
        who, person = stage.users[name], PEOPLE[name]
        if not may[name]:
            for directory in (face, "names", ".imagefs/images"):
                assert who.errno("listdir" if directory != ".imagefs/images" else "read", str(root / directory)) == errno.EACCES, directory
            continue
        listed = [image for image in IMAGES.values() if lists(person, image)]
        assert sorted(who.call("listdir", str(root / face))) == sorted(image.id for image in listed), name
        assert sorted(who.call("listdir", str(root / "names"))) == sorted(str(image.name) for image in listed), name
        for image in IMAGES.values():
            link = str(root / "names" / str(image.name))
            assert who.errno("readlink", link) == (0 if image in listed else errno.ENOENT), (name, image.name)
        lines = [msgspec.json.decode(line) for line in who.call("read_all", str(root / ".imagefs" / "images")).splitlines()]
        assert sorted(line["id"] for line in lines) == sorted(image.id for image in IMAGES.values() if sees(person, image)), name
        for line in lines:
            assert {key for key in line if key in PROPERTIES} == {key for key in PROPERTIES if permitted(person, key, 0)}, name


@EACH_IMAGE
@ORDERS
def test_properties_are_for_those_who_may_read_them(stage: Stage, image: ImageRecord, allowed_first: bool) -> None:
    """Getxattr and listxattr of each property by each caller: ENODATA and not listed for whom the rules deny it."""
    path = stage.path(image)
    for name in PROPERTIES:
        may = {who: sees(person, image) and permitted(person, name, 0) for who, person in PEOPLE.items()}
        for who in stage.in_order(may, allowed_first=allowed_first):
            caller = stage.users[who]
            if not sees(PEOPLE[who], image):
                assert caller.errno("getxattr", path, f"user.{name}") == errno.ENOENT, (who, name)
                continue
            assert (f"user.{name}" in caller.call("listxattr", path)) is may[who], (who, name)
            if may[who]:
                assert caller.call("getxattr", path, f"user.{name}") == PROPERTIES[name].encode()
            else:
                assert caller.errno("getxattr", path, f"user.{name}") == errno.ENODATA, (who, name)


@EACH_IMAGE
@ORDERS
def test_properties_are_changed_by_those_who_may(stage: Stage, image: ImageRecord, allowed_first: bool) -> None:
    """Setxattr (plain, create, replace) and removexattr of each property by each caller, and nothing that was refused is changed."""
    path, root = stage.path(image), stage.users["root"]
    for name in PROPERTIES:
        may = {who: modifies(person, image) and permitted(person, name, 0) and permitted(person, name, 1) for who, person in PEOPLE.items()}
        for who in stage.in_order(may, allowed_first=allowed_first):
            person, caller, attribute = PEOPLE[who], stage.users[who], f"user.{name}"
            outcome = _outcome(person, image, name)
            value = PROPERTIES[name].encode()
            assert caller.errno("setxattr", path, attribute, value) == outcome["set"], (who, name)
            assert caller.errno("setxattr", path, attribute, value, os.XATTR_REPLACE) == outcome["replace"], (who, name)
            assert caller.errno("setxattr", path, attribute, value, os.XATTR_CREATE) == outcome["create"], (who, name)
            assert caller.errno("removexattr", path, attribute) == outcome["remove"], (who, name)
            if outcome["remove"] == 0:
                assert root.errno("setxattr", path, attribute, value, os.XATTR_CREATE) == 0
    _check_store(stage, image)


def _outcome(person: Person, image: ImageRecord, name: str) -> dict[str, int]:
    """Return the errno of each way to write, by the contract's table."""
    if not sees(person, image):
        return dict.fromkeys(("set", "replace", "create", "remove"), errno.ENOENT)
    changes = modifies(person, image)
    if not permitted(person, name, 0):
        refused = errno.ENODATA if changes else errno.EPERM
        return {"set": errno.EPERM, "replace": errno.ENODATA, "create": errno.EPERM, "remove": refused}
    update = 0 if changes and permitted(person, name, 1) else errno.EPERM
    return {"set": update, "replace": update, "create": errno.EEXIST, "remove": 0 if changes and permitted(person, name, 2) else errno.EPERM}


def _check_store(stage: Stage, image: ImageRecord) -> None:
    from imagefs.config import load

    stored = open_configured(load(stage.mount.config).store).find(image.id).record
    assert stored.properties == dict(PROPERTIES)
    assert (stored.visibility, stored.members, stored.owner) == (image.visibility, image.members, image.owner)


@EACH_IMAGE
def test_images_that_may_not_be_downloaded_make_no_instances(stage: Stage, image: ImageRecord) -> None:
    """user.image takes what the caller may download; what it does not see is as unknown as what is not there, by id and by name."""
    for name, person in PEOPLE.items():
        directory = stage.mount.mountpoint / "instances" / f"{name}-{image.name}"
        directory.mkdir()
        os.chown(directory, person.uid, person.uid)
        who = stage.users[name]
        expected = 0 if downloads(person, image) else errno.EACCES if sees(person, image) else errno.EINVAL
        if not lists(person, image):  # it has a name for those who have it in their lists only
            assert who.errno("setxattr", str(directory), "user.image", str(image.name).encode()) == errno.EINVAL, name
        assert who.errno("setxattr", str(directory), "user.image", image.id.encode()) == expected, name
        if expected == errno.EINVAL:
            unknown = f"{image.id[:-1]}0".encode()
            reason = who.call("getxattr", str(directory), "user.imagefs.error").decode()
            assert who.errno("setxattr", str(directory), "user.image", unknown) == expected
            assert who.call("getxattr", str(directory), "user.imagefs.error").decode() == reason.replace(image.id, unknown.decode())
        directory.rmdir()


@EACH_IMAGE
def test_root_of_a_user_namespace_is_the_user_it_was(stage: Stage, image: ImageRecord) -> None:
    """A user who is root in a namespace of its own sees what it saw before: the kernel tells imagefs its real number.

    Where the kernel lets nobody have such a namespace, as in a chroot, not even root, nobody gets to see anything by it.
    """
    have_namespaces = subprocess.run(["unshare", "--user", "true"], capture_output=True, check=False).returncode == 0
    for name in ("owner", "colleague", "guest", "stranger", "nobody"):
        uid = PEOPLE[name].uid
        ids = [f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]
        inside = ["sh", "-c", 'id -u; stat -c %s "$1"', "sh", stage.path(image)]
        done = subprocess.run(["setpriv", *ids, "unshare", "--user", "--map-root-user", *inside], capture_output=True, text=True, check=False)
        expected = f"0\n{len(BODY)}\n" if sees(PEOPLE[name], image) else "0\n"
        assert done.stdout == (expected if have_namespaces else ""), (name, done.stderr)


def test_counts_are_not_for_everybody(stage: Stage) -> None:
    """The statistics count images and instances of all; only the mounting user reads them. The directories' own times tell nothing."""
    stats = str(stage.mount.mountpoint / ".imagefs" / "stats")
    for name, who in stage.users.items():
        assert who.errno("read", stats) == (0 if name == "root" else errno.EACCES), name
    before = (stage.mount.mountpoint / "images").stat()
    source = stage.mount.config.parent / "disk.raw"
    stage.mount.imagefs("image", "create", "--private", "--file", str(source), "--disk-format", "raw", "one more")
    assert (stage.mount.mountpoint / "images").stat() == before
    stage.mount.imagefs("image", "delete", "one more")
    assert (stage.mount.mountpoint / "images").stat() == before
