"""What the ledger knows, in the words of other systems: delivered to sinks from the outbox, or written to a file.

The ledger stays the source of truth: every export can be made again from it.
"""
