"""The model of a virtual machine: what a flavor, an image's properties and an instance's disks ask for, before it is said to QEMU or libvirt."""
