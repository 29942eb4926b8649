#include "attention_weights.h"

#include "../kernels/attend_task.h"

namespace adaptive {

namespace {

using Ports = AttentionPorts;
constexpr RotaryPorts kRotaryPorts{Ports::positions, Ports::cos, Ports::sin};

}  // namespace

AttentionShape::AttentionShape(const Attributes& attributes)
    : eps(attributes.real("eps", 0, 1)),
      num_heads(attributes.integer("num_heads", 1, kMostWidth)),
      num_kv_heads(attributes.integer("num_kv_heads", 1, num_heads)),
      head_dim(attributes.integer("head_dim", 1, kMostWidth / num_heads)),
      rotated(rotated_of(attributes, head_dim)),
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
}

AttentionWeights::AttentionWeights(const Call& call, const AttentionShape& shape, int64_t tokens, int64_t dim,
                                   const Places& places)
    : before(call, Ports::norm, Ports::norm_bias, dim, shape.eps),
      after(call, Ports::post_norm, Ports::post_norm_bias, dim, shape.eps),
      rotary(call, kRotaryPorts, shape.rotated, tokens) {
  const int64_t inner = shape.num_heads * shape.head_dim, groups = shape.num_kv_heads * shape.head_dim;
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
  const int64_t blocks = padded_positions(shape.num_positions) / kKeyBlock;
  position_embedding = call.input<float>(Ports::position_embedding, {blocks, shape.head_dim, kKeyBlock});
  rotary.check_holds(call, kRotaryPorts, places.writing, places.num_writing);
  if ((shape.num_positions > 0) != bool(position_embedding)) {
    call.fail_input(Ports::position_embedding,
                    (shape.num_positions > 0 ? "is missing" : "is given") +
                        (", but contextual_positions is " + std::to_string(shape.num_positions)));
  }
}

}  // namespace adaptive
