"""This package is reads of local files whose bytes are not in memory: many at once, without a thread for each.

A read goes three ways, each only where the one before it does not do: on the spot, if the bytes are in the host's page cache (`reader`); by
io_uring, if the kernel offers it (`engine`, `ring`); by a thread, which also says what the matter is when io_uring could not read something.

All of it reads through the page cache, never with O_DIRECT. What one guest reads of a shared image is there for the next, a file that is
written with pwrite is read as it is without further thought, and the attempt to read on the spot has begun to read from the disk anyway.
"""
