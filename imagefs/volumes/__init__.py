"""This package is the volumes: persistent disks, each with a name of its own, that outlive the instances they are attached to."""
