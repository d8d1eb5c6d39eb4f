"""This module opens the store of a configuration."""

import dataclasses

from imagefs.config import StoreConfig
from imagefs.store.factory import open_store
from imagefs.store.options import GlanceOptions, S3Options
from imagefs.store.protocol import ImageStore


def open_configured(config: StoreConfig) -> ImageStore:
    """Return the store that [store] means; nothing is asked of it yet: see `check`. The default store is made there if need be.

    Raises ConfigError.
    """
    return open_store(
        config.url,
        config.layout,
        S3Options(**dataclasses.asdict(config.s3)),
        config.source_address,
        create=config.is_default,
        glance=GlanceOptions(**dataclasses.asdict(config.glance)),
    )
