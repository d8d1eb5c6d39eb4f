"""This package brings the rest of images that are in use while nobody waits for anything, and proves what was brought."""
