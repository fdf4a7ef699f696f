"""Free-hand sampling, `m4v generate`: prompts, the checkpoint with its defaults, a folder of videos that resumes."""
