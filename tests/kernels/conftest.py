"""Tests of the Triton kernels run in Triton's interpreter, which must be chosen before Triton is imported.

Each module runs in interpreting pytest processes of its own. To pick single tests set TRITON_INTERPRET=1 yourself.
"""

import importlib.util
import inspect
import os
import subprocess
import sys

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"
COMPILED = {"test_aot.py", "test_gpu.py"}
PARTS = {"test_pooled_attention.py": 4, "test_patch_attention.py": 2}  # of modules that take over a minute
PART = "FASTINPAINT_INTERPRETED_PART"  # "1/3": every third test from the second on


class InterpretedModule(pytest.File):
    def collect(self):
        parts = PARTS.get(self.path.name, 1)
        for part in range(parts):
            name = "interpreted" if parts == 1 else f"interpreted[{part + 1} of {parts}]"
            yield InterpretedRun.from_parent(self, name=name, part=f"{part}/{parts}")


class InterpretedRun(pytest.Item):
    def __init__(self, *, part, **options):
        super().__init__(**options)
        self.part = part

    def runtest(self):
        if importlib.util.find_spec("triton") is None:
            pytest.skip("needs triton; it is not installed")
        command = [sys.executable, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider", str(self.path)]
        environment = {**os.environ, "TRITON_INTERPRET": "1", PART: self.part}
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            pytest.fail(f"in Triton's interpreter:\n{done.stdout}\n{done.stderr}", pytrace=False)


def pytest_pycollect_makemodule(module_path, parent):
    if INTERPRETING or module_path.name in COMPILED:
        return None
    return InterpretedModule.from_parent(parent, path=module_path)


def pytest_collection_modifyitems(config, items):
    part, parts = map(int, os.environ.get(PART, "0/1").split("/"))
    if parts > 1:
        config.hook.pytest_deselected(items=[item for place, item in enumerate(items) if place % parts != part])
        items[:] = items[part::parts]


if INTERPRETING:
    from triton.runtime import interpreter

    _multiply = interpreter.InterpreterBuilder.create_dot
    _patch_tensor = interpreter._patch_lang_tensor

    def _dot_of_bfloat16(self, a, b, *rest):
        """Triton's interpreter keeps bfloat16 as its bits and would multiply those."""
        if a.dtype.scalar.is_bf16():
            a, b = (self.cast_impl(x, interpreter.tl.float32) for x in (a, b))
        return _multiply(self, a, b, *rest)

    def _patch_index(tensor, scope):
        """Triton 3.6 turns arrays of one element into loop bounds in a way that NumPy 2.4 refuses."""
        _patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    _load = interpreter.InterpreterBuilder.create_masked_load
    _store = interpreter.InterpreterBuilder.create_masked_store

    def _boolean(mask):
        """A mask that joins a block and a scalar is int32 in the interpreter, which Triton 3.9's accesses refuse."""
        return interpreter.TensorHandle(mask.data.astype(bool), interpreter.tl.int1)

    def _masked_load(self, ptrs, mask, *rest, **options):
        return _load(self, ptrs, _boolean(mask), *rest, **options)

    def _masked_store(self, ptrs, value, mask, *rest, **options):
        return _store(self, ptrs, value, _boolean(mask), *rest, **options)

    _patch_builtins, _builtins_of = interpreter._patch_builtin, {}

    def _patch_builtins_once(package, builder, scope):
        """Called for every function that a kernel calls, and then nearly always finds nothing left to patch."""
        if package not in _builtins_of:
            members = inspect.getmembers(package)
            _builtins_of[package] = [name for name, member in members if interpreter.tl.core.is_builtin(member)]
        names = _builtins_of[package]
        if names and interpreter.tl.core.is_builtin(getattr(package, names[0])):
            _patch_builtins(package, builder, scope)

    interpreter._patch_builtin = _patch_builtins_once
    interpreter.InterpreterBuilder.create_masked_load = _masked_load
    interpreter.InterpreterBuilder.create_masked_store = _masked_store
    interpreter.InterpreterBuilder.create_dot = _dot_of_bfloat16
    interpreter._patch_lang_tensor = _patch_index
