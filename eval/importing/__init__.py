"""Videos of other systems as samples: which file is which video, and whether each can be taken."""
