"""Sixteen numbers at a time in LLVM's own vectors.

What its vectoriser makes of a loop over a short row is mostly questions whether arrays overlap and how many numbers are left:
four fifths of the time that it took to take 64 numbers of six bits apart.
"""

from llvmlite import ir
from numba import types
from numba.core.errors import TypingError
from numba.core.utils import pysignature
from numba.extending import intrinsic

WIDE = 16
_BYTE, _WORD, _LONG = ir.IntType(8), ir.IntType(32), ir.IntType(64)


class Lanes:
    """Builds code for vectors of WIDE numbers: of bytes as int32, and of floats as they are."""

    def __init__(self, builder: ir.IRBuilder):
        self.builder = builder

    ints = ir.VectorType(_WORD, WIDE)

    def _place(self, pointer, *offsets):
        for offset in offsets:
            offset = offset if isinstance(offset, ir.Value) else ir.Constant(_LONG, offset)
            pointer = self.builder.gep(pointer, [offset])
        kind = pointer.type.pointee
        return self.builder.bitcast(pointer, ir.VectorType(kind, WIDE).as_pointer()), kind

    def load(self, pointer, *offsets):
        """The numbers from the sum of the offsets on."""
        place, kind = self._place(pointer, *offsets)
        found = self.builder.load(place, align=1)
        return self.builder.zext(found, self.ints) if kind == _BYTE else found

    def store(self, numbers, pointer, *offsets):
        """Put floats there, in the precision of what lies there."""
        place, _ = self._place(pointer, *offsets)
        self.builder.store(self.wide(numbers, place.type.pointee), place, align=1)

    def wide(self, numbers, kind):
        """Floats in a precision that is no less."""
        return numbers if numbers.type == kind else self.builder.fpext(numbers, kind)

    def same(self, number):
        """A vector of one number, and of the Python int `number` as int32."""
        if isinstance(number, int):
            return ir.Constant(self.ints, [number] * WIDE)
        kind = ir.VectorType(number.type, WIDE)
        first = self.builder.insert_element(ir.Constant(kind, ir.Undefined), number, ir.Constant(_WORD, 0))
        return self.shuffled(first, [0] * WIDE)

    def shuffled(self, numbers, order):
        """The numbers in another order."""
        nothing = ir.Constant(numbers.type, ir.Undefined)
        return self.builder.shuffle_vector(numbers, nothing, ir.Constant(self.ints, order))

    def times(self, levels, scale):
        """Whole numbers as float32 times a number."""
        floats = self.builder.sitofp(levels, ir.VectorType(ir.FloatType(), WIDE))
        return self.builder.fmul(floats, self.same(scale))


def contiguous(*arrays):
    """Whether that is known of the types of all these arrays: lanes are for those."""
    return all(array.layout == "C" for array in arrays)


def emitted(generate):
    """A function for kernels whose code is what generate(lanes, *arguments) builds: of a contiguous array it is given a pointer to
    the first number."""

    def call(typing, *kinds):
        kinds = [types.unliteral(kind) for kind in kinds]
        if not contiguous(*(kind for kind in kinds if isinstance(kind, types.Array))):
            raise TypingError(f"contiguous arrays expected, found {kinds}")

        def code(context, builder, _, given):
            found = [
                context.make_array(kind)(context, builder, value).data if isinstance(kind, types.Array) else value
                for kind, value in zip(kinds, given, strict=True)
            ]
            generate(Lanes(builder), *found)
            return context.get_dummy_value()

        return types.void(*kinds), code

    call.__signature__ = pysignature(generate)  # Numba asks for names
    return intrinsic(call)
