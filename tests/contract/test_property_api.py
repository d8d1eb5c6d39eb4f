"""What Glance's API answers under property protections (vectors of its own runs), step by step.

A scenario's image is one record. GET is `readable`, PATCH add is SET, replace is REPLACE, remove is removal, and several operations are
done on a copy that counts when all succeed. 403 is NotPermitted, 409 NoAttribute. Where Glance loses the properties that a caller
cannot read, they have to stay.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from imagefs.errors import ImagefsError, NoAttribute, NotPermitted
from imagefs.identity.map import Identity
from imagefs.properties.access import Access
from imagefs.properties.change import Mode, remove_attribute, set_attribute
from imagefs.properties.policy import Policies
from imagefs.properties.protection import Protection
from imagefs.store.record import ImageRecord
from tests.support.access import image

SCENARIOS = json.loads((Path(__file__).parents[1] / "conformance" / "property_api.json").read_bytes())["vectors"]
STATUS: dict[type[ImagefsError], int] = {NotPermitted: 403, NoAttribute: 409}
MODES = {"add": Mode.SET, "replace": Mode.REPLACE}
CORE_BODY = {"name"}


class Api:
    """One scenario's image, and its one caller."""

    def __init__(self, scenario: dict[str, Any]) -> None:
        policies = Policies.of(scenario["policies"] or {})
        self.access = Access(policies, Protection.parse(scenario["rules"].encode(), scenario["name"], scenario["format"], policies))
        self.identity = Identity(frozenset(role.lower() for role in scenario["roles"]), "project-1", "user-1")
        self.record = image(scenario["image_properties"], name="i", visibility="private", owner="project-1")

    def visible(self, record: ImageRecord) -> dict[str, str]:
        """Return what the caller reads; in an answer of Glance, `stores` is a link and no property."""
        assert self.access.sees(self.identity, record)
        return {name: value for name, value in self.access.readable(self.identity, record).items() if name != "stores"}

    def patch(self, operations: list[dict[str, str]]) -> None:
        """Do all operations or none."""
        record = self.record
        for operation in operations:
            name = operation["path"].removeprefix("/").replace("~1", "/").replace("~0", "~")
            if operation["op"] == "remove":
                record = remove_attribute(record, name, self.identity, self.access)
            else:
                record = set_attribute(record, name, operation["value"].encode(), MODES[operation["op"]], self.identity, self.access)
        self.record = record

    def create(self, body: dict[str, str]) -> ImageRecord:
        """Return a new image with the body's properties, each of which has to be allowed."""
        record = image(visibility="private", owner="project-1")
        for name in body.keys() - CORE_BODY:
            record = set_attribute(record, name, body[name].encode(), Mode.CREATE, self.identity, self.access)
        return record


def do(api: Api, kind: str, argument: Any, step: dict[str, Any]) -> None:
    """Do one step and compare what a caller is shown. Raises what refuses it."""
    if kind == "show":
        assert api.visible(api.record) == step["visible"]
    elif kind == "index":
        assert argument == {}
        assert api.access.may_list(api.identity)
        assert api.access.lists(api.identity, api.record)
        assert [api.visible(api.record)] == step["visible"]
    elif kind == "patch":
        api.patch(argument)
        assert api.visible(api.record) == step["response_properties"]
    else:
        assert kind == "create"
        assert api.visible(api.create(argument)) == step["response_properties"]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario["name"])
def test_scenario(scenario: dict[str, Any]) -> None:
    """Each step has Glance's outcome, shows what Glance shows, and stores what Glance stores; nothing unreadable is lost."""
    api = Api(scenario)
    for step in scenario["steps"]:
        before = api.record.properties
        unreadable = before.keys() - api.visible(api.record).keys()
        kind, *rest = step["do"]
        status = 201 if kind == "create" else 200
        try:
            do(api, kind, rest[0] if rest else None, step)
        except ImagefsError as error:
            status = STATUS[type(error)]
        assert status == step["status"]
        assert api.record.properties == {name: before[name] for name in unreadable} | step["stored_after"]
