"""Leaderboard pages: a folder of self-contained HTML made from the CSV files and the bundles beside them."""
