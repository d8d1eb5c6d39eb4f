"""Tests of writing and removing one attribute of an image: the table of decisions, one line after the other."""

import msgspec
import pytest

from imagefs.errors import AlreadyExists, ImagefsError, InvalidInput, NoAttribute, NotFound, NotPermitted, QuotaExceeded
from imagefs.identity.map import Identity
from imagefs.properties.access import Access
from imagefs.properties.change import Mode, remove_attribute, set_attribute
from imagefs.properties.core import CORE, PROPERTY_LIMIT, VALUE_LIMIT, WRITABLE
from imagefs.properties.policy import Policies
from imagefs.store.record import ImageRecord
from tests.support.access import ADMIN, OWNER, READER, STRANGER, Table, denied, image, open_access

DEFAULT = Access(Policies.of({}), Table())
MODES = [Mode.SET, Mode.CREATE, Mode.REPLACE]


def outcome(
    record: ImageRecord, name: str, value: bytes | None, mode: Mode = Mode.SET, access: Access | None = None, identity: Identity = OWNER
) -> ImageRecord | type[ImagefsError]:
    """Return the record that comes of a write, or of a removal if the value is None; else the kind of the refusal."""
    rules = access or open_access()
    try:
        return remove_attribute(record, name, identity, rules) if value is None else set_attribute(record, name, value, mode, identity, rules)
    except ImagefsError as error:
        return type(error)


WRITES = [
    # what is denied, whether the property is there, mode -> the value after, or the refusal
    ((), True, Mode.SET, "new"),
    ((), True, Mode.CREATE, AlreadyExists),
    ((), True, Mode.REPLACE, "new"),
    ((), False, Mode.SET, "new"),
    ((), False, Mode.CREATE, "new"),
    ((), False, Mode.REPLACE, NoAttribute),
    (("update p",), True, Mode.SET, NotPermitted),
    (("update p",), True, Mode.CREATE, AlreadyExists),
    (("update p",), True, Mode.REPLACE, NotPermitted),
    (("update p",), False, Mode.SET, "new"),
    (("create p",), True, Mode.SET, "new"),
    (("create p",), False, Mode.SET, NotPermitted),
    (("create p",), False, Mode.CREATE, NotPermitted),
    (("create p",), False, Mode.REPLACE, NoAttribute),
    (("read p",), True, Mode.SET, NotPermitted),
    (("read p",), True, Mode.CREATE, NotPermitted),
    (("read p",), True, Mode.REPLACE, NoAttribute),
    (("read p",), False, Mode.SET, "new"),
    (("read p",), False, Mode.CREATE, "new"),
    (("read p",), False, Mode.REPLACE, NoAttribute),
    (("read p", "create p"), True, Mode.SET, NotPermitted),
    (("read p", "create p"), True, Mode.REPLACE, NoAttribute),
    (("read p", "create p"), False, Mode.SET, NotPermitted),
    (("delete p",), True, Mode.SET, "new"),
]


@pytest.mark.parametrize(("pairs", "there", "mode", "wanted"), WRITES)
def test_writing_a_property(pairs: tuple[str, ...], there: bool, mode: Mode, wanted: str | type[ImagefsError]) -> None:
    """What may not be read is not overwritten and looks absent; everything beside the name stays."""
    record = image({"p": "old", "q": "kept"} if there else {"q": "kept"})
    found = outcome(record, "p", b"new", mode, open_access(protection=denied("read q", *pairs)))
    if isinstance(wanted, str):
        assert found == image({"p": wanted, "q": "kept"})
        assert record == image({"p": "old", "q": "kept"} if there else {"q": "kept"})
    else:
        assert found is wanted


@pytest.mark.parametrize(
    ("pairs", "there", "wanted"),
    [
        ((), True, None),
        ((), False, NoAttribute),
        (("delete p",), True, NotPermitted),
        (("delete p",), False, NoAttribute),
        (("update p", "create p"), True, None),
        (("read p",), True, NoAttribute),
        (("read p", "delete p"), True, NoAttribute),
    ],
)
def test_removing_a_property(pairs: tuple[str, ...], there: bool, wanted: type[ImagefsError] | None) -> None:
    """A property that is not readable is not there to be removed."""
    record = image({"p": "old", "q": "kept"} if there else {"q": "kept"})
    found = outcome(record, "p", None, access=open_access(protection=denied("read q", *pairs)))
    assert found == (image({"q": "kept"}) if wanted is None else wanted)


@pytest.mark.parametrize("mode", MODES)
def test_refusals_do_not_tell_an_unreadable_property_from_a_missing_one(mode: Mode) -> None:
    """Where nothing may be created, the words are the same for both; so are those of a removal."""
    access = open_access(protection=denied("read p", "create p"))
    words = set()
    for record in (image({"p": "secret"}), image()):
        with pytest.raises((NotPermitted, NoAttribute)) as written:
            set_attribute(record, "p", b"x", mode, OWNER, access)
        with pytest.raises(NoAttribute) as removed:
            remove_attribute(record, "p", OWNER, access)
        words.add((str(written.value), str(removed.value)))
    assert len(words) == 1


def test_the_refusal_of_a_hidden_property_is_that_of_one_that_may_not_be_created() -> None:
    """Creating is allowed, and still nothing is overwritten: the words are those of a denied creation."""
    with pytest.raises(NotPermitted) as hidden:
        set_attribute(image({"p": "secret"}), "p", b"x", Mode.SET, OWNER, open_access(protection=denied("read p")))
    with pytest.raises(NotPermitted) as denied_creation:
        set_attribute(image(), "p", b"x", Mode.SET, OWNER, open_access(protection=denied("create p")))
    assert str(hidden.value) == str(denied_creation.value)


@pytest.mark.parametrize(("name", "value"), [("p", b"x"), ("p", None), ("name", b"x"), ("imagefs.member.q", b"pending"), ("imagefs.deactivate", b"")])
def test_an_image_that_is_not_seen_is_not_found(name: str, value: bytes | None) -> None:
    """Whatever is tried on it."""
    assert outcome(image({"p": "1"}, visibility="private"), name, value, access=DEFAULT, identity=STRANGER) is NotFound
    assert outcome(image({"p": "1"}), name, value, access=open_access("get_image")) is NotFound


@pytest.mark.parametrize("name", ["p", "missing", "name", "status", "location", "imagefs.cached", "", "\udcff"])
@pytest.mark.parametrize("value", [b"x", None])
def test_who_may_not_modify_changes_nothing(name: str, value: bytes | None) -> None:
    """A reader of the project, a stranger that sees the image and a member are refused alike, whatever they name."""
    record = image({"p": "1"}, visibility="public")
    for access, identity in ((DEFAULT, READER), (DEFAULT, STRANGER), (open_access(), STRANGER), (open_access("modify_image"), OWNER)):
        assert outcome(record, name, value, access=access, identity=identity) is NotPermitted


def test_admin_changes_images_of_others() -> None:
    """With the default policies; property protections hold for admin as for everybody."""
    record = image(visibility="private")
    assert outcome(record, "p", b"1", access=DEFAULT, identity=ADMIN) == image({"p": "1"}, visibility="private")
    strict = Access(Policies.of({}), denied("create p"))
    assert outcome(record, "p", b"1", access=strict, identity=ADMIN) is NotPermitted


@pytest.mark.parametrize("name", [name for name in CORE if name not in WRITABLE])
@pytest.mark.parametrize("mode", MODES)
def test_read_only_attributes(name: str, mode: Mode) -> None:
    """They are refused in every mode, for admin too, and are never removed."""
    full = image(disk_format="raw", container_format="bare", size=1, virtual_size=1, checksum="0", os_hash_algo="sha512", os_hash_value="0")
    assert outcome(full, name, b"1", mode) is NotPermitted
    assert outcome(full, name, b"1", mode, identity=ADMIN) is NotPermitted
    assert outcome(full, name, None, identity=ADMIN) is NotPermitted


@pytest.mark.parametrize(
    ("name", "value", "attribute"),
    [
        ("name", b"debian\n", "debian"),
        ("visibility", b"public", "public"),
        ("protected", b"True", True),
        ("os_hidden", b"true", True),
        ("tags", b'["b", "a", "b"]', ("b", "a")),
        ("min_disk", b"5", 5),
        ("min_ram", b"512\n", 512),
    ],
)
def test_writing_core_attributes(name: str, value: bytes, attribute: object) -> None:
    """Each is written with its type, and protections have no say in them."""
    record = image({"secret": "1"}, name="old")
    access = open_access(protection=Table(others=False))
    assert outcome(record, name, value, access=access) == msgspec.structs.replace(record, **{name: attribute})
    assert outcome(record, name, value, Mode.REPLACE, access) == outcome(record, name, value, access=access)
    assert outcome(record, name, value, Mode.CREATE, access) is AlreadyExists
    assert outcome(record, name, None, access=access) is NotPermitted


def test_an_image_without_a_name_can_be_given_one() -> None:
    """The name is the one written attribute that an image may lack."""
    assert outcome(image(), "name", b"n", Mode.CREATE) == image(name="n")
    assert outcome(image(), "name", b"n", Mode.REPLACE) is NoAttribute
    assert outcome(image(), "name", None) is NoAttribute


@pytest.mark.parametrize(
    ("name", "value"), [("visibility", b"secret"), ("min_disk", b"-1"), ("tags", b"a,b"), ("protected", b"1"), ("name", b"n" * 256)]
)
def test_bad_values_of_core_attributes(name: str, value: bytes) -> None:
    """They are invalid, not forbidden."""
    assert outcome(image(name="x"), name, value) is InvalidInput


@pytest.mark.parametrize(
    ("visibility", "policy"), [("public", "publicize_image"), ("community", "communitize_image"), ("private", None), ("shared", None)]
)
def test_visibility_has_policies_of_its_own(visibility: str, policy: str | None) -> None:
    """Making an image public or community is asked for, also where it is that already."""
    value = visibility.encode()
    refusing = open_access("publicize_image", "communitize_image")
    assert outcome(image(visibility="private"), "visibility", value, access=refusing) == (NotPermitted if policy else image(visibility=visibility))
    assert outcome(image(visibility=visibility), "visibility", value, access=refusing) == (NotPermitted if policy else image(visibility=visibility))
    if policy is not None:
        with pytest.raises(NotPermitted, match=policy):
            set_attribute(image(), "visibility", value, Mode.SET, OWNER, open_access(policy))


def test_default_policies_let_the_owner_communitize_and_not_publicize() -> None:
    """As Glance's do."""
    assert outcome(image(), "visibility", b"public", access=DEFAULT) is NotPermitted
    assert outcome(image(), "visibility", b"public", access=DEFAULT, identity=ADMIN) == image(visibility="public")
    assert outcome(image(), "visibility", b"community", access=DEFAULT) == image(visibility="community")


@pytest.mark.parametrize("name", ["location", "locations", "deleted", "deleted_at", "direct_url", "self", "file", "schema", "os_glance_x"])
def test_reserved_names(name: str) -> None:
    """They are refused to admin as well, there or not, in every way."""
    for record in (image(), image({name: "1"})):
        for mode in MODES:
            assert outcome(record, name, b"1", mode, identity=ADMIN) is NotPermitted
        assert outcome(record, name, None, identity=ADMIN) is NotPermitted


@pytest.mark.parametrize("name", ["imagefs.cached", "imagefs.members", "imagefs.member", "imagefs."])
def test_imagefs_own_names_are_no_properties(name: str) -> None:
    """What is not a thing to write on an image is refused."""
    assert outcome(image(), name, b"1") is NotPermitted
    assert outcome(image(), name, None) is NotPermitted


def test_stores_is_a_property() -> None:
    """Glance reads it, and still accepts it in a PATCH."""
    assert outcome(image(), "stores", b"x") == image({"stores": "x"})


@pytest.mark.parametrize("name", ["", "n" * 256, "\udcff", "a\0b"])
def test_names_that_cannot_be(name: str) -> None:
    """1 to 255 characters of UTF-8."""
    assert outcome(image(), name, b"1") is InvalidInput
    assert outcome(image(), name, None) is InvalidInput


@pytest.mark.parametrize("name", ["n" * 255, "a/b", " blank ", "ü" * 255, "line\nbreak", "%(x)s", ".", "Name"])
def test_names_that_can_be(name: str) -> None:
    """Any character else, the slash too."""
    record = outcome(image(), name, b"1")
    assert record == image({name: "1"})
    assert isinstance(record, ImageRecord)
    assert outcome(record, name, None) == image()


@pytest.mark.parametrize("value", [b"\xff", b"a\0b", b"v" * (VALUE_LIMIT + 1)])
def test_bad_values_of_properties(value: bytes) -> None:
    """UTF-8 without NUL, up to 64 KiB."""
    assert outcome(image(), "p", value) is InvalidInput
    assert outcome(image({"p": "1"}), "p", value) is InvalidInput


def test_values_of_properties_are_kept_as_they_are() -> None:
    """A newline at the end, nothing at all, and 64 KiB."""
    for value in (b"a\n", b"", b"v" * VALUE_LIMIT):
        assert outcome(image(), "p", value) == image({"p": value.decode()})


def test_a_write_that_changes_nothing_returns_the_record_itself() -> None:
    """So that a store writes nothing; permission is needed all the same."""
    record = image({"p": "1"}, name="n", tags=("a",))
    for name, value in (("p", b"1"), ("name", b"n\n"), ("tags", b'["a","a"]'), ("min_disk", b"0"), ("visibility", b"shared")):
        assert outcome(record, name, value) is record
    assert outcome(record, "p", b"1", access=open_access(protection=denied("update p"))) is NotPermitted


def test_quota_counts_what_the_caller_cannot_see() -> None:
    """A new name beyond 128 is refused; what is there may be changed and removed, and Glance's own do not count."""
    full = {f"p{number}": "1" for number in range(PROPERTY_LIMIT)}
    hidden = denied(*(f"read {name}" for name in full if name != "p0"))
    assert outcome(image(full), "new", b"1", access=open_access(protection=hidden)) is QuotaExceeded
    assert outcome(image(full), "p0", b"2", access=open_access(protection=hidden)) == image(full | {"p0": "2"})
    assert outcome(image(full | {"more": "1"}), "more", b"2") == image(full | {"more": "2"})
    assert outcome(image(full | {"more": "1"}), "more", None) == image(full)
    del full["p0"]
    assert outcome(image(full | {"os_glance_x": "1"}), "new", b"1") == image(full | {"os_glance_x": "1", "new": "1"})


def test_refusals_are_one_line_that_names_the_image() -> None:
    """Whatever the name and the value are made of."""
    for name, value in (("a\nb", b"1"), ("\n" * 300, b"1"), ("name", b"\n" * 300), ("visibility", b"a\nb"), ("status", b"1"), ("os_glance_\n", b"1")):
        with pytest.raises((NotPermitted, InvalidInput)) as refused:
            set_attribute(image(), name, value, Mode.SET, OWNER, open_access(protection=Table(others=False)))
        assert "\n" not in str(refused.value)
        assert image().id in str(refused.value)


def test_updated_at_is_the_store_s() -> None:
    """A change does not touch what it was not asked for."""
    record = outcome(image(), "p", b"1")
    assert isinstance(record, ImageRecord)
    assert record.updated_at == image().updated_at
