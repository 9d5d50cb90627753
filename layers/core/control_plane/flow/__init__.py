"""The flow as the database has counted it: its picture, its metrics, and the folding of what was counted."""
