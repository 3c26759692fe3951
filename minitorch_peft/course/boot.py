"""Start of a student's process: ``python -I boot.py SETTINGS LIBRARY PROBES``. First the limits, then the worker.

It imports nothing of the library, which holds the student's code: that happens in the first call, so that a process
that does not even start is never the student's doing.
"""

import os
import runpy
import sys
import types


def start(settings: str, library: str, probes: str) -> None:
    here = os.path.dirname(os.path.abspath(__file__))
    runpy.run_path(os.path.join(here, "sandbox.py"))["confine"](settings)
    sys.path.insert(0, library)
    for name in ("minitorch_peft", "minitorch_peft.course"):  # in their place, for as long as the worker is imported
        package = types.ModuleType(name)
        package.__path__ = [os.path.join(library, *name.split("."))]
        sys.modules[name] = package
    from minitorch_peft.course.worker import serve

    del sys.modules["minitorch_peft"], sys.modules["minitorch_peft.course"]
    serve(probes)


if __name__ == "__main__":
    start(*sys.argv[1:])
