"""Output whose reader has gone, as in `python -m reid table logs | head -1`."""

import subprocess
import sys

from conftest import ROOT


def test_output_that_nobody_reads(weights):
    """As in `python -m reid export --help | head -1`, with more output than the pipe holds."""
    code = "import sys; from reid.commands import reported; sys.exit(reported(lambda: print('x' * 10**6) or 0, False))"
    child = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    child.stdout.read(1)
    child.stdout.close()
    assert child.stderr.read() == b"" and child.wait() == 141
    child.stderr.close()
