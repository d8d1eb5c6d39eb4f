"""image create, save and delete under rules: what a mount would refuse, they refuse too."""

import json
import os
from pathlib import Path

import pytest

from imagefs.cli import rights
from imagefs.cli.rights import daemon_uid
from tests.support.commands import Run
from tests.support.fake_mount import FakeMount

ID = "9f0a2f5c-6f2e-4c0b-9d43-8a1d6c7b9e21"
MINE, THEIRS = "11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222"
RULES = "[^secret$]\ncreate = @\nread = admin\nupdate = @\ndelete = @\n[^locked$]\ncreate = admin\nread = @\nupdate = @\ndelete = @\n"
RULES += "[.*]\ncreate = @\nread = @\nupdate = @\ndelete = @\n"


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A small raw image."""
    path = tmp_path / "disk.raw"
    path.write_bytes(b"guest" * 1000)
    return path


class Host:
    """The configuration of the test's host: who this process is, and the policies."""

    def __init__(self, directory: Path) -> None:
        """Take the directory in which the configuration is."""
        self._directory = directory
        self._plain = (directory / "imagefs.toml").read_text()
        (directory / "rules").write_text(RULES)

    def act_as(self, *roles: str, project: str | None = None, policies: dict[str, str] | None = None) -> None:
        """Make this process somebody with these roles."""
        (self._directory / "policy.json").write_text(json.dumps(policies or {}))
        entry = f"[[identity.map]]\nuid = {os.geteuid()}\nroles = {json.dumps(roles)}\n" + (f'project_id = "{project}"\n' if project else "")
        rules = f'[policy]\npolicy_file = "{self._directory}/policy.json"\n[protection]\nproperty_protection_file = "{self._directory}/rules"\n'
        (self._directory / "imagefs.toml").write_text(self._plain + rules + entry)

    def stored(self) -> list[str]:
        """Return the names of what the store holds."""
        return sorted(path.name for path in (self._directory / "store").iterdir())


@pytest.fixture
def host(tmp_path: Path, run: Run, raw: Path) -> Host:
    """A host on which this process is a member of project us; the store has a private image of each project, both named `debian`."""
    found = Host(tmp_path)
    found.act_as("admin")
    for image_id, owner in ((MINE, "us"), (THEIRS, "them")):
        created = run("image", "create", "debian", "--file", raw, "--id", image_id, "--owner", owner, "--private")
        assert created.status == 0, created.err
    found.act_as("member", "reader", project="us")
    return found


def test_an_image_belongs_to_the_project_of_who_makes_it(run: Run, host: Host, raw: Path) -> None:
    """As in Glance; the project may be said, too."""
    for options in ([], ["--owner", "us"]):
        found = run("image", "create", "x", "--file", raw, *options, "-f", "value", "-c", "owner")
        assert (found.status, found.out, found.err) == (0, "us\n", "")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--owner", "them"], "you may not create images of project them: only admins may"),
        (["--public"], "you may not make it public: the policy publicize_image does not allow it"),
        (["--property", "locked=1"], "you may not set --property locked: the property protections do not allow it"),
        (["--property", "a=1", "--property", "my_locked=1", "--property", "locked=1"], "--property locked"),
    ],
)
def test_what_the_rules_forbid_is_not_created(run: Run, host: Host, raw: Path, options: list[str], reason: str) -> None:
    """One line with the reason, and nothing is stored; an admin may."""
    before = host.stored()
    found = run("image", "create", "x", "--file", raw, *options)
    assert (found.status, found.out, found.err.count("\n")) == (1, "", 1)
    assert reason in found.err
    assert host.stored() == before
    host.act_as("admin")
    assert run("image", "create", "x", "--file", raw, *options).status == 0


def test_community_images_are_for_those_whom_the_policy_lets(run: Run, host: Host, raw: Path) -> None:
    """Glance's own policy lets members make images of their project so; another one may not."""
    assert run("image", "create", "x", "--file", raw, "--community").status == 0
    host.act_as("member", "reader", project="us", policies={"communitize_image": "!"})
    assert "the policy communitize_image does not allow it" in run("image", "create", "x", "--file", raw, "--community").err


def test_policies_of_new_images_see_owner_and_visibility(run: Run, host: Host, raw: Path) -> None:
    """Glance knows no more of an image that is yet to be made."""
    policy = "project_id:%(owner)s and 'private':%(visibility)s and not 'x':%(name)s"
    host.act_as("member", "reader", project="us", policies={"add_image": policy})
    assert run("image", "create", "x", "--file", raw, "--private").status == 0
    assert "the policy add_image" in run("image", "create", "x", "--file", raw, "--shared").err


def test_who_has_no_role_creates_nothing(run: Run, host: Host, raw: Path) -> None:
    """A reader neither."""
    for roles in ((), ("reader",)):
        host.act_as(*roles, project="us")
        found = run("image", "create", "x", "--file", raw)
        assert (found.status, found.err.count("\n")) == (1, 1)
        assert "you may not create images of project us: the policy add_image does not allow it" in found.err
    host.act_as()
    assert "you may not create images without an owner" in run("image", "create", "x", "--file", raw).err


def test_what_its_maker_may_not_read_is_not_printed(run: Run, host: Host, raw: Path, tmp_path: Path) -> None:
    """It is stored all the same; a column of it cannot be asked for."""
    found = run("image", "create", "x", "--file", raw, "--id", ID, "--property", "secret=1", "--property", "a=2", "-f", "json")
    assert found.status == 0
    assert "secret" not in json.loads(found.out)
    assert json.loads(found.out)["a"] == "2"
    assert run("image", "create", "y", "--file", raw, "--property", "secret=1", "-c", "secret").status == 2
    record = json.loads((tmp_path / "store" / ID / "image.json").read_text())
    assert record["image"]["properties"] == {"a": "2", "secret": "1"}


def test_images_of_others_are_not_there(run: Run, host: Host, tmp_path: Path) -> None:
    """By id they do not exist, and by name they make nothing ambiguous."""
    for command in (["delete", THEIRS], ["save", THEIRS, "--file", tmp_path / "saved"]):
        found = run("image", *command)
        assert (found.status, found.err) == (1, f"imagefs: there is no image with the id or name '{THEIRS}': see imagefs image list\n")
    assert run("image", "save", "debian", "--file", tmp_path / "saved").status == 0
    assert run("image", "delete", "debian").status == 0
    assert host.stored() == [THEIRS]
    assert "there is no image" in run("image", "delete", "debian").err


def test_images_in_lists_come_before_others_of_their_name(run: Run, host: Host, raw: Path, tmp_path: Path) -> None:
    """A community image of another project takes no name from one's own, but can be named if there is no other."""
    host.act_as("admin")
    run("image", "create", "debian", "--file", raw, "--id", ID, "--owner", "them", "--community")
    host.act_as("member", "reader", project="us")
    assert run("image", "save", "debian", "--file", tmp_path / "saved").status == 0
    found = run("image", "delete", ID)
    assert found.err == f"imagefs: image delete {ID}: only the image's owner and admins may\n"
    assert run("image", "delete", "debian").status == 0
    assert run("image", "save", "debian", "--file", tmp_path / "saved").status == 0
    assert host.stored() == sorted([THEIRS, ID])


@pytest.mark.parametrize(("roles", "policies"), [(("reader",), {}), (("member", "reader"), {"download_image": "!"})])
def test_who_may_not_download_saves_nothing(run: Run, host: Host, tmp_path: Path, roles: tuple[str, ...], policies: dict[str, str]) -> None:
    """Seeing an image is not enough to have its bytes."""
    host.act_as(*roles, project="us", policies=policies)
    found = run("image", "save", MINE, "--file", tmp_path / "saved")
    assert (found.status, found.err.count("\n")) == (1, 1)
    assert "download_image" in found.err
    assert not (tmp_path / "saved").exists()


@pytest.mark.parametrize(("roles", "policies"), [(("reader",), {}), (("member", "reader"), {"delete_image": "!"})])
def test_who_may_not_delete_deletes_nothing(run: Run, host: Host, roles: tuple[str, ...], policies: dict[str, str]) -> None:
    """A reader, and whom the policy keeps from it."""
    host.act_as(*roles, project="us", policies=policies)
    found = run("image", "delete", "debian")
    assert (found.status, found.err) == (1, "imagefs: image delete debian: the policy delete_image does not allow it\n")
    assert MINE in host.stored()


def test_unsound_rules_stop_every_command(run: Run, host: Host, raw: Path, tmp_path: Path, mount: FakeMount) -> None:
    """A rules file that cannot be read is no reason to do without rules; commands of the mount do not need it."""
    (tmp_path / "rules").unlink()
    for command in (["create", "x", "--file", raw], ["delete", MINE], ["save", MINE, "--file", tmp_path / "saved"]):
        found = run("image", *command)
        assert (found.status, found.err.count("\n")) == (1, 1)
        assert str(tmp_path / "rules") in found.err
    assert host.stored() == [MINE, THEIRS]
    assert run("image", "list").status == 0


def test_the_groups_of_the_process_count(run: Run, host: Host, raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A group of the map gives its identity to a process that is in it."""
    config = tmp_path / "imagefs.toml"
    config.write_text(config.read_text().replace(f"uid = {os.geteuid()}", "gid = 4242"))
    monkeypatch.setattr(os, "getgroups", lambda: [7, 4242])
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    monkeypatch.setattr(rights, "daemon_uid", lambda _: 0)
    assert run("image", "create", "x", "--file", raw, "-f", "value", "-c", "owner").out == "us\n"
    monkeypatch.setattr(os, "getgroups", lambda: [7])
    assert "you may not create" in run("image", "create", "x", "--file", raw).err


def test_the_state_directory_tells_whose_the_daemon_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its owner is the daemon's user; if it is not there yet, the owner of the nearest directory above it."""
    state = tmp_path / "a" / "state"
    assert daemon_uid(state) == tmp_path.stat().st_uid
    state.mkdir(parents=True)
    os.chown(state, 1234, 1234)
    assert daemon_uid(state) == 1234
    assert daemon_uid(state / "x" / "y") == 1234

    def denied(_: Path) -> os.stat_result:
        raise PermissionError

    monkeypatch.setattr(Path, "stat", denied)
    assert daemon_uid(state) == 0
