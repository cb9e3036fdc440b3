"""``python -m lnlbench`` is the ``lnlbench`` command."""

from lnlbench.cli.main import main

if __name__ == "__main__":
    main()
