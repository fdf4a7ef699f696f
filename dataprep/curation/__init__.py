"""Curation: measuring files and clips once, then deciding by pure functions of the measurements."""
