"""Kinds of operations on what is stored: retention and erasure remove it, a rebuild makes tables from it again."""
