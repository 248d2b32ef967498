"""How kernels are compiled: without allocation, and to code that does not depend on what else was compiled before.

Numba gives a kernel copies of all functions that it calls, optimised in its own context, as weak symbols. The linker then
takes for every call the first copy that this process has loaded, whichever kernel it came with. Copies differ in how they
order sums, so a run that compiled its kernels and one that found them in the cache answered differently. Here the copies
are private to their kernel, and code that was compiled a moment ago is the code that the cache holds.

A kernel that does not say how it is compiled takes that from the kernel that calls it first in a process, and the cache keeps
it so. Hence `kernel` says it for all of them: arithmetic in the order in which it is written, unless `fastmath` says more.
"""

import hashlib
import os
from contextlib import suppress
from functools import cache
from pathlib import Path

from llvmlite.binding import Linkage, add_symbol, parse_bitcode
from numba import njit
from numba.core import event
from numba.core.caching import CompileResultCacheImpl, FunctionCache, InTreeCacheLocator
from numba.core.codegen import JITCodeLibrary, JitEngine
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.compiler_machinery import AnalysisPass, register_pass
from numba.core.runtime._nrt_python import c_helpers
from numba.core.typed_passes import AnnotateTypes

CONTRACT = {"contract", "nsz"}  # fastmath: products and sums in one instruction
FAST = {"contract", "reassoc", "arcp", "nsz"}  # and sums in any order; infinities and NaN keep their meaning


class _Library(JITCodeLibrary):
    """Code of one kernel, which no other kernel's calls are linked to."""

    def _optimize_final_module(self):
        super()._optimize_final_module()
        for function in self._final_module.functions:
            if not function.is_declaration and function.linkage == Linkage.linkonce_odr:
                function.linkage = Linkage.internal


@register_pass(mutates_CFG=False, analysis_only=True)
class _OwnLibrary(AnalysisPass):
    _name = "own_library"

    def __init__(self):
        AnalysisPass.__init__(self)

    def run_pass(self, state):
        state.library = _Library(state.targetctx.codegen(), state.func_id.func_qualname)
        state.library.enable_object_caching()
        return False


class _Compiler(CompilerBase):
    def define_pipelines(self):
        passes = DefaultPassBuilder.define_nopython_pipeline(self.state)
        passes.add_pass_after(_OwnLibrary, AnnotateTypes)
        passes.finalize()
        return [passes]


class _Loaded(JITCodeLibrary):
    """Code of the cache. What other kernels would inline of it is read when one that does so is compiled: to read it takes ten times as
    long as to load the code."""

    @classmethod
    def _unserialize(cls, codegen, state):
        name, _, (code, shared) = state
        found = cls(codegen, name)
        found.enable_object_caching()
        found._set_compiled_object(code)
        found._finalize_final_module()
        found._shared = shared
        return found

    def _get_module_for_linking(self):
        if self._shared_module is None:
            self._shared_module = parse_bitcode(self._shared)
        return self._shared_module


@cache
def folder():
    """Where compiled kernels are kept: a folder that is named by the kernels' sources.

    Numba looks only at the file of the function itself, so a change in an inlined callee of another module would go unseen; a
    folder for each state of the sources cannot be stale. It lies in the user's NUMBA_CACHE_DIR, if there is one.
    """
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    home = os.environ.get("NUMBA_CACHE_DIR")
    if not home:
        home = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "streamattn")
    return os.path.join(home, "kernels-" + digest.hexdigest()[:16])


class _Locator(InTreeCacheLocator):
    """Finds the folder of kernels without Numba's settings, which are those of the program that imports this package; also where it cannot be
    written: it may hold kernels all the same, those of an image."""

    @classmethod
    def from_function(cls, py_func, py_file):
        return cls(py_func, py_file)

    def get_cache_path(self):
        return os.path.join(folder(), self.get_suitable_cache_subpath(self._py_file))


class _CacheImpl(CompileResultCacheImpl):
    _locator_classes = [_Locator]


class _Cache(FunctionCache):
    """Loads a kernel without what Numba imports, and registers, to compile one: that took longer than the kernels themselves. Where
    files of the cache are damaged, or cannot be written, kernels are compiled, and kept for this process. `unkept`: why."""

    _impl_class = _CacheImpl
    unkept = None

    def load_overload(self, sig, target_context):
        _allocation_symbols()
        codegen = target_context.codegen()
        codegen._library_class, codegen._engine.__class__ = _Loaded, _Engine  # under the lock of compilation
        try:
            return self._load_overload(sig, target_context)
        except Exception:  # of whatever kind: it reads what is there
            with suppress(OSError):
                self.flush()
        finally:
            codegen._library_class, codegen._engine.__class__ = JITCodeLibrary, JitEngine

    def save_overload(self, sig, data):
        try:
            super().save_overload(sig, data)
        except OSError as error:
            _Cache.unkept = error


class _Engine(JitEngine):
    """Takes for granted that code of the cache defines what is asked of it: Numba knows it from lists of all symbols, which `_Loaded`
    does not make. They are of use where a kernel calls itself, as none does here."""

    def is_symbol_defined(self, name):
        return True


@cache
def _allocation_symbols():
    """Tell the linker where Numba's allocation is: code in the cache names it. Compilation sees to that itself."""
    for name, address in c_helpers.items():
        add_symbol(name if name.startswith("_") else f"NRT_{name}", address)


def kernel(cache=False, **options):
    """A decorator as `numba.njit` with what every kernel has: no interpreter lock, no exceptions of arithmetic, no allocation.

    That nothing is allocated lets Numba leave out the count of references, atomic operations for every row that is cut out
    of an array, which took more time than short rows themselves. `_nrt=True` for a kernel that does allocate.
    """
    usual = {"nogil": True, "error_model": "numpy", "_nrt": False, "pipeline_class": _Compiler, "fastmath": False}
    compiled = njit(**usual | options)

    def decorate(function):
        found = compiled(function)
        if cache and found is not function:  # Numba compiles nothing with NUMBA_DISABLE_JIT
            found._cache = _Cache(function)
        return found

    return decorate


class compilation(event.Listener):
    """A context that calls `first` before a kernel is compiled in it, and counts in `kernels` those that are: not those
    that the cache holds. `told` says so."""

    def __init__(self, first):
        self.kernels, self._first = 0, first

    def __enter__(self):
        event.register("numba:compile", self)
        return self

    def __exit__(self, *_exc):
        event.unregister("numba:compile", self)

    def on_start(self, event):
        self.kernels += 1
        if self.kernels == 1:
            self._first()

    def on_end(self, event):
        pass

    @property
    def unkept(self):
        return _Cache.unkept

    @property
    def told(self):
        why = f", and cannot keep them ({self.unkept}): set XDG_CACHE_HOME to a folder that can be written"
        return f"compiled {self.kernels} kernels{why if self.unkept else ''}"
