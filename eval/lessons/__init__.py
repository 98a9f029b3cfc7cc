"""What the notebooks compute and draw: plain objects in, a pandas frame or a matplotlib figure out."""
