"""This package keeps the bytes that were fetched on the local disk, within a budget, and serves them from there."""
