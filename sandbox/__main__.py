"""`python -m osmoda.sandbox`: the command `osmoda-sandbox`, with any interpreter that the package is installed for."""

import sys

from osmoda.sandbox.entry import main

sys.exit(main())
