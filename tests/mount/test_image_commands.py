"""The image commands on a real mount, as the users whom its configuration knows: what each of them is shown, and what it may change."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from imagefs.config import load
from imagefs.store.configured import open_configured
from imagefs.store.record import ImageRecord
from tests.support.commands import Outcome
from tests.support.mounted import Mounted, mounted, write_config
from tests.support.run_as import run_as
from tests.support.user import open_the_way

pytestmark = pytest.mark.mount

ROOT, OWNER, READER, GUEST, STRANGER, NOBODY = 0, 62001, 62002, 62003, 62004, 62005
BODY = b"an image" * 1000
CONFIG = f"""
allow_other = true
[protection]
property_protection_file = "rules.conf"
[[identity.map]]
uid = {OWNER}
roles = ["member", "reader"]
project_id = "ours"
[[identity.map]]
uid = {READER}
roles = ["reader"]
project_id = "ours"
[[identity.map]]
uid = {GUEST}
roles = ["member", "reader"]
project_id = "guests"
[[identity.map]]
uid = {STRANGER}
roles = ["member", "reader"]
project_id = "theirs"
"""
RULES = """
[^secret_]
create = admin
read = admin
update = admin
delete = admin
[^fixed_]
create = @
read = @
update = admin
delete = admin
[.*]
create = @
read = @
update = @
delete = @
"""


class Scene:
    """A mount that lets everybody in, and what its users do."""

    def __init__(self, mount: Mounted, source: Path) -> None:
        """Take the mount, and a file to make images of."""
        self.mount = mount
        self.source = source

    def act(self, uid: int, *arguments: str) -> Outcome:
        """Run a command as a user, whatever comes of it."""
        return run_as(uid, self.mount.config, *arguments)

    def do(self, uid: int, *arguments: str) -> str:
        """Run a command as a user; it must succeed, and what it prints is returned."""
        found = self.act(uid, *arguments)
        assert (found.status, found.err) == (0, ""), (arguments, found)
        return found.out

    def refused(self, uid: int, *arguments: str) -> str:
        """Run a command as a user; it must fail with one line, which is returned."""
        found = self.act(uid, *arguments)
        assert (found.status, found.out, found.err.count("\n")) == (1, "", 1), (arguments, found)
        return found.err

    def create(self, name: str, *options: str) -> str:
        """Store an image of the project `ours`, as root, and return its id."""
        options = ("--owner", "ours", "--disk-format", "raw", "--file", str(self.source), "-f", "value", "-c", "id", *options)
        return self.do(ROOT, "image", "create", name, *options).strip()

    def shown(self, uid: int, image: str) -> dict[str, object]:
        """Return what a user is shown of an image."""
        fields: dict[str, object] = json.loads(self.do(uid, "image", "show", image, "-f", "json"))
        return fields

    def names(self, uid: int, *options: str) -> list[str]:
        """Return the names that a user's list has."""
        return [image["Name"] for image in json.loads(self.do(uid, "image", "list", "-f", "json", *options))]

    def stored(self, image_id: str) -> ImageRecord:
        """Return the record as the store has it."""
        return open_configured(load(self.mount.config).store).find(image_id).record


@pytest.fixture(scope="module")
def mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    """The mount of this module's tests."""
    directory = tmp_path_factory.mktemp("commands")
    open_the_way(directory)
    (directory / "rules.conf").write_text(RULES)
    config = write_config(directory, extra=CONFIG)
    with mounted(directory, config) as found:
        yield found


@pytest.fixture
def scene(mount: Mounted, tmp_path: Path) -> Iterator[Scene]:
    """The mount without images; what a test makes is deleted after it."""
    source = tmp_path / "disk.raw"
    source.write_bytes(BODY)
    open_the_way(tmp_path)
    found = Scene(mount, source)
    yield found
    listed = [found.do(ROOT, "image", "list", "--all", *hidden, "-f", "value", "-c", "id").split() for hidden in ([], ["--hidden"])]
    for image_id in (image_id for ids in listed for image_id in ids):
        found.do(ROOT, "image", "set", image_id, "--unprotected")
        found.do(ROOT, "image", "delete", image_id)


def test_an_owner_changes_all_that_glance_lets_it_change(scene: Scene) -> None:
    """What is set is shown at once, typed, and stored; what was there before stays."""
    image_id = scene.create("web", "--property", "kept=1", "--tag", "old", "--private")
    scene.do(
        OWNER, "image", "set", "web", "--name", "web é", "--min-disk", "3", "--min-ram", "64", "--protected", "--hidden", "--property", "a/b c=x=y",
        "--property", "empty=", "--architecture", "x86_64", "--os-distro", "debian", "--os-version", "12", "--kernel-id", "k", "--ramdisk-id", "r",
        "--instance-id", "i", "--tag", "new", "--tag", "old", "--shared",
    )  # fmt: skip
    wanted = {
        "name": "web é", "min_disk": 3, "min_ram": 64, "protected": True, "os_hidden": True, "a/b c": "x=y", "empty": "", "architecture": "x86_64",
        "os_distro": "debian", "os_version": "12", "kernel_id": "k", "ramdisk_id": "r", "instance_uuid": "i", "tags": ["old", "new"],
        "visibility": "shared", "kept": "1", "owner": "ours",
    }  # fmt: skip
    shown = scene.shown(OWNER, image_id)
    assert {key: shown[key] for key in wanted} == wanted
    record = scene.stored(image_id)
    assert (record.name, record.min_disk, record.protected, record.tags) == ("web é", 3, True, ("old", "new"))
    assert record.properties == {key: value for key, value in wanted.items() if key in record.properties}
    scene.do(OWNER, "image", "unset", image_id, "--property", "kept", "--property", "a/b c", "--tag", "old")
    scene.do(OWNER, "image", "set", image_id, "--unhidden", "--unprotected", "--private")
    shown = scene.shown(OWNER, "web é")
    assert (shown["tags"], shown["os_hidden"], shown["protected"], shown["visibility"]) == (["new"], False, False, "private")
    assert not {"kept", "a/b c"} & shown.keys()


def test_who_may_not_change_is_told_why(scene: Scene) -> None:
    """A reader of the project, a member of another, and the owner where protections and policies are against it; nothing changes by it."""
    image_id = scene.create("web", "--public", "--property", "fixed_1=v", "--property", "secret_1=v")
    before = scene.stored(image_id)
    assert "modify_image" in scene.refused(READER, "image", "set", "web", "--name", "x")
    assert "only its owner and admins" in scene.refused(STRANGER, "image", "set", "web", "--property", "k=v")
    line = scene.refused(OWNER, "image", "set", "web", "--property", "fixed_1=w")
    assert line.startswith("imagefs: image set web: --property fixed_1: ")
    assert "property protections" in line
    assert line.endswith(": nothing was changed\n")
    assert "property protections" in scene.refused(OWNER, "image", "unset", "web", "--property", "fixed_1")
    assert "property protections" in scene.refused(OWNER, "image", "set", "web", "--property", "secret_1=w")
    assert "is not there" in scene.refused(OWNER, "image", "unset", "web", "--property", "secret_1")
    assert "publicize_image" in scene.refused(OWNER, "image", "set", "web", "--public")
    assert scene.stored(image_id) == before


def test_what_was_changed_before_a_refusal_stays_and_is_said(scene: Scene) -> None:
    """And properties that the caller cannot read are kept through all its changes."""
    image_id = scene.create("web", "--private", "--property", "fixed_1=v", "--property", "secret_1=v")
    line = scene.refused(OWNER, "image", "set", "web", "--name", "other", "--property", "k=v", "--property", "fixed_1=w", "--tag", "t")
    assert line.endswith(": changed before: --name, --property k\n")
    record = scene.stored(image_id)
    assert (record.name, record.properties, record.tags) == ("other", {"fixed_1": "v", "secret_1": "v", "k": "v"}, ())
    assert "secret_1" not in scene.shown(OWNER, image_id)
    assert scene.shown(ROOT, image_id)["secret_1"] == "v"


def test_an_image_is_shared_accepted_and_taken_away(scene: Scene) -> None:
    """The guest sees it by its id at once, in lists when it has accepted; a stranger never; and neither after the end of it."""
    image_id = scene.create("web", "--shared")
    assert "there is no image" in scene.refused(GUEST, "image", "show", image_id)
    added = json.loads(scene.do(OWNER, "image", "add", "project", "web", "guests", "-f", "json"))
    assert added == {"image_id": image_id, "member_id": "guests", "status": "pending"}
    assert "shared with that project already" in scene.refused(OWNER, "image", "add", "project", "web", "guests")
    assert scene.shown(GUEST, "web")["id"] == image_id
    assert scene.names(GUEST) == []
    assert scene.names(GUEST, "--shared", "--member-status", "pending") == ["web"]
    scene.refused(OWNER, "image", "set", "web", "--project", "guests", "--accept")
    scene.do(GUEST, "image", "set", "web", "--project", "guests", "--accept")
    assert scene.names(GUEST) == scene.names(GUEST, "--shared") == ["web"]
    scene.do(OWNER, "image", "add", "project", "web", "others")
    assert scene.do(OWNER, "image", "member", "list", "web", "-f", "value", "-c", "Member ID", "-c", "Status") == "guests accepted\nothers pending\n"
    assert scene.do(GUEST, "image", "member", "list", "web", "-f", "value", "-c", "Member ID", "-c", "Status") == "guests accepted\n"
    assert "there is no image" in scene.refused(STRANGER, "image", "member", "list", image_id)
    scene.do(GUEST, "image", "set", "web", "--project", "guests", "--reject")
    assert scene.names(GUEST) == []
    assert scene.names(GUEST, "--member-status", "rejected") == ["web"]
    scene.do(OWNER, "image", "remove", "project", "web", "guests")
    assert "there is no image" in scene.refused(GUEST, "image", "show", image_id)
    assert "is not there" in scene.refused(OWNER, "image", "remove", "project", "web", "guests")
    assert [member.project_id for member in scene.stored(image_id).members] == ["others"]


def test_only_shared_images_have_members(scene: Scene) -> None:
    """The line says what to do."""
    scene.create("web", "--private")
    assert "only shared images have members" in scene.refused(OWNER, "image", "member", "list", "web")
    assert "only shared images have members" in scene.refused(OWNER, "image", "add", "project", "web", "guests")
    scene.do(OWNER, "image", "set", "web", "--shared")
    assert scene.do(OWNER, "image", "member", "list", "web", "-f", "json") == "[]\n"


def test_lists_of_each_user(scene: Scene) -> None:
    """Visibility, hiding and roles decide what each is shown, by default and on demand."""
    for visibility in ("public", "private", "shared", "community"):
        scene.create(visibility, f"--{visibility}")
    scene.create("hidden", "--public", "--os-hidden")
    assert scene.names(OWNER) == ["community", "private", "public", "shared"]
    assert scene.names(READER, "--private") == ["private"]
    assert scene.names(STRANGER) == ["public"]
    assert scene.names(STRANGER, "--community") == ["community"]
    assert scene.names(STRANGER, "--all") == ["community", "public"]
    assert scene.names(STRANGER, "--hidden") == scene.names(OWNER, "--hidden") == ["hidden"]
    assert scene.names(OWNER, "--project", "ours", "--sort", "visibility", "--limit", "2") == ["community", "private"]
    assert scene.names(ROOT, "--all") == ["community", "private", "public", "shared"]
    assert "the policy get_images does not let you list images" in scene.refused(NOBODY, "image", "list")
    assert "you may not list images" in scene.refused(NOBODY, "image", "show", "public")


def test_status_is_for_everybody(scene: Scene) -> None:
    """Every user is shown what is mounted; how full the cache is belongs to who mounted, and images count only for who may list them."""
    scene.create("base", "--public")
    shown = {uid: json.loads(scene.do(uid, "status", "-f", "json")) for uid in (ROOT, OWNER, NOBODY)}
    assert [found["images"] for found in shown.values()] == [1, 1, None]
    assert ["cache" in found for found in shown.values()] == [True, False, False]


def test_filters_by_a_property_do_not_tell_what_may_not_be_read(scene: Scene) -> None:
    """Who cannot read a property cannot probe for its value either."""
    scene.create("web", "--public", "--property", "secret_1=v", "--property", "open=v")
    assert scene.names(ROOT, "--property", "secret_1=v") == ["web"]
    assert scene.names(OWNER, "--property", "secret_1=v") == []
    assert scene.names(OWNER, "--property", "open=v") == ["web"]


def test_another_project_takes_no_name(scene: Scene) -> None:
    """A community image of the same name is not meant, unless there is no other."""
    own = scene.create("debian", "--private")
    foreign = scene.create("debian", "--community", "--owner", "theirs")
    assert scene.shown(OWNER, "debian")["id"] == own
    assert scene.shown(GUEST, "debian")["id"] == foreign
    assert scene.shown(STRANGER, foreign)["id"] == foreign
    assert "2 images are named" not in scene.do(OWNER, "image", "set", "debian", "--tag", "mine")


def test_a_deactivated_image_is_read_by_admins_only(scene: Scene, tmp_path: Path) -> None:
    """The owner may take its bytes away from all, itself included, and give them back."""
    image_id = scene.create("web", "--private")
    path = scene.mount.mountpoint / "images" / image_id
    assert path.read_bytes() == BODY
    scene.do(OWNER, "image", "set", "web", "--deactivate")
    assert scene.shown(OWNER, "web")["status"] == "deactivated"
    assert scene.names(OWNER, "--status", "deactivated") == ["web"]
    assert "is deactivated" in scene.refused(OWNER, "image", "save", image_id, "--file", str(tmp_path / "x"))
    scene.do(ROOT, "image", "save", image_id, "--file", str(tmp_path / "saved"))
    assert (tmp_path / "saved").read_bytes() == BODY
    assert "reactivate" in scene.refused(READER, "image", "set", "web", "--activate")
    scene.do(OWNER, "image", "set", "web", "--activate")
    assert scene.shown(OWNER, "web")["status"] == "active"


def test_what_is_no_attribute_is_shown_to_those_who_may_read_it(scene: Scene) -> None:
    """Long names and values come from the mount, not past it; they cannot be set through it."""
    long = "n" * 251
    image_id = scene.create("web", "--public", "--property", f"{long}=v", "--property", f"secret_{long[:240]}=v", "--property", f"big={'v' * 65537}")
    shown = scene.shown(STRANGER, image_id)
    assert (shown[long], len(str(shown["big"]))) == ("v", 65537)
    assert not [name for name in shown if name.startswith("secret")]
    assert scene.shown(ROOT, image_id)[f"secret_{long[:240]}"] == "v"
    assert "cannot be changed through the mount" in scene.refused(OWNER, "image", "set", "web", "--property", f"{long}=w")
    assert "cannot be changed through the mount" in scene.refused(OWNER, "image", "unset", "web", "--property", long)


def test_quotas_are_told(scene: Scene) -> None:
    """More tags than Glance allows are refused in the mount's words."""
    scene.create("web", "--private", *(part for number in range(128) for part in ("--tag", str(number))))
    assert "129 tags are more than 128" in scene.refused(OWNER, "image", "set", "web", "--tag", "one-more")
    scene.do(OWNER, "image", "set", "web", "--tag", "5")


def test_the_store_obeys_the_same_rules(scene: Scene, tmp_path: Path) -> None:
    """create, save and delete refuse what the mount would, also to who could write to the store."""
    image_id = scene.create("web", "--private", "--protected")
    create = ("image", "create", "new", "--disk-format", "raw", "--file", str(scene.source))
    assert "publicize_image" in scene.refused(OWNER, *create, "--public")
    assert "property protections" in scene.refused(OWNER, *create, "--property", "secret_1=v")
    assert "only admins may" in scene.refused(OWNER, *create, "--owner", "theirs")
    assert "add_image" in scene.refused(READER, *create)
    assert "there is no image" in scene.refused(STRANGER, "image", "save", image_id, "--file", str(tmp_path / "x"))
    assert "download_image" in scene.refused(READER, "image", "save", image_id, "--file", str(tmp_path / "x"))
    assert "delete_image" in scene.refused(READER, "image", "delete", image_id)
    assert "there is no image" in scene.refused(STRANGER, "image", "delete", "web")
    assert "protected" in scene.refused(OWNER, "image", "delete", "web")
    assert scene.names(ROOT, "--all") == ["web"]
