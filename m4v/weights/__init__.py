"""Imported third-party weights: what exists, where it belongs, whether it is whole, and how it becomes a
`weights` artifact. Importing this package loads nothing."""
