"""Combiners: how a base tensor and K task vectors become one tensor."""
