"""Runs a command and writes the largest resident size that it or a process it started had, in MiB.

    python peak.py FILE COMMAND...

The exit status is the command's.
"""
import resource, subprocess, sys

status = subprocess.call(sys.argv[2:])
with open(sys.argv[1], "w") as f:
    print(round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024, 1), file=f)
sys.exit(status if status >= 0 else 128 - status)
