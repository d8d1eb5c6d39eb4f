"""This package is an image's properties as callers see them."""
