"""This module is `imagefs image delete`: it removes images from the configured store."""

import click

from imagefs.cli.errors import report
from imagefs.cli.invocation import Invocation, pass_invocation
from imagefs.cli.mountpoint import refresh_mounts
from imagefs.cli.rights import rights_of_process
from imagefs.cli.stored_image import find_stored
from imagefs.errors import ImagefsError
from imagefs.store.configured import open_configured


@click.command("delete", short_help="Delete images from the store.")
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@pass_invocation
@click.pass_context
def image_delete(context: click.Context, invocation: Invocation, images: tuple[str, ...]) -> None:
    """Delete each IMAGE, an id or a name, from the configured store, as far as you may.

    A protected image is not deleted. Instances made from a deleted image lose what they have not yet read of it.
    """
    rights = rights_of_process(invocation.config)
    store = open_configured(invocation.config.store)
    store.check()
    failed = False
    for wanted in images:
        try:
            record = find_stored(store, wanted, rights)
            rights.check_delete(record, f"image delete {wanted}")
            store.delete(record.id)
        except ImagefsError as error:
            report(error)
            failed = True
    refresh_mounts()
    if failed:
        context.exit(1)
