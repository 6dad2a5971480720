"""What `ray submit` runs on the head: `qfleet` with these arguments, on the cluster.

ray submit copies this one file and runs it in the home folder; the code is in ~/qfleet on every machine.
"""

import os
import sys
from pathlib import Path

code = Path.home() / "qfleet"
os.chdir(code)
os.environ["RAY_ADDRESS"] = "auto"
os.environ["RAY_AUTH_MODE"] = "token"
# In place of this process, so that signals and the exit status are those of the run.
os.execv(sys.executable, [sys.executable, "-m", "qfleet", *sys.argv[1:]])
