"""This module holds the options of S3 and Glance stores as plain values, so that nothing needs their libraries to name them."""

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class S3Options:
    """`[store.s3]`: None leaves the choice to the AWS configuration chain. Credentials come from that chain and nowhere else."""

    endpoint_url: str | None = None
    region: str | None = None
    profile: str | None = None
    addressing_style: str | None = None
    """auto, path or virtual."""
    ca_bundle: str | None = None
    """A file of PEM certificates to trust instead of the usual ones."""


@dataclasses.dataclass(frozen=True, slots=True)
class GlanceOptions:
    """`[store.glance]`: `cloud` is a name in clouds.yaml; None leaves it to OS_CLOUD and the other OS_ variables."""

    cloud: str | None = None
    direct_stores: tuple[str, ...] = ()
    """URLs file:///DIR and s3://BUCKET/PREFIX below which bytes of images may be read without Glance."""
