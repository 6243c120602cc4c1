"""Memory that a server frees must leave it."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import os, sys
import numpy as np
from sidrec.serving.memory import map_large_blocks

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20

if sys.argv[1] == "mapped":
    assert map_large_blocks()
np.ones(30 << 20, dtype=np.uint8)  # freed at once: glibc now keeps blocks as large among the small
before, tables, pins = resident(), [], []
for _ in range(50):
    tables.append(np.ones(4 << 20, dtype=np.uint8))
    pins.append(np.ones(100_000, dtype=np.uint8))
del tables
print(resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_large_blocks_leave_the_process_though_small_ones_stay():
    def kept(how):
        ended = subprocess.run(
            [sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True
        )
        return int(ended.stdout)

    assert kept("mapped") < 20 < 150 < kept("as it is")
