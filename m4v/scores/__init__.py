"""Differentiable image-text scores behind one interface (`m4v.scores.interface.Scorer`)."""
