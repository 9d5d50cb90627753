"""The API: HTTP in front of what ops can tell. One module per concern, on `http` and `tokens`, which know of none."""
