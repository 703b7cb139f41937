"""The operator of refork: it watches the memory of pods, and reforks them when that pays."""
