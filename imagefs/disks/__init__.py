"""This package is a writable disk of an instance or a volume: its record, its layers of overlay files, and who holds it open."""
