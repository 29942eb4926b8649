// The weights of the operator Attention, and the widths that its attributes state.
//
// N tokens, D width, H query heads, K key/value heads, W width of a head, P contextual positions.
#pragma once

#include "attention_ports.h"
#include "norm.h"
#include "places.h"
#include "product.h"

namespace adaptive {

struct AttentionShape {
  explicit AttentionShape(const Attributes& attributes);

  float eps;
  int64_t num_heads, num_kv_heads, head_dim;
  int64_t num_positions;  // P; 0 without contextual positions
  Precision precision_q, precision_kv, precision_o;
};

struct AttentionWeights {
  AttentionWeights(const Call& call, const AttentionShape& shape, int64_t tokens, int64_t dim, const Places& places);

  // Normalise a head of a token by `weight` (W,), and turn it by the token's position under RoPE.
  void turn(const AttentionShape& shape, const float* weight, int64_t token, float* head) const {
    kernels().rms_norm(head, weight, shape.eps, head, shape.head_dim);
    if (!cos) return;
    const int64_t at = positions[token] * (shape.head_dim / 2);
    kernels().rotate(head, cos.data + at, sin.data + at, shape.head_dim);
  }

  Norm before, after;  // of x, and of the output
  const float *q_norm, *k_norm;
  Matrix q, kv, o;
  Tensor<const float> cos, sin, position_embedding;
  const int64_t* positions;  // (N,)
};

}  // namespace adaptive
