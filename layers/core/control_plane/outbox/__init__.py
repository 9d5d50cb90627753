"""The promises to deliver: claimed, published, settled."""
