"""How kernels are compiled: without allocation, and to code that does not depend on what else was compiled before.

Numba gives a kernel copies of all functions that it calls, optimised in its own context, as weak symbols. The linker then
takes for every call the first copy that this process has loaded, whichever kernel it came with. Copies differ in how they
order sums, so a run that compiled its kernels and one that found them in the cache answered differently. Here the copies
are private to their kernel, and code that was compiled a moment ago is the code that the cache holds.

A kernel that does not say how it is compiled takes that from the kernel that calls it first in a process, and the cache keeps
it so. Hence `kernel` says it for all of them: arithmetic in the order in which it is written, unless `fastmath` says more.
"""

from llvmlite.binding import Linkage
from numba import njit
from numba.core import event
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.compiler_machinery import AnalysisPass, register_pass
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


def kernel(**options):
    """A decorator as `numba.njit` with what every kernel has: no interpreter lock, no exceptions of arithmetic, no allocation.

    That nothing is allocated lets Numba leave out the count of references, atomic operations for every row that is cut out
    of an array, which took more time than short rows themselves. `_nrt=True` for a kernel that does allocate.
    """
    usual = {"nogil": True, "error_model": "numpy", "_nrt": False, "pipeline_class": _Compiler, "fastmath": False}
    return njit(**usual | options)


class compilation(event.Listener):
    """A context that calls `first` before a kernel is compiled in it, and counts in `kernels` those that are: not those
    that the cache holds."""

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
