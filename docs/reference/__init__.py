"""References that are written from the code itself: one module a page."""
