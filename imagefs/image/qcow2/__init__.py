"""This package reads qcow2 images: where each guest byte is (header, tables), and how to get it (filler, disk)."""
