"""M4V (Wan2.1): Wan's text-to-video transformer with MM-DiM in place of self-attention.

Importing this package, or its config modules and `keys`, loads neither torch nor diffusers; the others do.

    config = wan_preset("1.3B")  # mixer mm_dim
    state = attention_to_mm_dim(open_published(folder).stored(), config, seed=0)
    save_wan(checkpoint, WanCheckpointConfig(model=config), state)
    WanGenerator.open(checkpoint, parts=folder).generate("a cat", seed=1).save("cat.mp4")
"""
