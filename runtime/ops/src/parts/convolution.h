// The weights of the short convolution of a recurrent mixer.
//
// C channels, K tokens that it sees.
#pragma once

#include "../binding/operator.h"
#include "../kernels/recur_task.h"

namespace adaptive {

constexpr size_t kNoPort = static_cast<size_t>(-1);

struct ConvolutionPorts {
  size_t weight, bias = kNoPort;  // indices of inputs; a convolution need not have a bias
};

struct Convolution {
  // Read weight (K, C) and bias (C,), which are absent where K is 1.
  Convolution(const Call& call, const ConvolutionPorts& ports, int64_t channels, int64_t width);

  const float *weight, *bias;
  int64_t channels, width;
};

}  // namespace adaptive
