"""What the application is built on: settings, the connection, named queries, logs and metrics."""

import os
from typing import Final

from control_plane.platform.powertools import take_out_unreadable

ENVIRONMENT_PROBLEMS: Final = take_out_unreadable(os.environ)
"""Problems of the variables that Powertools reads at import; they are checked before anything here imports it."""
