#include "attention_weights.h"

#include "../kernels/attend_task.h"

namespace adaptive {

using Ports = AttentionPorts;

AttentionShape::AttentionShape(const Attributes& attributes)
    : eps(attributes.real("eps", 0, 1)),
      num_heads(attributes.integer("num_heads", 1, kMostWidth)),
      num_kv_heads(attributes.integer("num_kv_heads", 1, num_heads)),
      head_dim(attributes.integer("head_dim", 1, kMostWidth / num_heads)),
      rotated(attributes.integer("rotated", 0, head_dim)),
      qk_norm(static_cast<QKNorm>(attributes.integer("qk_norm", 0, 2))),
      softcap(attributes.real("softcap", 0, 1e6f)),
      num_positions(attributes.integer("contextual_positions", 0, kMostWidth)),
      precision_q(precision_of(attributes, "precision_q")),
      precision_kv(precision_of(attributes, "precision_kv")),
      precision_o(precision_of(attributes, "precision_o")) {
  if (num_heads % num_kv_heads != 0) {
    throw Failure(attributes.where() + ": num_heads is " + std::to_string(num_heads) +
                  ", expected a multiple of num_kv_heads, " + std::to_string(num_kv_heads));
  }
  if (rotated % 2 != 0) {
    throw Failure(attributes.where() + ": rotated is " + std::to_string(rotated) + ", expected an even number");
  }
}

AttentionWeights::AttentionWeights(const Call& call, const AttentionShape& shape, int64_t tokens, int64_t dim,
                                   const Places& places)
    : before(call, Ports::norm, Ports::norm_bias, dim, shape.eps),
      after(call, Ports::post_norm, Ports::post_norm_bias, dim, shape.eps) {
  const int64_t inner = shape.num_heads * shape.head_dim, groups = shape.num_kv_heads * shape.head_dim;
  const int64_t half = shape.rotated > 0 ? shape.rotated / 2 : any;  // without RoPE the tables are refused below
  const bool together = shape.qk_norm == QKNorm::full;
  q_norm = call.input<float>(Ports::q_norm, {together ? inner : shape.head_dim}).data;
  k_norm = call.input<float>(Ports::k_norm, {together ? groups : shape.head_dim}).data;
  for (const size_t port : {Ports::q_norm, Ports::k_norm}) {
    const bool given = (port == Ports::q_norm ? q_norm : k_norm) != nullptr;
    if (given != (shape.qk_norm != QKNorm::none)) {
      call.fail_input(port, std::string(given ? "is given" : "is missing") + ", but qk_norm is " +
                                std::to_string(static_cast<int64_t>(shape.qk_norm)));
    }
  }
  q = matrix(call, Ports::q, shape.precision_q, inner, dim);
  kv = matrix(call, Ports::kv, shape.precision_kv, 2 * groups, dim);
  o = matrix(call, Ports::o, shape.precision_o, dim, inner);
  q_bias = call.input<float>(Ports::q_bias, {inner}).data;
  kv_bias = call.input<float>(Ports::kv_bias, {2 * groups}).data;
  o_bias = call.input<float>(Ports::o_bias, {dim}).data;
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
  if (bool(cos) != (shape.rotated > 0)) {
    call.fail_input(Ports::cos, std::string(cos ? "is given" : "is missing") + ", but rotated is " +
                                    std::to_string(shape.rotated));
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
