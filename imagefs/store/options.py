"""This module holds the options of an S3 store as plain values, so that nothing needs boto3 to name them."""

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
