"""Fetching the media that tables name by URL: polite, resumable, closed to private networks.

`download` writes files into a collection's location; the `source` stage does so first when the adapter of its
collection has a `download` section, and then lists what is there.
"""
