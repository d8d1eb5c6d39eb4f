"""This package says who is calling: the numbers that the kernel vouches for, and the project, user and roles they stand for."""
