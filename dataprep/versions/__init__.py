"""Dataset versions: merge, subset and remove make new datasets that share the shards which did not change.

A version is an artifact like any other: its manifest lists every file, and its id is their Merkle root. Sharing is
the store's work. A shard of which every sample stays is named by `StageContext.share` and never passes through the
stage; publishing makes it a hard link on a local store (one copy on disk, however many versions hold it; deleting a
version frees what no other holds) and a copy by the server on S3 (no byte through this machine; the bucket does hold
it twice, the price of prefixes that read, verify and delete on their own). So readers, `artifacts verify` and garbage
collection know nothing of versions, where references to a parent would have bound each of them to it.

Shards of which some samples stay are not patched: what stays of them is packed anew into full shards. Shared shards
keep their parents' order and are numbered first, written ones follow, by bucket and sample id.
"""
