"""Where pictures come from besides HTTP: folders, cameras, and what triggers them."""
