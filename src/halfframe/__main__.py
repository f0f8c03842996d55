"""``python -m halfframe``, so that ``torchrun -m halfframe`` works."""

import sys

from halfframe.cli import main

sys.exit(main())
