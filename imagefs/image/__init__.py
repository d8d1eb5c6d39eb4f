"""This package knows what an image is: it inspects one before use, and reads a qcow2 image as the disk that it holds."""
