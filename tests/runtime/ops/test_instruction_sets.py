"""Every instruction set of this machine gives the same bits in the operators of attention and of recurrent mixers."""

from support.operators.each_kernel import digests_of_each_kernel
from support.operators.our_library import needs_library


@needs_library
def test_every_instruction_set_has_the_same_bits() -> None:
    first, *others = digests_of_each_kernel("runtime/ops/test_attention.py", "runtime/ops/test_mixers.py").values()
    for other in others:
        assert other == first
