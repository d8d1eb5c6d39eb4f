"""What the Glance store promises besides what every store does, with a real Glance: two nodes at once, direct reading, other accounts."""

import os
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from imagefs.errors import ConfigError, ImageRefused, InvalidInput, NotFound, NotPermitted, QuotaExceeded, VersionChanged
from imagefs.store.factory import open_store
from imagefs.store.glance.data import GlanceData
from imagefs.store.glance.store import GlanceStore
from imagefs.store.options import GlanceOptions, S3Options
from imagefs.store.protocol import ImageStore
from imagefs.store.record import ImageRecord, Member
from tests.support.glance import Glance, start_glance, token_for
from tests.support.seaweed import Seaweed
from tests.support.sources import given

pytestmark = pytest.mark.glance

BODY = os.urandom(200_000)


@pytest.fixture
def image(glance: Glance) -> str:
    """A raw image of BODY."""
    image_id = str(uuid.uuid4())
    glance.add_image(image_id, BODY)
    return image_id


def another(glance: Glance, *direct: str, cloud: str = "", s3: S3Options | None = None) -> ImageStore:
    """Return one more store over the Glance, as another node has it."""
    return open_store(glance.url, s3=s3, glance=GlanceOptions(cloud=cloud or glance.cloud, direct_stores=direct))


def read(store: ImageStore, image_id: str) -> tuple[bytes, Path | None]:
    """Return an image's bytes, and the file they were read from, if they were."""
    data = store.data(store.find(image_id).record)
    return b"".join(data.stream(0, data.size)), data.path


# Two nodes


def test_two_nodes_that_set_properties_at_once_lose_none(glance_cloud: Glance, image: str) -> None:
    """Each of two stores sets 25 properties of its own on one image, one by one: all 50 are there."""
    failures: list[Exception] = []

    def write(node: int, store: ImageStore) -> None:
        for number in range(25):

            def change(old: ImageRecord, name: str = f"n{node}k{number}") -> ImageRecord:
                return msgspec.structs.replace(old, properties={**old.properties, name: "v"})

            try:
                store.update(image, change)
            except Exception as error:
                failures.append(error)

    threads = [threading.Thread(target=write, args=(node, another(glance_cloud))) for node in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    shown = glance_cloud.show(image)
    assert failures == []
    assert [name for node in range(2) for number in range(25) if (name := f"n{node}k{number}") not in shown] == []


def test_a_change_of_one_key_sends_that_key_alone(glance_cloud: Glance, glance_store: GlanceStore, image: str) -> None:
    """What others set since the last listing is not written back."""
    glance_store.find(image)
    glance_cloud.request("PATCH", f"/v2/images/{image}", json=[{"op": "add", "path": "/theirs", "value": "1"}])
    glance_store.update(image, lambda old: msgspec.structs.replace(old, min_ram=7))
    shown = glance_cloud.show(image)
    assert (shown["theirs"], shown["min_ram"]) == ("1", 7)


# Records


def test_a_record_of_every_attribute_comes_back(glance_store: GlanceStore, glance_cloud: Glance) -> None:
    """Odd names and values survive the way there and back, and os_glance ones of others are kept."""
    odd = {"a/b": "1", "~0~1": "2", "empty": "", "ümläut": "ß€", "x" * 255: "long", "with blank": " v ", "%41": "%42", "os_distro": "d"}
    wanted = ImageRecord(id=str(uuid.uuid4()), created_at="", updated_at="", name="", owner="p9", visibility="community", properties=odd)
    wanted = msgspec.structs.replace(wanted, disk_format="qcow2", container_format="bare", os_hidden=True)
    made = glance_store.create(msgspec.structs.replace(wanted, disk_format="raw"), given(b"x"), lambda _: None).record
    assert (made.properties, made.owner, made.visibility, made.os_hidden) == (odd, "p9", "community", True)
    changed = glance_store.update(made.id, lambda old: msgspec.structs.replace(old, properties={name: value + "!" for name, value in odd.items()}))
    assert changed.record.properties == {name: value + "!" for name, value in odd.items()}
    emptied = glance_store.update(made.id, lambda old: msgspec.structs.replace(old, properties={}, name=None, owner="p8"))
    assert (emptied.record.properties, emptied.record.name, emptied.record.owner) == ({}, None, "p8")


@pytest.mark.parametrize("name", ["", " a", "a ", "id", "size"])
def test_a_name_that_cannot_be_a_property_is_refused(glance_store: GlanceStore, image: str, name: str) -> None:
    """Names that Glance would read as something else are never sent as properties."""
    with pytest.raises((InvalidInput, NotPermitted)):
        glance_store.update(image, lambda old: msgspec.structs.replace(old, properties={name: "x"}))
    assert glance_store.find(image).record.properties == {}


def test_a_value_that_glance_refuses_is_invalid(glance_store: GlanceStore, image: str) -> None:
    """A name that is too long is InvalidInput with Glance's words, and nothing is changed."""
    with pytest.raises(InvalidInput, match="schema"):
        glance_store.update(image, lambda old: msgspec.structs.replace(old, name="n" * 256))
    assert glance_store.find(image).record.name is None


def test_too_many_properties_are_over_the_quota(glance_store: GlanceStore, image: str) -> None:
    """Glance's quota is QuotaExceeded."""
    with pytest.raises(QuotaExceeded):
        glance_store.update(image, lambda old: msgspec.structs.replace(old, properties={f"p{number}": "" for number in range(130)}))


def test_only_shared_images_have_members(glance_store: GlanceStore, image: str) -> None:
    """A member of a private image is NotPermitted; made shared in the same change, it is written after that."""
    glance_store.update(image, lambda old: msgspec.structs.replace(old, visibility="private"))
    with pytest.raises(NotPermitted, match="make it shared"):
        glance_store.update(image, lambda old: msgspec.structs.replace(old, members=(Member("p1"),)))
    shared = glance_store.update(image, lambda old: msgspec.structs.replace(old, visibility="shared", members=(Member("p1", "accepted"),)))
    assert shared.record.members == (Member("p1", "accepted"),)


def test_an_image_without_bytes_is_listed_and_not_readable(glance_store: GlanceStore, glance_cloud: Glance) -> None:
    """A queued image has a record, and its bytes are refused."""
    image_id = str(uuid.uuid4())
    glance_cloud.add_image(image_id)
    record = next(listed.stored.record for listed in glance_store.list() if listed.image_id == image_id and listed.stored is not None)
    assert (record.status, record.size) == ("queued", None)
    with pytest.raises(ImageRefused, match="queued"):
        glance_store.data(record)


def test_an_old_record_of_other_bytes_is_told(glance_store: GlanceStore, image: str) -> None:
    """Data with a record of another size or hash is VersionChanged."""
    record = glance_store.find(image).record
    for other in (msgspec.structs.replace(record, size=1), msgspec.structs.replace(record, os_hash_value="0" * 128)):
        with pytest.raises(VersionChanged, match="list the images again"):
            glance_store.data(other)


# Accounts


def test_an_account_of_a_project_sees_its_images_only(glance_cloud: Glance) -> None:
    """What the account may not see is not there; what it may not change is NotPermitted, and what it may see is listed."""
    project = f"p-{uuid.uuid4()}"
    glance_cloud.write_clouds({"one": {"auth_type": "admin_token", "auth": {"endpoint": "http://unused", "token": token_for("reader", project)}}})
    own, foreign = str(uuid.uuid4()), str(uuid.uuid4())
    glance_cloud.add_image(own, BODY, owner=project, visibility="private")
    glance_cloud.add_image(foreign, owner="somebody", visibility="private")
    store = another(glance_cloud, cloud="one")
    listed = {listed.image_id for listed in store.list()}
    assert (own in listed, foreign in listed) == (True, False)
    with pytest.raises(NotFound):
        store.find(foreign)
    with pytest.raises(NotPermitted):
        store.update(own, lambda old: msgspec.structs.replace(old, name="x"))


def test_protected_properties_are_lost_by_an_account_that_cannot_read_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Glance's own fault, which the check warns of: with an account that reads all properties nothing is lost."""
    rules = "[^secret$]\ncreate = keeper\nread = keeper\nupdate = keeper\ndelete = keeper\n[.*]\ncreate = @\nread = @\nupdate = @\ndelete = @\n"
    with start_glance(tmp_path, protections=rules) as glance:
        for name, value in glance.environment.items():
            monkeypatch.setenv(name, value)
        token = token_for("keeper,admin,member,reader", "p1")
        glance.write_clouds({"keeper": {"auth_type": "admin_token", "auth": {"endpoint": "http://unused", "token": token}}})
        image_id = str(uuid.uuid4())
        made = glance.request("POST", "/v2/images", token=token, json={"id": image_id, "secret": "s", "open": "o"})
        assert made.status == 201
        keeper, blind = another(glance, cloud="keeper"), another(glance)
        keeper.update(image_id, lambda old: msgspec.structs.replace(old, name="x"))
        assert keeper.find(image_id).record.properties == {"secret": "s", "open": "o"}
        with pytest.raises(NotPermitted, match="reserved"):
            blind.update(image_id, lambda old: msgspec.structs.replace(old, properties={**old.properties, "secret": "mine"}))
        blind.update(image_id, lambda old: msgspec.structs.replace(old, name="y"))
        assert keeper.find(image_id).record.properties == {"open": "o"}


# Direct reading


def test_an_allowed_file_is_read_in_place(glance_cloud: Glance, image: str) -> None:
    """Below an allowed prefix the file itself is opened; its version is the hash, as over the API."""
    store = another(glance_cloud, glance_cloud.images.as_uri())
    assert read(store, image) == (BODY, glance_cloud.images / image)
    record = store.find(image).record
    assert store.data(record).version == record.os_hash_value
    assert b"".join(store.data(record).stream(1000, 5)) == BODY[1000:1005]


def test_without_an_allowed_prefix_nothing_is_read_directly(glance_cloud: Glance, glance_store: GlanceStore, tmp_path: Path, image: str) -> None:
    """By default, and with another prefix, the bytes come over the API."""
    for store in (glance_store, another(glance_cloud, tmp_path.as_uri()), another(glance_cloud, f"file://{glance_cloud.images}-other")):
        assert read(store, image) == (BODY, None)
        assert isinstance(store.data(store.find(image).record), GlanceData)


def test_a_file_that_is_not_the_image_is_not_read(glance_cloud: Glance, tmp_path: Path, image: str, caplog: pytest.LogCaptureFixture) -> None:
    """A symlink out of the prefix, a file of another size, a directory, none at all: the bytes come over the API or not at all."""
    store = another(glance_cloud, glance_cloud.images.as_uri())
    file = glance_cloud.images / image
    outside = tmp_path / "outside"
    file.rename(outside)
    record = store.find(image).record
    file.symlink_to(outside)
    assert read(store, image) == (BODY, None)
    assert "read through Glance" in caplog.text
    file.unlink()
    file.mkdir()
    assert isinstance(store.data(record), GlanceData)
    file.rmdir()
    assert isinstance(store.data(record), GlanceData)
    file.write_bytes(BODY + b"!")
    assert isinstance(store.data(record), GlanceData)
    file.unlink()
    outside.rename(file)
    assert read(store, image) == (BODY, file)


def test_a_file_replaced_while_it_is_open_is_noticed(glance_cloud: Glance, image: str) -> None:
    """The object is pinned: other bytes under the same name are VersionChanged."""
    store = another(glance_cloud, glance_cloud.images.as_uri())
    data = store.data(store.find(image).record)
    other = glance_cloud.images / "other"
    other.write_bytes(bytes(len(BODY)))
    other.rename(glance_cloud.images / image)
    with pytest.raises(VersionChanged):
        list(data.stream(0, 10))


@pytest.fixture
def located(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Glance]:
    """A Glance whose database a test may write locations into."""
    with start_glance(tmp_path / "glance") as glance:
        for name, value in glance.environment.items():
            monkeypatch.setenv(name, value)
        yield glance


@pytest.mark.parametrize(
    "location",
    [
        "file:///etc/passwd",
        "file:///{root}/../../../../../../etc/passwd",
        "file://{root}/./{id}",
        "file://{root}//{id}",
        "file://{root}/{other}",
        "file://localhost{root}/{id}",
        "http://169.254.169.254/latest/meta-data/{id}",
        "https://127.0.0.1:1{root}/{id}",
        "s3://key:canary@127.0.0.1:1/images/{id}",
        "ftp://x/{id}",
        "{root}/{id}",
        "",
    ],
)
def test_no_other_location_is_ever_opened(located: Glance, location: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever the database says where an image lies: what is not allowed, or is another image's, is not opened, nor logged."""
    image_id, other = str(uuid.uuid4()), str(uuid.uuid4())
    located.add_image(image_id, BODY)
    located.add_image(other, bytes(len(BODY)))
    located.set_location(image_id, location.format(root=located.images, id=image_id, other=other))
    store = another(located, located.images.as_uri())
    record = store.find(image_id).record
    opened: list[str] = []
    monkeypatch.setattr("imagefs.store.file.Directory.open", lambda _, key: opened.append(key))
    assert isinstance(store.data(record), GlanceData)
    assert opened == []
    assert "canary" not in caplog.text


@pytest.mark.s3
@pytest.mark.parametrize("form", ["s3://{host}/images/{key}", "s3+https://AK:canary/@{host}/images/{key}", "s3://images/{key}"])
def test_an_allowed_object_is_read_from_s3(located: Glance, aws_keys: Seaweed, form: str, caplog: pytest.LogCaptureFixture) -> None:
    """Bucket and key are taken from the location, host and credentials from this node's own configuration."""
    image_id = str(uuid.uuid4())
    located.add_image(image_id, BODY)
    key = f"glance/{image_id}"
    aws_keys.client().put_object(Bucket="images", Key=key, Body=BODY)
    located.set_location(image_id, form.format(host="evil.invalid:1", key=key))
    store = another(located, "s3://images/glance", s3=S3Options(endpoint_url=aws_keys.endpoint_url))
    record = store.find(image_id).record
    data = store.data(record)
    assert not isinstance(data, GlanceData)
    assert (b"".join(data.stream(0, len(BODY))), data.version) == (BODY, record.os_hash_value)
    aws_keys.client().delete_object(Bucket="images", Key=key)
    assert isinstance(store.data(record), GlanceData)
    assert "canary" not in caplog.text


def test_a_direct_store_that_cannot_be_is_a_mistake(glance_cloud: Glance) -> None:
    """Prefixes of other kinds are mistakes of the configuration."""
    with pytest.raises(ConfigError):
        another(glance_cloud, "http://images")
