"""The options of a mount."""

from pathlib import Path

import pytest

from imagefs.cli.mount_options import parse_options
from imagefs.errors import ConfigError


def test_keys_of_the_configuration_are_taken() -> None:
    """Dotted keys, allow_other, and config=; the last one of a key counts, and a value may have = in it."""
    found = parse_options(["store.url=s3://a/b=c,state.dir=/x", "allow_other,store.layout=flat,state.dir=/y", "config=/etc/x.toml"])
    assert found.overrides == {"store.url": "s3://a/b=c", "state.dir": "/y", "mount.allow_other": "true", "store.layout": "flat"}
    assert found.config_path == Path("/etc/x.toml")


def test_what_is_meant_for_others_is_ignored() -> None:
    """mount(8), fstab and systemd have options of their own."""
    found = parse_options(["rw,noauto,user,nofail,_netdev,x-systemd.automount,x-gvfs-show,defaults,nosuid,nodev,relatime", ""])
    assert (found.overrides, found.config_path) == ({}, None)


def test_all_mistakes_are_told_at_once() -> None:
    """Unknown words, a read-only mount and a key without a value."""
    with pytest.raises(ConfigError) as caught:
        parse_options(["ro,colour,allow_other=1,config=,store.url"])
    assert caught.value.source == "-o"
    assert [mistake.partition(":")[0] for mistake in caught.value.mistakes] == ["ro", "colour", "allow_other=1", "config=", "store.url"]
