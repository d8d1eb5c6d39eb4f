"""An OpenStack Glance as an image store, over version 2 of its API."""
