#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Counts the unsafe blocks of the modules by directory, and fails when one lies outside of the layers that may have them.
That each has its SAFETY comment is what clippy looks at."""

import re
import sys
from pathlib import Path

# Directories below drivers/, and beginnings of file names, that may hold unsafe code (docs/drivers.md).
LAYERS = ("vmbus/", "netvsc/net/", "storvsc/scsi")

UNSAFE = re.compile(r"\bunsafe\b")
BLOCK = re.compile(r"\bunsafe\s*(\{|impl\b)")

counts, faults = {}, []
for path in sorted(Path("drivers").rglob("*.rs")):
    name = path.relative_to("drivers").as_posix()
    key = name.split("/")[0]
    counts.setdefault(key, 0)
    for number, line in enumerate(path.read_text().split("\n"), 1):
        code = line.split("//")[0]
        counts[key] += len(BLOCK.findall(code))
        if UNSAFE.search(code) and not name.startswith(LAYERS):
            faults.append(f"{path}:{number}: unsafe code outside of the layers that may have it")
for key, count in counts.items():
    print(f"{count:4} unsafe blocks in drivers/{key}")
print("\n".join(faults))
sys.exit(bool(faults))
