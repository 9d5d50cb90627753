"""Operations: runs that people plan, look at, start, pause and cancel, such as a redrive or a replay."""
