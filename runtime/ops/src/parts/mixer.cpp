#include "mixer.h"

namespace adaptive {

using Ports = MixerPorts;

MixerShape::MixerShape(const Attributes& attributes)
    : layer(attributes.integer("layer", 0, kMostWidth)),
      eps(attributes.real("eps", 0, 1)),
      num_heads(attributes.integer("num_heads", 1, kMostWidth)),
      head_dim(attributes.integer("head_dim", 1, kMostWidth / num_heads)),
      policy(static_cast<Policy>(attributes.integer("policy", 0, 2))),
      precision(precision_of(attributes, "precision")) {}

MixerPass::MixerPass(const Call& call, const MixerShape& shape, int64_t channels, int64_t kept, Scratch& scratch)
    : call(call),
      shape_(shape),
      kept_(kept),
      x_(call.input<float>(Ports::x, {any, any})),
      before_(call, Ports::norm, Ports::norm_bias, x_.shape[1], shape.eps),
      after_(call, Ports::post_norm, Ports::post_norm_bias, x_.shape[1], shape.eps) {
  tokens = x_.shape[0];
  dim = x_.shape[1];
  channels_ = channels == any ? dim : channels;
  places = places_of(call, {Ports::runs, Ports::slots, Ports::lengths}, tokens, shape.layer, shape.policy, scratch);
  o_ = matrix(call, Ports::o, shape.precision, dim, shape.inner());
  past_state_ = call.input<float>(Ports::past_state, {places.num_slots, shape.num_heads, shape.head_dim, shape.head_dim});
  past_conv_ = call.input<float>(Ports::past_conv, {places.num_slots, channels_, kept});
  if (bool(past_conv_) != (kept > 0)) {
    call.fail_input(Ports::past_conv, past_conv_ ? "is given, but the mixer looks back at no inputs" : "is missing");
  }
}

void MixerPass::begin() {
  h_ = call.output<float>(Ports::h, {tokens, dim}).data;
  const auto held = call.output<int64_t>(Ports::new_lengths, {1, places.num_slots});
  for (int64_t s = 0; s < places.num_slots; ++s) held.data[s] = places.newest[s] + 1;
  state_ = reinterpret_cast<float*>(present(call, {Ports::past_state, Ports::present_state},
                                            {places.num_slots, shape_.num_heads, shape_.head_dim, shape_.head_dim},
                                            past_state_.data, past_state_.size() * 4));
  if (past_conv_) {
    conv_state_ = reinterpret_cast<float*>(present(call, {Ports::past_conv, Ports::present_conv},
                                                   {places.num_slots, channels_, kept_}, past_conv_.data,
                                                   past_conv_.size() * 4));
  }
  for (int64_t row = 0, next = 0; row < tokens; ++row) {
    if (next < places.num_running && places.running[next] == row) {
      ++next;
    } else {
      std::copy_n(x_.data + row * dim, dim, h_ + row * dim);
    }
  }
}

void MixerPass::normalize(const Block& block, const Rows& into) const {
  call.parallel(block.count, block.count * dim * 16, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      before_.apply(x_.data + block.tokens[i] * dim, into.values(i));
      into.quantize(i);
    }
  });
}

void MixerPass::multiply_all(std::initializer_list<Product> products) const {
  Scratch scratch;
  int64_t groups = 0, cost = 0, number = 0;
  auto** rows = scratch.take<const Row**>(static_cast<int64_t>(products.size()));
  auto** into = scratch.take<float**>(static_cast<int64_t>(products.size()));
  for (const Product& product : products) {
    const int64_t count = product.rows.count();
    rows[number] = scratch.take<const Row*>(count);
    into[number] = scratch.take<float*>(count);
    for (int64_t i = 0; i < count; ++i) {
      rows[number][i] = product.rows.row(i);
      into[number][i] = product.out + i * product.stride;
    }
    groups += product.matrix.groups();
    cost += product.matrix.bytes() * cost_of_rows(count);
    ++number;
  }
  call.parallel(groups, cost, [&](int64_t first, int64_t last) {
    int64_t before = 0, n = 0;
    for (const Product& product : products) {
      const int64_t own = product.matrix.groups();
      multiply(product.matrix, rows[n], product.rows.count(), into[n], std::max(first - before, int64_t{0}),
               std::min(last - before, own));
      before += own;
      ++n;
    }
  });
}

void MixerPass::convolve(const Block& block, const Convolution& convolution, float* rows, int64_t stride) const {
  Scratch scratch;
  auto** pointers = scratch.take<float*>(block.count);
  for (int64_t i = 0; i < block.count; ++i) pointers[i] = rows + block.sequences.order[i] * stride;
  const int64_t registers = padded_to_lane(channels_) / kLane;
  call.parallel(registers, block.count * channels_ * 16, [&](int64_t first, int64_t last) {
    for (int64_t s = 0; s < block.sequences.count; ++s) {
      const Sequence& sequence = block.sequences.list[s];
      float* state = kept_ > 0 ? conv(sequence.slot) : nullptr;
      kernels().convolve({convolution.weight, convolution.bias, state, pointers + sequence.first, sequence.count,
                          channels_, convolution.width},
                         first * kLane, std::min(last * kLane, channels_));
    }
  });
}

void MixerPass::finish(const Block& block, const Rows& mixed) const {
  Scratch scratch;
  call.parallel(block.count, block.count * shape_.inner() * 16, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) mixed.quantize(i);
  });
  auto** rows = scratch.take<const Row*>(block.count);
  auto** into = scratch.take<float*>(block.count);
  for (int64_t i = 0; i < block.count; ++i) {
    rows[i] = mixed.row(i);
    into[i] = h_ + block.tokens[i] * dim;
  }
  const auto add_residual = [&](int64_t i, int64_t begin, int64_t end) {
    const float* residual = x_.data + block.tokens[i] * dim;
    for (int64_t j = begin; j < end; ++j) into[i][j] += residual[j];
  };
  call.parallel(o_.groups(), o_.bytes() * cost_of_rows(block.count), [&](int64_t first, int64_t last) {
    multiply(o_, rows, block.count, into, first, last);
    if (after_) return;
    for (int64_t i = 0; i < block.count; ++i) add_residual(i, first * kGroup, std::min(last * kGroup, dim));
  });
  if (!after_) return;
  call.parallel(block.count, block.count * dim * 16, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      after_.apply(into[i], into[i]);
      add_residual(i, 0, dim);
    }
  });
}

}  // namespace adaptive
