"""From curated clips to latents, text features and shards."""
