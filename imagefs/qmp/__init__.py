"""This package talks to a caller's QEMU and to the agent in its guest: JSON lines over UNIX sockets, and a peer that nobody vouches for."""
