"""This module is the rights of the process that runs a command, for the commands that open the store and not a mount.

Who can open the store has its credentials, and no rule can keep such a user from it. The same rules hold all the same, so that a
command does nothing that a mount would refuse.
"""

import os
from pathlib import Path

from imagefs.config import Config
from imagefs.errors import Denied, NotPermitted
from imagefs.identity.caller import Caller
from imagefs.identity.map import Identity
from imagefs.properties.access import Access
from imagefs.properties.creation import check_create
from imagefs.rules import load_access, load_identities
from imagefs.store.record import ImageRecord


class Rights:
    """What one identity may do with images under one set of rules."""

    def __init__(self, identity: Identity, access: Access) -> None:
        """Take who acts, and the rules."""
        self.identity = identity
        self.access = access

    def sees(self, record: ImageRecord) -> bool:
        """Tell whether there is such an image for the identity."""
        return self.access.sees(self.identity, record)

    def lists(self, record: ImageRecord) -> bool:
        """Tell whether the image is in the identity's lists."""
        return self.access.lists(self.identity, record)

    def check_create(self, record: ImageRecord) -> None:
        """Return if the identity may store such an image. Raises Denied with the reason. See `creation.check_create`."""
        what = f"image create {record.name}"
        check_create(self.identity, self.access, record, what, setting="--property", remedy=": leave it out")

    def check_delete(self, record: ImageRecord, what: str) -> None:
        """Return if the identity may delete the image. Raises NotFound if it does not see it, Denied, NotPermitted if it is protected.

        `what` is what is being done, for the message.
        """
        self.access.check_seen(self.identity, record)
        if not self.access.mutable(self.identity, record):
            raise Denied(f"{what}: only the image's owner and admins may")
        if not self.access.allows("delete_image", self.identity, record):
            raise Denied(f"{what}: the policy delete_image does not allow it")
        if record.protected:
            raise NotPermitted(f"{what}: the image is protected: unset protected first")


def rights_of_process(config: Config) -> Rights:
    """Return the rights of this process under the rules of a configuration. Raises ConfigError, InvalidInput for rules that are not sound."""
    caller = Caller(os.geteuid(), os.getegid(), groups=frozenset(os.getgroups()))
    return Rights(load_identities(config, daemon_uid(config.state.dir)).identity(caller), load_access(config))


def daemon_uid(state: Path) -> int:
    """Return the uid of whom a daemon with this state directory runs as: the owner of the directory, or of the nearest one that is there.

    The map of identities makes that user an admin, and must not do so for everybody who runs a command.
    """
    for path in (state, *state.parents):
        try:
            return path.stat().st_uid
        except FileNotFoundError:
            continue
        except OSError:
            return 0  # whoever it is, it is not this process
    return 0
