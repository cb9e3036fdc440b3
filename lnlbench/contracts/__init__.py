"""What extensions implement or receive, one noun per file. Extensions import these names from ``lnlbench.api``."""
