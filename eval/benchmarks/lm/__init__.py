"""Task files of lm-evaluation-harness; README.md explains them."""
