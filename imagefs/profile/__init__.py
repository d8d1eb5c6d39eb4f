"""This package knows what a guest reads while it boots: it records that, keeps it beside the image, and brings it ahead of the next guest."""
