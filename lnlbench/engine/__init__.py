"""One cell's specification in, one record out. See docs/architecture.md for the path of a run."""
