"""Tests of records that are kept packed."""

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from imagefs.catalog.image import LARGEST_PACKED, PLAIN, CatalogImage, Packing, record_body
from imagefs.store.record import HashTree, ImageRecord, Member

ID = "aaaaaaaa-0000-4000-8000-000000000000"
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
RECORDS = st.builds(
    ImageRecord,
    id=st.just(ID),
    created_at=TEXT,
    updated_at=TEXT,
    name=st.none() | TEXT,
    size=st.none() | st.integers(0, 2**62),
    tags=st.lists(TEXT, max_size=3).map(tuple),
    properties=st.dictionaries(TEXT, TEXT, max_size=5),
    members=st.lists(st.builds(Member, TEXT), max_size=2).map(tuple),
    tree=st.none() | st.builds(HashTree, TEXT, st.integers(0, 9), st.integers(0, 9), st.lists(TEXT, max_size=2).map(tuple)),
    key=st.none() | st.binary(max_size=20).map(lambda raw: raw.decode("utf-8", "surrogateescape")),
)


@given(record=RECORDS, sample=st.binary(max_size=20_000))
def test_a_record_comes_out_as_it_went_in(record: ImageRecord, sample: bytes) -> None:
    """Whatever is in it, whatever it is packed with, and also when it is packed once more for a database."""
    packing = Packing(sample)
    image = CatalogImage(record, "1", packing)
    assert image.record == record
    assert image.unpack() == record
    for other in (packing, PLAIN):
        assert CatalogImage.packed(*image.pieces(other), other).record == record


def test_a_record_like_the_sample_takes_little() -> None:
    """Of a record of 1.3 KB, what it has in common with the sample takes next to nothing."""

    def made(number: int) -> ImageRecord:
        when = "2026-01-01T00:00:00Z"
        digest = hashlib.sha512(str(number).encode()).hexdigest()
        properties = {f"property_{key}": f"value {key}" for key in range(30)}
        return ImageRecord(id=ID, created_at=when, updated_at=when, os_hash_value=digest, properties=properties)

    packing = Packing(record_body(made(0)))
    *_, packed = CatalogImage(made(1), "1", packing).pieces(packing)
    assert len(record_body(made(1))) > 900
    assert len(packed) < 250


def test_a_huge_record_is_kept_as_it_is() -> None:
    """Unpacking megabytes whenever somebody asks would be dear: the record itself is kept."""
    record = ImageRecord(id=ID, created_at="", updated_at="", properties={"large": "x" * LARGEST_PACKED})
    image = CatalogImage(record, "1")
    assert image.record is record
    assert image.unpack() is record


def test_no_two_images_have_one_number() -> None:
    """What is known of one by its number is never taken for another's."""
    record = ImageRecord(id=ID, created_at="", updated_at="")
    assert len({CatalogImage(record, "1").number for _ in range(100)}) == 100
