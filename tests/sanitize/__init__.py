"""The kernels of csrc/ under GCC's sanitizers: ``python -m tests.sanitize``, or ``make sanitize``.

extension.py     loads the extension that setup.py compiled for a sanitizer, and makes sure of it
planted.cpp, .py errors on purpose, compiled into it, which must be reported
parallel_for.cpp threads that ThreadSanitizer sees through, compiled into it
plugin.py        runs the tests of the native backend on it
"""
