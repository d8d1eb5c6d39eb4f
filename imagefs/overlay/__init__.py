"""An instance's writable disk: copy-on-write blocks over the image."""
