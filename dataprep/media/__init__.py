"""Media behind one interface: probing with typed failures, frame-exact decoding, sampling by timestamp."""
