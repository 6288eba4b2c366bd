"""Further terms of a step, on target images."""
