"""imagefs: a filesystem of virtual machine images and of instances' copy-on-write disks."""

__version__ = "0.1.0"
