"""The pages: they are whole, and they say what is."""
