"""PyramidFlow's causal video VAE: 8 x 8 x 8 pixels a latent pixel, 16 channels. Imports nothing by itself."""
