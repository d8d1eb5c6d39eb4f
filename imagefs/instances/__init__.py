"""This package is the instances: their records, their disks, and how both come and go."""
