"""This module is `imagefs image verify`: it reads images in the store, past every cache, and compares them with their hashes.

It opens the store by the configuration, as image save does, and not through a mount: what it is to find is in the store, a daemon would read
it with the same code, and so it works where nothing is mounted.
"""

import click
import trio

from imagefs.cli.errors import report
from imagefs.cli.image_save import open_object
from imagefs.cli.invocation import Invocation, pass_invocation
from imagefs.cli.output import Shape, check_columns, output_options, print_list
from imagefs.cli.progress import watch
from imagefs.cli.rights import Rights, rights_of_process
from imagefs.cli.stored_image import find_stored
from imagefs.errors import ImagefsError, ImageRefused
from imagefs.hydration.verification import ImageVerified, verify_image
from imagefs.store.configured import open_configured
from imagefs.store.protocol import ImageStore
from imagefs.store.record import ImageRecord

COLUMNS = ("ID", "Name", "Size", "Compared")


@click.command("verify", short_help="Compare images in the store with their hashes.")
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@output_options
@pass_invocation
@click.pass_context
def image_verify(context: click.Context, invocation: Invocation, images: tuple[str, ...], shape: Shape) -> None:
    """Read all bytes of each IMAGE, an id or a name, from the configured store, and compare them with its size, digests and hashes.

    You need to be allowed to download it. Fails if one is damaged, and goes on with the others; what was right is listed.
    """
    check_columns(shape, COLUMNS)
    rights = rights_of_process(invocation.config)
    store = open_configured(invocation.config.store)
    store.check()
    rows: list[tuple[object, ...]] = []
    failed = False
    for wanted in images:
        try:
            record, found = _verify(store, wanted, rights)
            rows.append((record.id, record.name, found.size, ", ".join(found.compared)))
        except ImagefsError as error:
            report(error)
            failed = True
    if rows:
        print_list(COLUMNS, rows, shape)
    if failed:
        context.exit(1)


def _verify(store: ImageStore, wanted: str, rights: Rights) -> tuple[ImageRecord, ImageVerified]:
    record = find_stored(store, wanted, rights)
    rights.access.check_download(rights.identity, record)
    if record.status not in ("active", "deactivated"):
        raise ImageRefused(f"image verify {wanted}: its status is {record.status}: it has no bytes yet")
    source = open_object(store, record)
    with watch(f"Verifying {wanted}") as show:
        return record, trio.run(verify_image, source, record, show)
