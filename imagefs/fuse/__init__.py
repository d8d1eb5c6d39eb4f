"""This package is the one package that knows pyfuse3: handlers, errno, the mount."""
