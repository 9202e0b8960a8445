"""Import this before torch, and a process that begins with torch is up in less time.

While modules are imported, their classes and functions pile up, and none of them is garbage; Python looks through them
again and again all the same. Here it does not until torch is there. What the caller has stays as it is, and is looked
through as ever from then on; where torch has been imported already, nothing is done.
"""

import gc
import sys

if "torch" not in sys.modules:
    _enabled = gc.isenabled()
    gc.disable()
    try:
        import torch  # noqa: F401
    finally:
        if _enabled:
            gc.enable()
