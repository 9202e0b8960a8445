"""Import this before torch, and a process that begins with torch is up in two thirds of the time, and down sooner.

While modules are imported, their classes and functions pile up, and none of them is garbage; Python looks through them
again and again all the same. Here it does not until torch is there, and passes over them from then on, at its end too.
What the caller had before is looked through once first; where torch has been imported already, nothing is done.
"""

import gc
import sys

if "torch" not in sys.modules:
    gc.collect()
    _enabled = gc.isenabled()
    gc.disable()
    try:
        import torch  # noqa: F401
    finally:
        if _enabled:
            gc.enable()
    gc.freeze()
