"""The pages of the site, and what writes those of them that the code knows better."""
