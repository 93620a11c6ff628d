"""``python -m asrlib.cli``."""

from asrlib.cli import main

raise SystemExit(main())
