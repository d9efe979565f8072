"""Images: decoding, caches, and what a network sees of them."""
