"""Shot detection: two detectors behind one interface, and the pure arithmetic from boundaries to scenes."""
