"""What the application stands on: settings, the connection, named queries, logs and metrics."""

import os
from typing import Final

from control_plane.platform.powertools import take_out_unreadable

ENVIRONMENT_PROBLEMS: Final = take_out_unreadable(os.environ)
"""What was wrong with the variables that Powertools reads at import; looked at before anything here imports it."""
