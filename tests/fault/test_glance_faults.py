"""A Glance and a Keystone that fail in every way: what is raised, what is tried again, and that nothing wrong is ever believed."""

import logging
import uuid
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
import urllib3

from imagefs.errors import AlreadyExists, ConfigError, Conflict, ImagefsError, NotFound, NotPermitted, StoreRefused, StoreUnavailable, VersionChanged
from imagefs.store.factory import open_store
from imagefs.store.glance.connection import Connection, Timeouts
from imagefs.store.glance.direct import DirectStores
from imagefs.store.glance.listing import PAGE
from imagefs.store.glance.store import GlanceStore
from imagefs.store.glance.update import Updates
from imagefs.store.options import GlanceOptions
from imagefs.store.record import ImageRecord, Member
from imagefs.store.retry import SmallRetry
from tests.support.glance import Glance, token_for
from tests.support.keystone import PASSWORD, FakeKeystone
from tests.support.s3proxy import Fault, FaultProxy, Request
from tests.support.sources import given

pytestmark = pytest.mark.glance

BODY = bytes(range(256)) * 4096  # 1 MiB
QUICK = Timeouts(connect=2.0, read=1.5, write=2.5)


def nothing_direct() -> DirectStores:
    def refuse(url: str) -> object:
        raise AssertionError(url)

    return DirectStores((), refuse)  # type: ignore[arg-type]  # it is never called


def store_at(endpoint: str, cloud: str, slept: list[float] | None = None) -> GlanceStore:
    """Return a store that waits for nothing long between its tries."""
    retry = SmallRetry(sleep=lambda _: None, chance=lambda: 0.0)
    sleep: Callable[[float], object] = (lambda _: None) if slept is None else slept.append
    connection = Connection(endpoint, cloud, timeouts=QUICK, retry=retry, sleep=sleep)
    return GlanceStore(f"glance:{endpoint}", connection, nothing_direct())


@pytest.fixture
def proxy(glance_cloud: Glance) -> Iterator[FaultProxy]:
    """A fault proxy in front of the Glance."""
    with FaultProxy(glance_cloud.endpoint_url) as found:
        yield found


@pytest.fixture
def behind(proxy: FaultProxy, glance_cloud: Glance) -> GlanceStore:
    """The Glance, reached through the fault proxy."""
    return store_at(proxy.endpoint_url, glance_cloud.cloud)


@pytest.fixture
def image(glance: Glance) -> str:
    """A raw image of BODY."""
    image_id = str(uuid.uuid4())
    glance.add_image(image_id, BODY, name="faulty", colour="red")
    return image_id


def new_record(**attributes: object) -> ImageRecord:
    new = ImageRecord(id=str(uuid.uuid4()), created_at="", updated_at="", disk_format="raw", container_format="bare")
    return msgspec.structs.replace(new, **attributes)


def rename(old: ImageRecord) -> ImageRecord:
    return msgspec.structs.replace(old, name="renamed")


# Reading image data


@pytest.mark.parametrize("after", [0, 100_000])
@pytest.mark.parametrize("fault", [Fault.RESET, Fault.TRUNCATE, Fault.STALL, Fault.UNAVAILABLE])
def test_a_broken_answer_is_unavailable_and_gives_no_wrong_byte(behind: GlanceStore, proxy: FaultProxy, image: str, fault: Fault, after: int) -> None:
    """Whatever breaks the answer, stream raises StoreUnavailable after one request, what came before is right, and the next read works."""
    data = behind.data(behind.find(image).record)
    proxy.clear()
    proxy.add(fault, method="GET", contains="/file", after=after)
    read: list[bytes] = []
    with pytest.raises(StoreUnavailable, match=image):
        read.extend(data.stream(1000, 500_000))
    got = b"".join(read)
    assert got == BODY[1000 : 1000 + len(got)]
    assert len(got) <= after
    assert len(proxy.requests) == 1
    assert b"".join(data.stream(1000, 500_000)) == BODY[1000:501_000]


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault.WRONG_RANGE, StoreUnavailable),
        (Fault.OTHER_TOTAL, VersionChanged),
        (Fault.FORBIDDEN, StoreRefused),
        (Fault.GARBAGE, VersionChanged),
        (Fault.REDIRECT, StoreRefused),
    ],
)
def test_an_answer_that_is_not_the_range_asked_for_gives_no_byte(
    behind: GlanceStore, proxy: FaultProxy, image: str, fault: Fault, error: type[ImagefsError]
) -> None:
    """Another place, another size, no image at all: nothing of it is believed."""
    data = behind.data(behind.find(image).record)
    proxy.add(fault, contains="/file")
    read: list[bytes] = []
    with pytest.raises(error):
        read.extend(data.stream(1000, 500))
    assert read == []


def test_a_server_that_ignores_ranges_is_tolerated(behind: GlanceStore, proxy: FaultProxy, image: str) -> None:
    """Of the whole image the range is cut out."""
    data = behind.data(behind.find(image).record)
    proxy.add(Fault.WHOLE, contains="/file", times=2)
    assert b"".join(data.stream(1000, 500_000)) == BODY[1000:501_000]
    assert b"".join(data.stream(0, len(BODY))) == BODY


def test_no_redirect_is_followed(behind: GlanceStore, proxy: FaultProxy, image: str) -> None:
    """A redirect is refused with the name of the host and nothing more of the address, for data and for small requests."""
    data = behind.data(behind.find(image).record)
    proxy.add(Fault.REDIRECT, times=None)
    asks: tuple[Callable[[], object], ...] = (
        lambda: list(data.stream(0, 10)),
        behind.check,
        lambda: behind.find(image),
        lambda: behind.update(image, rename),
        lambda: behind.delete(image),
    )
    for ask in asks:
        with pytest.raises(StoreRefused, match=r"redirected to elsewhere\.invalid") as caught:
            ask()
        assert "canary" not in str(caught.value)


# Small requests


@pytest.mark.parametrize("fault", [Fault.RESET, Fault.TRUNCATE, Fault.UNAVAILABLE, Fault.STALL, Fault.LOST_ANSWER, Fault.GARBAGE, Fault.EMPTY])
def test_small_requests_survive_a_fault(behind: GlanceStore, proxy: FaultProxy, image: str, fault: Fault) -> None:
    """Check, find, list, update and delete are tried again after one fault, and do what they should exactly."""
    proxy.add(fault)
    behind.check()
    proxy.add(fault)
    assert behind.find(image).record.name == "faulty"
    proxy.add(fault, contains="/members")
    proxy.add(fault, contains="/v2/images?")
    assert image in {listed.image_id for listed in behind.list()}
    proxy.add(fault, method="PATCH")
    assert behind.update(image, rename).record.name == "renamed"
    proxy.add(fault, method="DELETE")
    behind.delete(image)
    with pytest.raises(NotFound):
        behind.find(image)


@pytest.mark.parametrize("after", [0, 40, 200])
def test_a_listing_that_breaks_is_never_a_shorter_listing(behind: GlanceStore, proxy: FaultProxy, image: str, after: int) -> None:
    """Wherever every answer to a listing is cut, list raises: images must not seem to be gone."""
    proxy.add(Fault.TRUNCATE, after=after, times=None)
    with pytest.raises(StoreUnavailable):
        list(behind.list())
    assert proxy.injected == 5


def test_small_requests_give_up_after_five_tries(behind: GlanceStore, proxy: FaultProxy) -> None:
    """A server that stays busy is StoreUnavailable after five requests, and named."""
    proxy.add(Fault.UNAVAILABLE, times=None)
    with pytest.raises(StoreUnavailable, match=proxy.endpoint_url):
        behind.check()
    assert len(proxy.requests) == 5


def test_a_server_that_is_gone_is_unavailable_by_name(glance_cloud: Glance, image: str) -> None:
    """A refused connection is StoreUnavailable, for data and for small requests."""
    with FaultProxy(glance_cloud.endpoint_url) as proxy:
        store = store_at(proxy.endpoint_url, glance_cloud.cloud)
        data = store.data(store.find(image).record)
    for ask in (lambda: list(data.stream(0, 10)), store.check, lambda: store.update(image, rename)):
        with pytest.raises(StoreUnavailable, match=proxy.endpoint_url):
            ask()


def test_what_is_no_glance_is_told(behind: GlanceStore, proxy: FaultProxy, glance_cloud: Glance) -> None:
    """Neither garbage for ever nor another service at the address passes for an empty store."""
    proxy.add(Fault.GARBAGE, times=None)
    for ask in (behind.check, lambda: list(behind.list())):
        with pytest.raises(StoreUnavailable, match="not JSON of Glance"):
            ask()
    elsewhere = store_at(f"{glance_cloud.endpoint_url}/v2/schemas", glance_cloud.cloud)
    with pytest.raises(NotFound, match=r"mend \[store\] url"):
        elsewhere.check()


def test_an_image_that_another_id_answers_for_is_refused(behind: GlanceStore, glance: Glance, proxy: FaultProxy, image: str) -> None:
    """The status of an answer counts: a 403 is a refusal and not an image that is gone."""
    proxy.add(Fault.FORBIDDEN, times=None)
    with pytest.raises(StoreRefused, match="role admin"):
        behind.find(image)
    with pytest.raises(StoreRefused):
        list(behind.list())
    assert glance.show(image)["status"] == "active"


def test_members_that_may_not_be_read_are_none(behind: GlanceStore, proxy: FaultProxy, glance: Glance, image: str) -> None:
    """A 403 for the members leaves the image without members; a server that fails does not."""
    glance.request("POST", f"/v2/images/{image}/members", json={"member": "p1"})
    assert behind.find(image).record.members == (Member("p1"),)
    proxy.add(Fault.FORBIDDEN, contains="/members")
    assert behind.find(image).record.members == ()
    proxy.add(Fault.UNAVAILABLE, contains="/members", times=None)
    with pytest.raises(StoreUnavailable):
        behind.find(image)


def test_an_image_that_moved_between_the_listings_is_not_lost(behind: GlanceStore, proxy: FaultProxy, glance: Glance, image: str) -> None:
    """One that is hidden when the others are listed, and not when the hidden ones are, is asked for by its id."""
    assert image in {listed.image_id for listed in behind.list()}
    replacements = iter([True, False])

    def hide(request: Request) -> None:
        if "os_hidden=false" in request.path:
            for value in replacements:
                glance.request("PATCH", f"/v2/images/{image}", json=[{"op": "replace", "path": "/os_hidden", "value": value}])
                break
        if "os_hidden=true" in request.path:
            glance.request("PATCH", f"/v2/images/{image}", json=[{"op": "replace", "path": "/os_hidden", "value": False}])

    proxy.set_plan(hide)
    assert image in {listed.image_id for listed in behind.list()}


def test_many_images_come_in_pages(behind: GlanceStore, proxy: FaultProxy, glance: Glance, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every image comes once, whatever the size of a page, hidden and private ones of others too."""
    wanted = {str(uuid.uuid4()) for _ in range(7)}
    for number, image_id in enumerate(sorted(wanted)):
        glance.add_image(image_id, owner=f"p{number}", os_hidden=number % 3 == 0, visibility=("private", "shared", "community", "public")[number % 4])
    assert PAGE >= 100
    monkeypatch.setattr("imagefs.store.glance.listing.PAGE", 2)
    found = [listed.image_id for listed in behind.list()]
    assert len(found) == len(set(found))
    assert wanted <= set(found)


def test_a_page_after_an_image_that_is_gone_starts_the_listing_anew(proxy: FaultProxy, glance_cloud: Glance, monkeypatch: pytest.MonkeyPatch) -> None:
    """Glance refuses a deleted image as the place where a page begins; nothing is lost by that."""
    project = f"p-{uuid.uuid4()}"
    account = {"endpoint": glance_cloud.endpoint_url, "token": token_for("member,reader", project)}
    glance_cloud.write_clouds({"member": {"auth_type": "admin_token", "auth": account}})
    store = store_at(proxy.endpoint_url, "member")
    wanted = {str(uuid.uuid4()) for _ in range(7)}
    for image_id in wanted:
        glance_cloud.add_image(image_id, owner=project, visibility="private")
    monkeypatch.setattr("imagefs.store.glance.listing.PAGE", 2)
    deleted: list[str] = []

    def delete_the_marker(request: Request) -> None:
        marker = request.path.partition("marker=")[2].partition("&")[0]
        if marker in wanted and not deleted:
            assert glance_cloud.request("DELETE", f"/v2/images/{marker}").status == 204
            deleted.append(marker)

    proxy.set_plan(delete_the_marker)
    assert {listed.image_id for listed in store.list()} & wanted == wanted - set(deleted)
    assert deleted


# Writing


def test_a_lost_answer_to_the_first_request_of_a_creation_is_not_another_image(behind: GlanceStore, proxy: FaultProxy) -> None:
    """POST arrives, its answer is lost: create goes on with what it made."""
    wanted = new_record(name="mine", properties={"a": "b"})
    proxy.add(Fault.LOST_ANSWER, method="POST")
    made = behind.create(wanted, given(BODY), lambda _: None)
    assert (made.record.status, made.record.name) == ("active", "mine")


def test_a_lost_answer_to_the_upload_is_looked_for(behind: GlanceStore, proxy: FaultProxy) -> None:
    """PUT arrives, its answer is lost: the image is active with the right hash, and so created."""
    proxy.add(Fault.LOST_ANSWER, method="PUT")
    assert behind.create(new_record(), given(BODY), lambda _: None).record.status == "active"


@pytest.mark.parametrize("fault", [Fault.UNAVAILABLE, Fault.REDIRECT, Fault.UNAUTHORIZED, Fault.FORBIDDEN])
def test_an_upload_that_fails_leaves_nothing(behind: GlanceStore, proxy: FaultProxy, glance: Glance, fault: Fault) -> None:
    """Whatever Glance says to the bytes, the image that was begun is deleted."""
    wanted = new_record(protected=True)
    proxy.add(fault, method="PUT")
    with pytest.raises((StoreUnavailable, StoreRefused, NotPermitted)):
        behind.create(wanted, given(BODY), lambda _: None)
    assert glance.leftovers(wanted.id) == []


def test_an_id_of_a_deleted_image_is_not_used_again(behind: GlanceStore, image: str) -> None:
    """Glance keeps the ids of deleted images: that is AlreadyExists, in words."""
    behind.delete(image)
    with pytest.raises(AlreadyExists, match="no id twice"):
        behind.create(new_record(id=image), given(b"x"), lambda _: None)


class Gone:
    """A clock whose sleeps do nothing but what a test wants."""

    def __init__(self, then: Callable[[], object]) -> None:
        self.now = 0.0
        self.then = then

    def monotonic(self) -> float:
        """Stand still."""
        return self.now

    def sleep(self, seconds: float, /) -> None:
        """Do what the test wants, in no time."""
        self.then()


def test_what_another_writer_undoes_is_written_again(behind: GlanceStore, proxy: FaultProxy, glance: Glance, image: str) -> None:
    """A property, a tag and the status that are lost after the write are written again; what the other writer set stays."""
    undone = iter(range(2))

    def undo() -> None:
        for _ in undone:
            glance.request("POST", f"/v2/images/{image}/actions/reactivate")
            operations = [
                {"op": "remove", "path": "/mine"},
                {"op": "replace", "path": "/tags", "value": ["theirs"]},
                {"op": "add", "path": "/their", "value": "s"},
            ]
            glance.request("PATCH", f"/v2/images/{image}", json=operations)
            break

    updates = Updates(behind._connection, behind.find, clock=Gone(undo))

    def change(old: ImageRecord) -> ImageRecord:
        return msgspec.structs.replace(old, properties={**old.properties, "mine": "m"}, tags=("mine",), status="deactivated")

    made = updates.update(image, change).record
    assert (made.properties, made.tags, made.status) == ({"colour": "red", "mine": "m", "their": "s"}, ("mine", "theirs"), "deactivated")
    assert sum(request.method == "PATCH" for request in proxy.requests) == 2


def test_a_later_writer_is_not_undone(behind: GlanceStore, glance: Glance, proxy: FaultProxy, image: str) -> None:
    """A third value of the same property is a later write and stays: it is not fought over."""

    def overwrite() -> None:
        glance.request("PATCH", f"/v2/images/{image}", json=[{"op": "add", "path": "/colour", "value": "green"}])

    updates = Updates(behind._connection, behind.find, clock=Gone(overwrite))
    made = updates.update(image, lambda old: msgspec.structs.replace(old, properties={"colour": "blue"}))
    assert made.record.properties == {"colour": "green"}
    assert sum(request.method == "PATCH" for request in proxy.requests) == 1


def test_a_write_that_is_undone_for_ever_is_a_conflict(behind: GlanceStore, glance: Glance, image: str) -> None:
    """After a bounded number of tries update gives up and says what could not be set."""

    def undo() -> None:
        glance.request("PATCH", f"/v2/images/{image}", json=[{"op": "add", "path": "/colour", "value": "red"}])

    updates = Updates(behind._connection, behind.find, clock=Gone(undo), chance=lambda: 0.0)
    with pytest.raises(Conflict, match=r"colour cannot be set: others change the image"):
        updates.update(image, lambda old: msgspec.structs.replace(old, properties={"colour": "blue"}))


def test_what_glance_takes_and_does_not_keep_is_told(behind: GlanceStore, image: str) -> None:
    """A property whose name means something inside Glance is no success."""
    with pytest.raises(NotPermitted, match="does not keep context"):
        behind.update(image, lambda old: msgspec.structs.replace(old, properties={**old.properties, "context": "x"}))


@pytest.mark.parametrize("name", ["os_glance_x", "location", "deleted"])
def test_a_name_that_glance_reserves_is_not_permitted(behind: GlanceStore, image: str, name: str) -> None:
    """Its refusal is NotPermitted, in its words."""
    with pytest.raises(NotPermitted, match=f"Attribute '{name}' is reserved"):
        behind.update(image, lambda old: msgspec.structs.replace(old, properties={**old.properties, name: "x"}))


def test_a_retry_after_is_obeyed_up_to_a_bound(glance_cloud: Glance, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy server's wish is kept before the next try, but not for long."""
    slept: list[float] = []
    store = store_at(proxy.endpoint_url, glance_cloud.cloud, slept)
    answers = {"2": 503, "3600": 429, "soon": 503}
    for asked, status in answers.items():
        monkeypatch.setitem(_own_answers(), Fault.UNAVAILABLE, (status, [("Retry-After", asked)], b""))
        proxy.add(Fault.UNAVAILABLE)
        store.check()
    assert slept == [2.0, 3.0]


def _own_answers() -> "dict[Fault | None, tuple[int, list[tuple[str, str]], bytes]]":
    from tests.support import s3proxy

    return s3proxy._OWN_ANSWERS


# Keystone


@pytest.fixture
def keystone(glance_cloud: Glance) -> Iterator[FakeKeystone]:
    """A Keystone whose account is admin."""
    with FakeKeystone(glance_cloud) as found:
        yield found


def test_a_token_is_used_for_all_requests(keystone: FakeKeystone, glance: Glance, image: str) -> None:
    """One token does for everything, from the password in clouds.yaml."""
    store = store_at(glance.endpoint_url, keystone.cloud)
    store.check()
    data = store.data(store.find(image).record)
    assert b"".join(data.stream(0, len(BODY))) == BODY
    assert store.update(image, rename).record.name == "renamed"
    assert len(keystone.issued) == 1


def test_a_token_that_was_revoked_is_renewed_unnoticed(keystone: FakeKeystone, glance: Glance, image: str) -> None:
    """A 401 gets a new token, once, for small requests and for data."""
    store = store_at(glance.endpoint_url, keystone.cloud)
    data = store.data(store.find(image).record)
    for ask in (lambda: list(data.stream(0, 10)), store.check, lambda: store.update(image, rename), lambda: store.delete(image)):
        before = len(keystone.issued)
        keystone.revoke_all()
        ask()
        assert len(keystone.issued) == before + 1


def test_requests_that_are_refused_at_once_get_over_it_together(keystone: FakeKeystone, glance: Glance, image: str) -> None:
    """While one request drops the revoked token and Keystone is away, the others are as unavailable as that one: a guest's read is tried again."""
    store = store_at(glance.endpoint_url, keystone.cloud)
    data = store.data(store.find(image).record)
    keystone.failing = True
    keystone.revoke_all()
    with ThreadPoolExecutor(8) as readers:
        failures = [readers.submit(lambda: list(data.stream(0, 10))).exception for _ in range(8)]
    assert {type(failure()) for failure in failures} == {StoreUnavailable}
    keystone.failing = False
    assert b"".join(data.stream(0, 10)) == BODY[:10]


def test_a_token_is_renewed_before_it_ends(keystone: FakeKeystone, glance: Glance) -> None:
    """A token that ends within two minutes is not used any more: a long request would outlive it."""
    keystone.lifetime = 60.0
    store = store_at(glance.endpoint_url, keystone.cloud)
    store.check()
    first = len(keystone.issued)
    keystone.lifetime = 3600.0
    store.check()
    assert len(keystone.issued) > first
    after = len(keystone.issued)
    store.check()
    assert len(keystone.issued) == after


def test_a_401_that_stays_is_a_refusal(keystone: FakeKeystone, glance: Glance, proxy: FaultProxy, image: str) -> None:
    """A new token that is refused too ends it, after two requests."""
    store = store_at(proxy.endpoint_url, keystone.cloud)
    data = store.data(store.find(image).record)
    proxy.clear()
    proxy.add(Fault.UNAUTHORIZED, times=None)
    with pytest.raises(StoreRefused, match="refuses the token"):
        store.check()
    with pytest.raises(StoreRefused, match="refuses the token"):
        list(data.stream(0, 10))
    assert len(proxy.requests) == 4


def test_a_wrong_password_is_a_refusal_that_does_not_tell_it(keystone: FakeKeystone, glance: Glance, caplog: pytest.LogCaptureFixture) -> None:
    """Keystone's refusal names clouds.yaml, and neither message nor log hold password or token."""
    caplog.set_level(logging.DEBUG)
    keystone.write_cloud(PASSWORD + "-wrong")
    with pytest.raises(StoreRefused, match=r"clouds\.yaml") as caught:
        store_at(glance.endpoint_url, keystone.cloud).check()
    keystone.write_cloud(PASSWORD)
    store_at(glance.endpoint_url, keystone.cloud).check()
    assert "canary" not in str(caught.value) + caplog.text


def test_a_keystone_that_is_away_is_unavailable(keystone: FakeKeystone, glance: Glance) -> None:
    """A failing Keystone, and none at all, are StoreUnavailable: they may come back."""
    store = store_at(glance.endpoint_url, keystone.cloud)
    keystone.failing = True
    with pytest.raises(StoreUnavailable, match="Keystone"):
        store.check()
    keystone.failing = False
    store.check()
    keystone.stop()
    with pytest.raises(StoreUnavailable, match="Keystone"):
        store_at(glance.endpoint_url, keystone.cloud).check()


def test_an_account_that_is_not_admin_is_warned_of_once(keystone: FakeKeystone, glance: Glance, caplog: pytest.LogCaptureFixture) -> None:
    """Glance removes what such an account cannot read: the log says so, once."""
    keystone.roles = ("reader", "member")
    store = store_at(glance.endpoint_url, keystone.cloud)
    store.check()
    store.check()
    assert [record.levelname for record in caplog.records if "not admin" in record.message] == ["WARNING"]


def test_the_cloud_comes_from_the_environment_too(glance_cloud: Glance, monkeypatch: pytest.MonkeyPatch, image: str) -> None:
    """OS_CLOUD names the cloud; without any cloud requests have no token; an unknown cloud is a mistake of the configuration."""
    with pytest.raises(StoreRefused, match="refuses the token"):
        open_store(glance_cloud.url).check()
    monkeypatch.setenv("OS_CLOUD", glance_cloud.cloud)
    assert open_store(f"{glance_cloud.url}/v2").find(image).record.id == image
    with pytest.raises(ConfigError, match="nowhere"):
        open_store(glance_cloud.url, glance=GlanceOptions(cloud="nowhere"))


@pytest.mark.parametrize(
    "text",
    ["clouds: [1]", "clouds: {broken: null}", "clouds: {broken: [1]}", "clouds: {broken: {auth: 5}}", "clouds: {broken: {", "text", None],
)
def test_a_broken_clouds_file_is_a_mistake_of_the_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None) -> None:
    """Whatever is in clouds.yaml, and without one, the message says which file to look at."""
    clouds = tmp_path / "clouds.yaml"
    if text is not None:
        clouds.write_text(text)
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(clouds))
    with pytest.raises(ConfigError, match=r"cloud: .*clouds\.yaml"):
        open_store("glance:http://127.0.0.1:1", glance=GlanceOptions(cloud="broken"))


def test_certificates_that_are_not_there_are_a_mistake_of_the_configuration(glance_cloud: Glance, tmp_path: Path) -> None:
    """The message names the file of cacert in clouds.yaml."""
    glance_cloud.write_clouds({"ca": {"auth_type": "admin_token", "auth": {"endpoint": "x", "token": "t"}, "cacert": str(tmp_path / "none.pem")}})
    with pytest.raises(ConfigError, match=r"none\.pem cannot be read"):
        open_store("glance:https://127.0.0.1:1", glance=GlanceOptions(cloud="ca"))


def test_certificates_that_are_not_checked_are_warned_of_once(glance_cloud: Glance, caplog: pytest.LogCaptureFixture) -> None:
    """Verify: false in clouds.yaml is the operator's word, which the log repeats when the store is opened, and not at each request."""
    account = {"auth_type": "admin_token", "auth": {"endpoint": "x", "token": "t"}, "verify": False}
    glance_cloud.write_clouds({"unchecked": account})
    with warnings.catch_warnings(record=True) as warned:
        open_store("glance:https://127.0.0.1:1", glance=GlanceOptions(cloud="unchecked"))
        warnings.warn("a request", urllib3.exceptions.InsecureRequestWarning, stacklevel=1)
    assert warned == []
    assert [record.levelname for record in caplog.records if "certificates are not checked" in record.message] == ["WARNING"]


def test_the_url_of_a_keystone_that_is_none_is_a_refusal(keystone: FakeKeystone, glance: Glance) -> None:
    """The message names auth_url, and does not repeat it: it may hold a password."""
    keystone.url = "http://user:canary@[::1/v3"
    keystone.write_cloud(PASSWORD)
    with pytest.raises(StoreRefused, match="mend auth_url") as caught:
        store_at(glance.endpoint_url, keystone.cloud).check()
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize("url", ["glance:http://user:canary@host", "glance:http://host?token=canary", "glance:http://host#canary"])
def test_a_wrong_url_is_not_repeated(url: str) -> None:
    """A message about a URL that may hold a password does not show it."""
    with pytest.raises(ConfigError, match="no credentials") as caught:
        open_store(url)
    assert "canary" not in str(caught.value)


def test_requests_leave_from_the_source_address(glance_cloud: Glance, proxy: FaultProxy, image: str) -> None:
    """[store] source_address binds every connection to Glance."""
    store = open_store(f"glance:{proxy.endpoint_url}", source_address="127.0.0.3", glance=GlanceOptions(cloud=glance_cloud.cloud))
    list(store.data(store.find(image).record).stream(0, 10))
    assert {request.client_address for request in proxy.requests} == {"127.0.0.3"}
