"""This module is the table of policies: the names that Glance registers for images, and who may do what by default.

Names and checks are those of Glance 33.0.0 with `enforce_new_defaults`, which is its default. Its metadata definitions (metadef) have no
meaning here; of their names only the two that other rules refer to are known, so that a policy file written for Glance can be used as it is.
"""

from collections.abc import Mapping
from typing import Final

_ADMIN: Final = "rule:context_is_admin"
_SERVICE: Final = "rule:service_api"
_OWN: Final = "project_id:%(project_id)s"
_SHARED_WITH: Final = "project_id:%(member_id)s"
_MEMBER: Final = f"role:member and {_OWN}"
_CREATOR: Final = f"{_MEMBER} and project_id:%(owner)s"
_VISIBLE: Final = f"({_OWN} or {_SHARED_WITH} or 'community':%(visibility)s or 'public':%(visibility)s or 'shared':%(visibility)s)"

_ADMIN_OR_MEMBER: Final = f"{_ADMIN} or ({_MEMBER})"
_ADMIN_OR_READER: Final = f"{_ADMIN} or (role:reader and {_OWN})"
_ADMIN_OR_READER_OF_MEMBERS: Final = f"{_ADMIN} or role:reader and ({_OWN} or {_SHARED_WITH})"
_ADMIN_OR_DOWNLOADER: Final = f"{_ADMIN} or (role:member and {_VISIBLE})"

FALLBACK: Final = "default"
"""The policy that Glance takes in place of one that is not defined."""

DEFAULTS: Final[Mapping[str, str]] = {
    FALLBACK: "",
    "context_is_admin": "role:admin",
    "service_api": "role:service or role:admin",
    "add_image": f"{_ADMIN} or ({_CREATOR})",
    "delete_image": _ADMIN_OR_MEMBER,
    "get_image": f"{_ADMIN} or (role:reader and {_VISIBLE})",
    "get_images": _ADMIN_OR_READER,
    "modify_image": _ADMIN_OR_MEMBER,
    "publicize_image": _ADMIN,
    "communitize_image": _ADMIN_OR_MEMBER,
    "download_image": _ADMIN_OR_DOWNLOADER,
    "download_from_store": _ADMIN_OR_DOWNLOADER,
    "upload_image": _ADMIN_OR_MEMBER,
    "delete_image_location": _ADMIN,
    "get_image_location": _ADMIN_OR_READER,
    "set_image_location": _ADMIN_OR_MEMBER,
    "add_image_location": f"{_SERVICE} or ({_CREATOR})",
    "fetch_image_location": _SERVICE,
    "add_member": _ADMIN_OR_MEMBER,
    "delete_member": _ADMIN_OR_MEMBER,
    "get_member": _ADMIN_OR_READER_OF_MEMBERS,
    "get_members": _ADMIN_OR_READER_OF_MEMBERS,
    "modify_member": f"{_ADMIN} or (role:member and {_SHARED_WITH})",
    "manage_image_cache": _ADMIN,
    "deactivate": _ADMIN_OR_MEMBER,
    "reactivate": _ADMIN_OR_MEMBER,
    "copy_image": _ADMIN,
    "list_cached_nodes": _ADMIN,
    "get_task": f"rule:{FALLBACK}",
    "get_tasks": f"rule:{FALLBACK}",
    "add_task": f"rule:{FALLBACK}",
    "modify_task": f"rule:{FALLBACK}",
    "tasks_api_access": _ADMIN,
    "metadef_default": "",
    "metadef_admin": _ADMIN,
    "cache_image": _ADMIN,
    "cache_list": _ADMIN,
    "cache_delete": _ADMIN,
    "cache_clean": _ADMIN,
    "cache_prune": _ADMIN,
    "stores_info_detail": f"{_ADMIN} or {_SERVICE}",
}
"""Name to check, in oslo.policy's language."""

EARLIER: Final[Mapping[str, str]] = {
    FALLBACK: _ADMIN,
    "add_image": f"rule:{FALLBACK}",
    "delete_image": f"rule:{FALLBACK}",
    "get_image": f"rule:{FALLBACK}",
    "get_images": f"rule:{FALLBACK}",
    "modify_image": f"rule:{FALLBACK}",
    "communitize_image": f"rule:{FALLBACK}",
    "download_image": f"rule:{FALLBACK}",
    "upload_image": f"rule:{FALLBACK}",
    "delete_image_location": f"rule:{FALLBACK}",
    "get_image_location": f"rule:{FALLBACK}",
    "set_image_location": f"rule:{FALLBACK}",
    "add_member": f"rule:{FALLBACK}",
    "delete_member": f"rule:{FALLBACK}",
    "get_member": f"rule:{FALLBACK}",
    "get_members": f"rule:{FALLBACK}",
    "modify_member": f"rule:{FALLBACK}",
    "deactivate": f"rule:{FALLBACK}",
    "reactivate": f"rule:{FALLBACK}",
    "get_task": f"rule:{FALLBACK}",
    "get_tasks": f"rule:{FALLBACK}",
    "add_task": f"rule:{FALLBACK}",
    "cache_image": "rule:manage_image_cache",
    "cache_list": "rule:manage_image_cache",
    "cache_delete": "rule:manage_image_cache",
    "stores_info_detail": _ADMIN,
}
"""Deprecated checks: what Glance also lets pass if an operator turns `enforce_new_defaults` off. imagefs never evaluates them; the
manual says them, for operators who want one back and write it into their policy file."""
