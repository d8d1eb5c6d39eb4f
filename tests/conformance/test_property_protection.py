"""The answers that Glance 33.0.0 gave for rules files are those of imagefs."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from imagefs.errors import InvalidInput
from imagefs.identity.map import Identity
from imagefs.properties.policy import Policies
from imagefs.properties.protection import Protection

FILE = json.loads((Path(__file__).parent / "property_protection.json").read_text())
VECTORS: list[dict[str, Any]] = FILE["vectors"]


def parse(vector: dict[str, Any]) -> Protection:
    """Return what imagefs makes of a vector's rules file and policy file."""
    body = base64.b64decode(vector["rules_b64"]) if "rules_b64" in vector else vector["rules"].encode()
    return Protection.parse(body, vector["name"], vector["format"], Policies.of(vector["policies"] or {}))


@pytest.mark.parametrize("vector", [vector for vector in VECTORS if "cases" in vector], ids=lambda vector: vector["name"])
def test_every_case_is_decided_as_by_glance(vector: dict[str, Any]) -> None:
    """Of each property, operation and set of roles; where Glance crashed, the answer is no."""
    protection = parse(vector)
    caller = FILE["meta"]["identity"]
    wrong = []
    for case in vector["cases"]:
        roles = frozenset(role.lower() for role in case["roles"]) | frozenset(case.get("service_roles", ()))
        identity = Identity(roles, caller["project_id"], caller["user_id"])
        if protection.allows(case["property"], case["operation"], identity) is not (case["allowed"] or False):
            wrong.append(case)
    assert not wrong


@pytest.mark.parametrize("vector", [vector for vector in VECTORS if "error" in vector], ids=lambda vector: vector["name"])
def test_every_file_that_glance_refuses_is_refused(vector: dict[str, Any], tmp_path: Path) -> None:
    """When it is parsed and when a mount loads it, with the name of the file."""
    with pytest.raises(InvalidInput, match=vector["name"]):
        parse(vector)
    path = tmp_path / "rules.conf"
    path.write_bytes(base64.b64decode(vector["rules_b64"]) if "rules_b64" in vector else vector["rules"].encode())
    with pytest.raises(InvalidInput, match="property protection file"):
        Protection.load(path, vector["format"], Policies.of(vector["policies"] or {}))


def test_the_vectors_are_all_there() -> None:
    """18 files, 5 of them refused, with 388 cases."""
    assert (len(VECTORS), sum("error" in vector for vector in VECTORS), sum(len(vector.get("cases", ())) for vector in VECTORS)) == (18, 5, 388)
