"""The configuration: where it is found, what its values become, and every mistake at once."""

import tomllib
from pathlib import Path
from typing import Any

import pytest

from imagefs import config
from imagefs.config import Config, load, parse
from imagefs.config.values import FreeSpaceFloor
from imagefs.errors import ConfigError
from imagefs.flavors import BUILT_IN
from imagefs.units import GIB, MIB

DATA = Path("/data")

COMPLETE = """
[store]
url = "s3://images/prod"
layout = "flat"
source_address = "10.0.2.5"

[store.s3]
endpoint_url = "http://127.0.0.1:8333"
region = "eu-1"
profile = "images"
addressing_style = "path"
ca_bundle = "/etc/ssl/own.pem"

[store.glance]
cloud = "prod"
direct_stores = ["file:///srv/glance/", "s3://glance/images//", "file:///srv/glance"]

[state]
dir = "/srv/imagefs"

[protection]
property_protection_file = "/etc/glance/property-protections.conf"
property_protection_rule_format = "policies"

[policy]
policy_file = "/etc/glance/policy.yaml"

[identity]
default_roles = ["Reader"]
default_project = "p0"

[[identity.map]]
user = "alice"
roles = ["Member", " reader ", "member"]
project_id = "p1"
user_id = "u1"

[[identity.map]]
uid = 1000
roles = []

[[identity.map]]
group = "kvm"
roles = ["reader"]

[[identity.map]]
gid = 4294967294
roles = ["Straße"]

[cache]
size = "10GiB"
free_space_floor = "2GiB"
memory = "64MiB"
boot_profiles = false
hydrate = "full"
hydrate_limit = "20GiB"
hydrate_rate = "5MiB"

[flavors."m1.small"]
vcpus = 2
ram = 1024
disk = 0
ephemeral = 3
swap = 512
is_public = false
projects = ["p1", "p2"]

[instances]
owner = "root"
group = "root"
mode = 1777
disk_format = "qcow2"
encryption = true
ephemeral_format = "xfs"
ovmf_code = "/srv/firmware/code.fd"
ovmf_vars = "/srv/firmware/vars.fd"
ovmf_secure_code = "/srv/firmware/secure-code.fd"
ovmf_secure_vars = "/srv/firmware/secure-vars.fd"
node_key = "/etc/imagefs/node.key"

[mount]
mountpoint = "/mnt/imagefs"
allow_other = true

[metrics]
listen = "127.0.0.1:9180"
"""


def read(text: str, **overrides: str) -> Config:
    return parse(tomllib.loads(text), {key.replace("__", "."): value for key, value in overrides.items()}, "x.toml", DATA)


def mistakes(text: str, **overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(text, **overrides)
    return caught.value.mistakes


def test_every_key_is_taken_up() -> None:
    """A file that sets every key gives exactly these values."""
    found = read(COMPLETE)
    assert (found.store.url, found.store.layout, found.store.source_address, found.store.is_default) == (
        "s3://images/prod",
        "flat",
        "10.0.2.5",
        False,
    )
    assert found.store.s3 == config.S3Config("http://127.0.0.1:8333", "eu-1", "images", "path", "/etc/ssl/own.pem")
    assert found.store.glance == config.GlanceConfig("prod", ("file:///srv/glance", "s3://glance/images"))
    assert found.protection == config.ProtectionConfig(Path("/etc/glance/property-protections.conf"), "policies")
    assert found.policy == config.PolicyConfig(Path("/etc/glance/policy.yaml"))
    assert found.identity == config.IdentityConfig(
        ("reader",),
        "p0",
        (
            config.MapEntry(user="alice", roles=("member", "reader"), project_id="p1", user_id="u1"),
            config.MapEntry(uid=1000),
            config.MapEntry(group="kvm", roles=("reader",)),
            config.MapEntry(gid=4294967294, roles=("straße",)),
        ),
    )
    assert found.state.dir == Path("/srv/imagefs")
    assert found.cache == config.CacheConfig(10 * GIB, FreeSpaceFloor(size=2 * GIB), 64 * MIB, False, "full", 20 * GIB, 5 * MIB)
    assert found.flavors["m1.small"].shown(with_projects=True) == {
        "id": "2", "name": "m1.small", "vcpus": 2, "ram": 1024, "disk": 0, "ephemeral": 3, "swap": 512, "is_public": False, "projects": ["p1", "p2"],
    }  # fmt: skip
    assert found.instances == config.InstancesConfig(
        owner="root",
        group="root",
        mode=0o1777,
        disk_format="qcow2",
        encryption=True,
        ephemeral_format="xfs",
        ovmf_code=Path("/srv/firmware/code.fd"),
        ovmf_vars=Path("/srv/firmware/vars.fd"),
        ovmf_secure_code=Path("/srv/firmware/secure-code.fd"),
        ovmf_secure_vars=Path("/srv/firmware/secure-vars.fd"),
        node_key=Path("/etc/imagefs/node.key"),
    )
    assert found.mount == config.MountConfig(Path("/mnt/imagefs"), allow_other=True)
    assert found.metrics.listen == "127.0.0.1:9180"


def test_complete_file_names_every_key() -> None:
    """The file above leaves no key out, so that the test above speaks for all."""
    document = tomllib.loads(COMPLETE)
    for key in config.all_keys():
        part: Any = document
        for name in key.replace("NAME", "m1_small").split("."):
            if isinstance(part, list):  # the map: each key is in one of its entries
                part = {key: value for entry in part for key, value in entry.items()}
            part = part[name.replace("_small", ".small") if name == "m1_small" else name]


def test_nothing_configured_gives_the_embedded_store() -> None:
    """Without a file there is a local store beside the state, made on demand, and the five flavors of Nova."""
    found = read("")
    assert (found.store.url, found.store.is_default, found.state.dir) == ("file:///data/store", True, DATA / "state")
    assert found.cache == config.CacheConfig(50 * GIB, FreeSpaceFloor(fraction=0.05), 256 * MIB)
    assert dict(found.flavors) == dict(BUILT_IN)
    assert found.mount == config.MountConfig(None, allow_other=False)


def test_all_mistakes_are_reported_at_once() -> None:
    """Eight mistakes in one file are eight lines, each with its key."""
    found = mistakes(
        """
        colour = "red"
        [store]
        url = "ftp://x"
        layot = "flat"
        [state]
        dir = "relative"
        [cache]
        size = 50
        [flavors."m1.odd"]
        vcpus = 0
        ram = "1G"
        [mount]
        allow_other = "yes"
        """
    )
    assert [line.partition(": ")[0] for line in found] == [
        "colour", "store.url", "store.layot", "state.dir", "cache.size", 'flavors."m1.odd".vcpus', 'flavors."m1.odd".ram', 'flavors."m1.odd".disk',
        "mount.allow_other",
    ]  # fmt: skip
    assert "did you mean store.layout?" in found[2]


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("[stor]\nurl = 'x'", "did you mean store?"),
        ("[cache]\nsizes = '1G'", "did you mean cache.size?"),
        ("url = 'file:///x'", "did you mean store.url?"),
        ("[mount]\nlisten = '127.0.0.1:1'", "did you mean metrics.listen?"),
        ("[store.s4]\nregion = 'x'", "did you mean store.s3?"),
    ],
)
def test_unknown_keys_say_what_was_meant(text: str, meant: str) -> None:
    """A key that is not known comes with the known one that is most like it."""
    assert meant in mistakes(text)[0]


@pytest.mark.parametrize(
    ("line", "mode"),
    [
        ('mode = "1777"', 0o1777),
        ("mode = 1777", 0o1777),
        ('mode = "0755"', 0o755),
        ("mode = 755", 0o755),
        ('mode = "2770"', 0o2770),
        ("mode = 770", 0o770),
    ],
)
def test_modes_are_octal_however_written(line: str, mode: int) -> None:
    """A mode means its octal digits, in quotes or not."""
    assert read(f"[instances]\n{line}").instances.mode == mode


@pytest.mark.parametrize(
    "value", ["0o755", "0o1777", "0o777", "0o770", "0o700", "0o2775", "493", "true", "-755", "7.55", '"888"', '"77"', '"4755"', "[]"]
)
def test_ambiguous_modes_are_refused(value: str) -> None:
    """A number that may have been written as 0o755 is not taken for its decimal digits."""
    assert "in quotes" in mistakes(f"[instances]\nmode = {value}")[0]


@pytest.mark.parametrize(
    ("section", "line", "reason"),
    [
        ("store", "url = 'file://relative/x'", "three slashes"),
        ("store", "url = 's3://'", "no bucket"),
        ("store", "url = 's3://key:secret@bucket/x'", "credentials"),
        ("store", "url = 'glance:image.example'", "no URL of a Glance"),
        ("store", "url = 'glance:'", "no URL of a Glance"),
        ("store", "url = ''", "not a text"),
        ("store", "url = 5", "not a text"),
        ("store", "source_address = 'storage0'", "not an IP address"),
        ("store", "s3 = 5", "write [store.s3]"),
        ("cache", "size = '12'", "too small"),
        ("cache", "size = '9999999999T'", "too large"),
        ("cache", "size = 'big'", "not a size"),
        ("cache", "memory = 0", "not a size"),
        ("cache", "hydrate = 'always'", "off, idle, full"),
        ("cache", "hydrate_limit = 10", "not a size"),
        ("cache", "hydrate_rate = 0", "not a size"),
        ("cache", "free_space_floor = '100%'", "would leave nothing"),
        ("cache", "free_space_floor = 5", "not a size"),
        ("instances", "owner = 'no-such-user'", "no user"),
        ("instances", "group = 'no-such-group'", "no group"),
        ("instances", "disk_format = 'vmdk'", "raw, qcow2"),
        ("instances", "encryption = 'yes'", "neither true nor false"),
        ("instances", "ephemeral_format = 'ntfs'", "none, ext4, xfs, vfat"),
        ("instances", "ovmf_code = 'code.fd'", "absolute"),
        ("instances", "node_key = ''", "not a text"),
        ("metrics", "listen = '9180'", "HOST:PORT"),
        ("metrics", "listen = '127.0.0.1:99999'", "HOST:PORT"),
        ("metrics", "listen = '::1:9180'", "HOST:PORT"),
        ("mount", "mountpoint = 'mnt'", "absolute"),
        ("store.s3", "addressing_style = 'both'", "auto, path, virtual"),
        ("store.s3", "ca_bundle = 'own.pem'", "absolute"),
        ("store.glance", "cloud = ''", "not a text"),
        ("store.glance", "direct_stores = 'file:///srv'", "not a list"),
        ("store.glance", "direct_stores = [5]", "not a text"),
        ("store.glance", "direct_stores = ['https://x/y']", "cannot be read directly"),
        ("store.glance", "direct_stores = ['s3://']", "no bucket"),
        ("store.glance", "direct_stores = ['s3://bucket/a/../b']", "'..'"),
        ("protection", "property_protection_file = 5", "not a text"),
        ("protection", "property_protection_rule_format = 'Roles'", "roles, policies"),
        ("policy", "policy_file = []", "not a text"),
        ("identity", "default_roles = 'reader'", "square brackets"),
        ("identity", "default_roles = ['a,b', 5]", "'a,b' is not a role"),
        ("identity", "default_roles = ['  ']", "not a role"),
        ("identity", "default_project = ['p']", "a list is not a text"),
    ],
)
def test_bad_values_say_what_to_write(section: str, line: str, reason: str) -> None:
    """A value that cannot be right is one mistake that says why."""
    found = mistakes(f"[{section}]\n{line}")
    assert len(found) == 1
    assert reason in found[0]


@pytest.mark.parametrize(
    ("section", "line"),
    [
        ("store", "url = 's3://key:secret@bucket/x'"),
        ("store", "url = 'glance:https://key:secret@image.example'"),
        ("store", "url = 'https://key:secret@image.example'"),
        ("store.glance", "direct_stores = ['s3://key:secret@bucket/x']"),
        ("store.glance", "direct_stores = ['swift+https://key:secret@image.example/x']"),
    ],
)
def test_secrets_in_a_url_are_not_repeated(section: str, line: str) -> None:
    """The message about credentials in a URL does not show them."""
    assert "secret" not in mistakes(f"[{section}]\n{line}")[0]


def test_a_glance_is_a_store() -> None:
    """Its URL says what kind it is, and where."""
    assert read("[store]\nurl = 'glance:https://image.example:9292'").store.url == "glance:https://image.example:9292"


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("file:///", "too wide"),
        ("file:////", "too wide"),
        ("file://", "absolute directory"),
        ("file://host/srv", "absolute directory"),
        ("file:///srv?x", "absolute directory"),
        ("file:///srv/..", "'..'"),
        ("file:///srv/../etc", "'..'"),
        ("file:///srv/%2e%2e", "'..'"),
        ("file:///srv%2f..", "'..'"),
        ("file:///.", "'.'"),
        ("file:///srv%00", "control character"),
    ],
)
def test_direct_stores_are_no_wider_than_they_look(url: str, reason: str) -> None:
    """What leads up, or to the whole host, is refused."""
    (mistake,) = mistakes(f"[store.glance]\ndirect_stores = ['{url}']")
    assert mistake.startswith("store.glance.direct_stores: ")
    assert reason in mistake


def test_cache_size_zero_means_no_cache() -> None:
    """0 is a size for the cache, as a number and as text."""
    assert read("[cache]\nsize = 0").cache.size == 0
    assert read("[cache]\nsize = '0'").cache.size == 0


def test_free_space_floor_is_a_share_or_a_size() -> None:
    """The floor is a fraction of the file system, or bytes."""
    assert read("[cache]\nfree_space_floor = '2.5 %'").cache.free_space_floor == FreeSpaceFloor(fraction=0.025)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\\nb", "é" * 128])
def test_flavor_names_must_be_file_names(name: str) -> None:
    """A flavor is a file in flavors/: what cannot name one is refused."""
    assert "cannot be a flavor's name" in mistakes(f'[flavors."{name}"]\nvcpus = 1\nram = 1\ndisk = 0')[0]


def test_a_flavor_name_without_quotes_is_explained() -> None:
    """[flavors.m1.small] is a table in a table in TOML, and the message says so."""
    assert '[flavors."m1.small"]' in mistakes("[flavors.m1.small]\nvcpus = 1\nram = 1\ndisk = 1")[0]


def test_flavor_ids_follow_the_name() -> None:
    """Built-in names keep Nova's numbers; any other name always gets the same UUID."""
    text = '[flavors."own"]\nvcpus = 1\nram = 1\ndisk = 1'
    assert read(text).flavors["own"].id == read(text).flavors["own"].id
    assert len(read(text).flavors["own"].id) == 36
    assert [flavor.id for flavor in BUILT_IN.values()] == ["1", "2", "3", "4", "5"]


def test_overrides_win_over_the_file() -> None:
    """What the command line says of a key counts, and its mistakes are told apart by -o."""
    found = read(COMPLETE, store__url="file:///other", mount__allow_other="false", cache__size="0")
    assert (found.store.url, found.mount.allow_other, found.cache.size) == ("file:///other", False, 0)
    assert mistakes(COMPLETE, store__url="nowhere", instances__encryption="y", flavors__x="1", quite__unknown="1") == [
        "-o store.url: 'nowhere' is not a store: write file:///DIRECTORY, s3://BUCKET/PREFIX or glance:https://HOST",
        "-o instances.encryption: 'y' is neither true nor false",
        "-o flavors.x: flavors can be set in the configuration file only",
        "-o quite.unknown: unknown key",
    ]


def test_the_file_is_looked_for_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """First the named file, then $IMAGEFS_CONFIG, then the system's, then none."""
    named, by_environment, system = tmp_path / "named", tmp_path / "environment", tmp_path / "system"
    monkeypatch.setattr(config, "SYSTEM_FILE", system)
    assert config.find_file(named, {"IMAGEFS_CONFIG": str(by_environment)}) == named
    assert config.find_file(None, {"IMAGEFS_CONFIG": str(by_environment)}) == by_environment
    assert config.find_file(None, {"IMAGEFS_CONFIG": ""}) is None
    system.write_text("")
    assert config.find_file(None, {}) == system
    assert load(None, environ={}).source == str(system)
    system.unlink()
    assert load(None, environ={}).source == "built-in defaults"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"[store\n", "is not valid TOML"),
        (b"\xff\xfe", "is not valid TOML"),
        (b"#" * (1 << 20) + b"\n", "more than 1048576 bytes"),
        (b"[" * 5000, "is not valid TOML"),
    ],
)
def test_files_that_are_no_configuration_are_refused(tmp_path: Path, body: bytes, reason: str) -> None:
    """A file that cannot be read as TOML is one mistake, with the file's name."""
    path = tmp_path / "x.toml"
    path.write_bytes(body)
    with pytest.raises(ConfigError, match=reason) as caught:
        load(path)
    assert caught.value.source == str(path)


@pytest.mark.parametrize(
    "endpoint", ["s3.example", "127.0.0.1:8333", "ftp://s3.example", "https://", "http://host:port", "http://[::1", "https://key:canary@s3.example"]
)
def test_an_endpoint_is_the_url_of_a_service(endpoint: str) -> None:
    """What cannot be an endpoint is a mistake with its key, and a secret in it is not repeated."""
    (mistake,) = mistakes(f'[store.s3]\nendpoint_url = "{endpoint}"')
    assert mistake.startswith("store.s3.endpoint_url: ")
    assert "canary" not in mistake
    assert read('[store.s3]\nendpoint_url = "http://[::1]:9000/path"').store.s3.endpoint_url == "http://[::1]:9000/path"


def test_a_file_that_is_not_there_is_a_mistake(tmp_path: Path) -> None:
    """A named file must be there: its absence is never taken for the defaults."""
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load(tmp_path / "x.toml")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load(tmp_path)


def test_data_lies_in_the_system_or_with_the_user() -> None:
    """Root's data is the system's, a user's is where XDG says."""
    assert config.data_directory(0, {"XDG_DATA_HOME": "/x"}) == Path("/var/lib/imagefs")
    assert config.data_directory(1000, {"XDG_DATA_HOME": "/x", "HOME": "/h"}) == Path("/x/imagefs")
    assert config.data_directory(1000, {"XDG_DATA_HOME": "relative", "HOME": "/h"}) == Path("/h/.local/share/imagefs")
