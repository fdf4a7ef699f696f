"""Signals: cheap ones of every frame in the decoding pass, packaged models on a clip's key frames."""
