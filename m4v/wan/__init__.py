"""M4V (Wan2.1): Wan's text-to-video transformer with MM-DiM in place of self-attention.

Importing this package, or its `config` and `keys`, loads neither torch nor diffusers; the other modules do.
"""
