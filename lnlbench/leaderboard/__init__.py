"""Leaderboards: from result records to bundles, from bundles to CSV files, from those to tables."""
