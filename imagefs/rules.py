"""This module loads the rules of a configuration: who a caller is, and what policies and property protections let it see and do.

Rules that are missing, unreadable or not sound are never left out: whoever wrote them counts on their being obeyed.
"""

import os

from imagefs.config import Config
from imagefs.identity.map import IdentityMap
from imagefs.properties.access import Access
from imagefs.properties.policy import Policies
from imagefs.properties.protection import UNPROTECTED, Protection


def load_access(config: Config) -> Access:
    """Return the rules that [policy] and [protection] name, read now; without a file they are Glance's own policies and no protections.

    Blocks. Raises InvalidInput that names the file, the place in it and the reason.
    """
    policies = Policies.load(config.policy.policy_file)
    protection = config.protection
    if protection.property_protection_file is None:
        return Access(policies, UNPROTECTED)
    return Access(policies, Protection.load(protection.property_protection_file, protection.property_protection_rule_format, policies))


def load_identities(config: Config, uid: int | None = None) -> IdentityMap:
    """Return the map of callers to identities that [identity] describes.

    `uid` is that of the user who runs the daemon, by default this process's. Blocks. Raises ConfigError for users and groups that this host
    does not know.
    """
    return IdentityMap(config.identity, os.geteuid() if uid is None else uid, config.source)
