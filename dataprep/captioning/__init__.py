"""Captions of clips: clean-up to the text encoder's length, and new ones written by a vision language model."""
