// Outputs that are written in place of an input: keys, values and states of recurrent mixers.
#pragma once

#include "../binding/operator.h"

namespace adaptive {

struct InPlace {
  size_t past, present;  // indices of the input and of the output
};

// Return the memory of the output, of the given shape. Where it is another buffer than that of the input, copy the
// input first.
inline uint8_t* present(const Call& call, const InPlace& ports, std::initializer_list<int64_t> shape, const void* past,
                        int64_t bytes) {
  const Tensor<void> output = call.output<void>(ports.present, shape);
  if (!output) call.fail_input(ports.past, "is given, but the node does not name the output that replaces it");
  if (output.data != past && bytes > 0) std::memcpy(output.data, past, static_cast<size_t>(bytes));
  return static_cast<uint8_t*>(output.data);
}

}  // namespace adaptive
