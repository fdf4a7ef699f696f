"""Pyramidal flow matching: schedule, latents, packing of training columns, loss, sampler."""
