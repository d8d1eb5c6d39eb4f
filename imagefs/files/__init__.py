"""This package is the tree of the mount as nodes that know no protocol."""
