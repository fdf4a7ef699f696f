"""Schema revisions of the ledger, oldest first."""
