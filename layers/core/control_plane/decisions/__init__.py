"""Deciding: from an anomaly to an action, step by step on record, and nothing released without a verdict."""
