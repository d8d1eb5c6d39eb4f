"""The command line: `imagefs` and `mount.imagefs`."""
