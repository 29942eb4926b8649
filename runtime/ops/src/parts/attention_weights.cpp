#include "attention_weights.h"

#include "../kernels/attend_task.h"

namespace adaptive {

using Ports = AttentionPorts;

AttentionShape::AttentionShape(const Attributes& attributes)
    : eps(attributes.real("eps", 0, 1)),
      num_heads(attributes.integer("num_heads", 1, kMostWidth)),
      num_kv_heads(attributes.integer("num_kv_heads", 1, num_heads)),
      head_dim(attributes.integer("head_dim", 1, kMostWidth / num_heads)),
      num_positions(attributes.integer("contextual_positions", 0, kMostWidth)),
      precision_q(precision_of(attributes, "precision_q")),
      precision_kv(precision_of(attributes, "precision_kv")),
      precision_o(precision_of(attributes, "precision_o")) {
  if (num_heads % num_kv_heads != 0) {
    throw Failure(attributes.where() + ": num_heads is " + std::to_string(num_heads) +
                  ", expected a multiple of num_kv_heads, " + std::to_string(num_kv_heads));
  }
}

AttentionWeights::AttentionWeights(const Call& call, const AttentionShape& shape, int64_t tokens, int64_t dim,
                                   const Places& places)
    : before(call, Ports::norm, Ports::norm_bias, dim, shape.eps),
      after(call, Ports::post_norm, Ports::post_norm_bias, dim, shape.eps) {
  const int64_t inner = shape.num_heads * shape.head_dim, half = shape.head_dim / 2;
  q_norm = call.input<float>(Ports::q_norm, {shape.head_dim}).data;
  k_norm = call.input<float>(Ports::k_norm, {shape.head_dim}).data;
  q = matrix(call, Ports::q, shape.precision_q, inner, dim);
  kv = matrix(call, Ports::kv, shape.precision_kv, 2 * shape.num_kv_heads * shape.head_dim, dim);
  o = matrix(call, Ports::o, shape.precision_o, dim, inner);
  cos = call.input<float>(Ports::cos, {any, half});
  sin = call.input<float>(Ports::sin, {any, half});
  const int64_t blocks = padded_positions(shape.num_positions) / kKeyBlock;
  position_embedding = call.input<float>(Ports::position_embedding, {blocks, shape.head_dim, kKeyBlock});
  const auto at = call.input<int64_t>(Ports::positions, {any, any});
  if (at.size() != tokens) {
    call.fail_input(Ports::positions, "has " + std::to_string(at.size()) + " tokens, but x has " +
                                          std::to_string(tokens) + " rows");
  }
  positions = at.data;
  if (bool(cos) != bool(sin) || (cos && cos.shape[0] != sin.shape[0])) {
    call.fail_input(Ports::sin, "does not match input cos");
  }
  if (cos && shape.head_dim % 2 != 0) {
    call.fail_input(Ports::cos, "turns pairs of components, but head_dim is " + std::to_string(shape.head_dim));
  }
  for (int64_t j = 0; cos && j < places.num_writing; ++j) {
    const int64_t position = positions[places.writing[j]];
    if (position < 0 || position >= cos.shape[0]) {
      call.fail_input(Ports::positions, "is " + std::to_string(position) + " for row " +
                                            std::to_string(places.writing[j]) + ", expected 0 to " +
                                            std::to_string(cos.shape[0] - 1));
    }
  }
  if ((shape.num_positions > 0) != bool(position_embedding)) {
    call.fail_input(Ports::position_embedding,
                    (shape.num_positions > 0 ? "is missing" : "is given") +
                        (", but contextual_positions is " + std::to_string(shape.num_positions)));
  }
}

}  // namespace adaptive
