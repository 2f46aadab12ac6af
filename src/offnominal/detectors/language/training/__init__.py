"""Training of prompts and layers: what is learned, its losses, the images it is learned from."""
