// Rotary positions: the angles of the places in the text, and the components of a head that are turned by them.
//
// B batch, T time, N = B*T tokens.
#pragma once

#include <string>

#include "../kernels/kernels.h"
#include "places.h"

namespace adaptive {

struct RotaryPorts {
  size_t positions, cos, sin;  // indices of inputs
};

class Rotary {
 public:
  // Read positions (B, T), cos and sin (context, rotated / 2); `rotated` 0 is without both.
  Rotary(const Call& call, const RotaryPorts& ports, int64_t rotated, int64_t tokens);

  // Throw an error if one of these tokens has a position without angles.
  void check_holds(const Call& call, const RotaryPorts& ports, const int32_t* tokens, int64_t count) const;

  // Turn a head of a token.
  void turn(int64_t token, float* head) const {
    if (rotated_ == 0) return;
    const int64_t at = positions_[token] * (rotated_ / 2);
    kernels().rotate(head, cos_.data + at, sin_.data + at, rotated_);
  }

 private:
  int64_t rotated_;
  Tensor<const float> cos_, sin_;
  const int64_t* positions_;  // (N,)
};

// Read the attribute `rotated` of heads of a width.
int64_t rotated_of(const Attributes& attributes, int64_t head_dim);

}  // namespace adaptive
