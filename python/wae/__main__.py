"""``python -m wae`` is the command ``wae``."""

import sys

from wae.cli import main

sys.exit(main())
