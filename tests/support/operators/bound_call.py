"""One call of an operator whose memory (caches or states) is written in place."""

from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

Array = NDArray[Any]


def call(
    run: ort.InferenceSession, inputs: dict[str, Array], memory: dict[str, Array], *, in_place: bool
) -> tuple[Array, Array, dict[str, Array]]:
    """Run a model of one node; `inputs` holds the memory as `past_NAME`.

    Returns:
        h, new_lengths and the memory afterwards: the same arrays where it is written in place.
    """
    inputs = {key: np.ascontiguousarray(array) for key, array in inputs.items()}
    binding = run.io_binding()
    values = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in inputs.items()}
    for name, value in values.items():
        binding.bind_ortvalue_input(name, value)
    binding.bind_output("h")
    binding.bind_output("new_lengths")
    for name in memory:
        if in_place:
            binding.bind_ortvalue_output(f"present_{name}", values[f"past_{name}"])
        else:
            binding.bind_output(f"present_{name}")
    run.run_with_iobinding(binding)
    # numpy() may refer to its memory
    h, new_lengths, *presents = [value.numpy().copy() for value in binding.get_outputs()]
    return h, new_lengths, memory if in_place else dict(zip(memory, presents, strict=True))
