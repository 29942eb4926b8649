// The weights of the operator Attention, and the widths that its attributes state.
//
// N tokens, D width, H query heads, K key/value heads, W width of a head, P contextual positions.
#pragma once

#include "attention_ports.h"
#include "norm.h"
#include "places.h"
#include "product.h"
#include "rotary.h"

namespace adaptive {

enum class QKNorm : int64_t { none = 0, head = 1, full = 2 };

struct AttentionShape {
  explicit AttentionShape(const Attributes& attributes);

  float eps;
  int64_t num_heads, num_kv_heads, head_dim;
  int64_t rotated;  // components of a head that RoPE turns; 0 without RoPE
  QKNorm qk_norm;
  float softcap;  // 0: none
  int64_t num_positions;  // P; 0 without contextual positions
  Precision precision_q, precision_kv, precision_o;
};

struct AttentionWeights {
  AttentionWeights(const Call& call, const AttentionShape& shape, int64_t tokens, int64_t dim, const Places& places);

  // Normalise a head of a token by `weight` (W,) where each is normed by itself, and turn it by the token's position
  // under RoPE.
  void turn(const AttentionShape& shape, const float* weight, int64_t token, float* head) const {
    if (shape.qk_norm == QKNorm::head) kernels().rms_norm(head, weight, shape.eps, head, shape.head_dim);
    rotary.turn(token, head);
  }

  Norm before, after;  // of x, and of the output
  const float *q_norm, *k_norm, *q_bias, *kv_bias, *o_bias;
  Matrix q, kv, o;
  Tensor<const float> position_embedding;
  Rotary rotary;
};

}  // namespace adaptive
