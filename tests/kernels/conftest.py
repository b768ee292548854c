"""Tests of the Triton kernels run in Triton's interpreter, which must be chosen before Triton is imported.

Each module runs in interpreting pytest processes of its own. To pick single tests set TRITON_INTERPRET=1 yourself.
"""

import importlib.util
import os
import subprocess
import sys

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"
COMPILED = {"test_aot.py", "test_gpu.py"}
PARTS = {"test_pooled_attention.py": 2}  # of modules that take over a minute on a busy core
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

    _patch_language, _patched = interpreter._patch_lang, set()

    def _patch_language_once(function):
        """Triton patches its language for every function that a kernel calls, and undoes it after every launch."""
        module = function.__globals__["__name__"]
        if module not in _patched:
            _patch_language(function)
            _patched.add(module)
        return interpreter._LangPatchScope()  # of nothing to undo

    _numpy_type, _numpy_types = interpreter._get_np_dtype, {}

    def _numpy_type_once(dtype):
        """Found anew for every operation otherwise; so are the types of blocks below."""
        if dtype.name not in _numpy_types:
            _numpy_types[dtype.name] = _numpy_type(dtype)
        return _numpy_types[dtype.name]

    _blocks = {}

    def _block_once(element, shape):
        key = (element.name, *shape)
        if key not in _blocks:
            _blocks[key] = interpreter.tl.block_type(element, shape)
        return _blocks[key]

    _broadcast = interpreter.TritonSemantic.broadcast_impl_value

    def _broadcast_of_unlike(self, left, right):
        return (left, right) if left.type is right.type else _broadcast(self, left, right)

    interpreter._patch_lang = _patch_language_once
    interpreter._get_np_dtype = _numpy_type_once
    interpreter.tl.block_type.with_element_ty = lambda self, element: _block_once(element, self.shape)
    interpreter.InterpreterBuilder.get_block_ty = lambda self, element, shape: _block_once(element, shape)
    interpreter.TritonSemantic.broadcast_impl_value = _broadcast_of_unlike
    interpreter.InterpreterBuilder.create_masked_load = _masked_load
    interpreter.InterpreterBuilder.create_masked_store = _masked_store
    interpreter.InterpreterBuilder.create_dot = _dot_of_bfloat16
    interpreter._patch_lang_tensor = _patch_index
