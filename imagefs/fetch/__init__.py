"""This package gets an object's bytes out of the store, verified and in spite of faults."""
