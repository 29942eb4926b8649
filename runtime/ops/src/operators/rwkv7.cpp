// RWKV-7 of one layer, from its norms to its residual, with the states that it writes.
//
// R tokens of a block, D width, H heads, W width of a head, Q width of the low-rank matrices. Mirrors
// `export/model/mixers/rwkv7.py`. Attributes besides those of every mixer: rank, Q.

#include <cmath>

#include "../parts/mixer.h"

namespace adaptive {

namespace {

class Rwkv7 : MixerPorts {
 public:
  static constexpr const char* kName = "Rwkv7";
  // clang-format off
  enum Input {
    shift = own, r, k, v, decay_in, decay_out, decay_bias, rate_in, rate_out, rate_bias, gate_in, gate_out,
    removal_key, key_rate, bonus, head_norm, head_norm_bias
  };
  // clang-format on
  static constexpr auto kInputs = with_own(
      Port{"shift", Element::float32},           // (6, D), share of the previous token in r, w, k, v, a, g
      Port{"r", Element::uint8},                 // packed (H W, D)
      Port{"k", Element::uint8},                 // packed (H W, D)
      Port{"v", Element::uint8},                 // packed (H W, D)
      Port{"decay_in", Element::uint8},          // packed in fp32 (Q, D)
      Port{"decay_out", Element::uint8},         // packed in fp32 (H W, Q)
      Port{"decay_bias", Element::float32},      // (H W,)
      Port{"rate_in", Element::uint8},           // packed in fp32 (Q, D), of the rate a by which a key is replaced
      Port{"rate_out", Element::uint8},          // packed in fp32 (H W, Q)
      Port{"rate_bias", Element::float32},       // (H W,)
      Port{"gate_in", Element::uint8},           // packed in fp32 (Q, D)
      Port{"gate_out", Element::uint8},          // packed in fp32 (H W, Q)
      Port{"removal_key", Element::float32},     // (H W,), k_k
      Port{"key_rate", Element::float32},        // (H W,), k_a
      Port{"bonus", Element::float32},           // (H W,), r_k
      Port{"head_norm", Element::float32},       // (H W,)
      Port{"head_norm_bias", Element::float32}); // (H W,)
  using MixerPorts::kOutputs;

  explicit Rwkv7(const Attributes& attributes)
      : shape_(attributes), rank_(attributes.integer("rank", 1, kMostWidth)) {}

  void run(Call& call) const {
    Scratch scratch;
    MixerPass pass(call, shape_, any, 1, scratch);
    const Weights weights(call, shape_, rank_, pass.dim);
    pass.run([&](const MixerPass::Block& block) { compute(pass, weights, block); });
  }

 private:
  enum Shifted { of_r, of_w, of_k, of_v, of_a, of_g, kShifted };
  static constexpr float kDecay = -0.6065306597f;  // -e^-0.5: the fastest decay of the state is e^kDecay
  static constexpr float kHeadEps = 64e-5f;
  static constexpr float kLeastNorm = 1e-12f;

  struct Weights {
    Weights(const Call& call, const MixerShape& shape, int64_t rank, int64_t dim) {
      const int64_t inner = shape.inner();
      const auto large = [&](size_t port) { return matrix(call, port, shape.precision, inner, dim); };
      const auto low = [&](size_t port) { return matrix(call, port, Precision::fp32, rank, dim); };
      const auto high = [&](size_t port) { return matrix(call, port, Precision::fp32, inner, rank); };
      const auto vector = [&](size_t port) { return call.input<float>(port, {inner}).data; };
      shift = call.input<float>(Rwkv7::shift, {kShifted, dim}).data;
      r = large(Rwkv7::r), k = large(Rwkv7::k), v = large(Rwkv7::v);
      decay_in = low(Rwkv7::decay_in), rate_in = low(Rwkv7::rate_in), gate_in = low(Rwkv7::gate_in);
      decay_out = high(Rwkv7::decay_out), rate_out = high(Rwkv7::rate_out), gate_out = high(Rwkv7::gate_out);
      decay_bias = vector(Rwkv7::decay_bias), rate_bias = vector(Rwkv7::rate_bias);
      removal_key = vector(Rwkv7::removal_key), key_rate = vector(Rwkv7::key_rate), bonus = vector(Rwkv7::bonus);
      head_norm = vector(Rwkv7::head_norm), head_norm_bias = vector(Rwkv7::head_norm_bias);
    }

    const float* shift;
    Matrix r, k, v, decay_in, decay_out, rate_in, rate_out, gate_in, gate_out;
    const float *decay_bias, *rate_bias, *removal_key, *key_rate, *bonus, *head_norm, *head_norm_bias;
  };

  void compute(const MixerPass& pass, const Weights& weights, const MixerPass::Block& block) const {
    Scratch scratch;
    const int64_t width = shape_.head_dim, inner = shape_.inner(), dim = pass.dim, count = block.count;
    const bool integers = is_integer(shape_.precision);
    const Rows normed(scratch, count, dim, false);
    pass.normalize(block, normed);
    const auto shifted = [&](bool quantised) { return Rows(scratch, count, dim, quantised); };
    const Rows inputs[kShifted] = {shifted(integers), shifted(false), shifted(integers),
                                   shifted(integers), shifted(false), shifted(false)};
    shift_tokens(pass, weights, block, normed, inputs);

    const auto grid = [&] { return scratch.take<float>(count * inner); };
    float *receptances = grid(), *keys = grid(), *values = grid(), *decays = grid(), *rates = grid(), *gates = grid();
    const Rows decay_low(scratch, count, rank_, false), rate_low(scratch, count, rank_, false);
    const Rows gate_low(scratch, count, rank_, false);
    pass.multiply_all({{weights.r, inputs[of_r], receptances, inner},
                       {weights.k, inputs[of_k], keys, inner},
                       {weights.v, inputs[of_v], values, inner},
                       {weights.decay_in, inputs[of_w], decay_low.values(0), decay_low.stride()},
                       {weights.rate_in, inputs[of_a], rate_low.values(0), rate_low.stride()},
                       {weights.gate_in, inputs[of_g], gate_low.values(0), gate_low.stride()}});
    pass.call.parallel(count, count * rank_ * 64, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        kernels().softcap(decay_low.values(i), 1.0f, rank_);  // tanh
        kernels().sigmoid(gate_low.values(i), rank_);
      }
    });
    pass.multiply_all({{weights.decay_out, decay_low, decays, inner},
                       {weights.rate_out, rate_low, rates, inner},
                       {weights.gate_out, gate_low, gates, inner}});
    pass.call.parallel(count, count * inner * 64, [&](int64_t first, int64_t last) {
      float* decay = decays + first * inner;
      float* rate = rates + first * inner;
      for (int64_t i = first; i < last; ++i, decay += inner, rate += inner) {
        kernels().add_scaled(decay, weights.decay_bias, 1.0f, inner);
        kernels().sigmoid(decay, inner);
        kernels().exponential(decay, kDecay, inner);
        kernels().add_scaled(rate, weights.rate_bias, 1.0f, inner);
        kernels().sigmoid(rate, inner);
      }
    });

    const Rows mixed(scratch, count, inner, integers);
    pass.recur(
        block, true,
        [&](int64_t i, int64_t head, const HeadVectors& vectors, Step& step) {
          const int64_t of_head = head * width, at = i * inner + of_head;
          std::copy_n(receptances + at, width, vectors.r);
          std::copy_n(decays + at, width, vectors.w);
          float* key = keys + at;
          const float* rate = rates + at;
          for (int64_t j = 0; j < width; ++j) vectors.a[j] = key[j] * weights.removal_key[of_head + j];
          const float norm = std::max(std::sqrt(kernels().dot(vectors.a, vectors.a, width)), kLeastNorm);
          for (int64_t j = 0; j < width; ++j) {
            const float removed = vectors.a[j] / norm;
            vectors.a[j] = -removed;
            vectors.b[j] = rate[j] * removed;
            key[j] *= 1.0f + (rate[j] - 1.0f) * weights.key_rate[of_head + j];
            vectors.k[j] = key[j];
          }
          step.v = values + at;
          step.o = mixed.values(i) + of_head;
        },
        [&](int64_t i, int64_t head) {
          const int64_t of_head = head * width, at = i * inner + of_head;
          float *out = mixed.values(i) + of_head, *key = keys + at;
          kernels().layer_norm(out, weights.head_norm + of_head, weights.head_norm_bias + of_head, kHeadEps, out,
                               width);
          for (int64_t j = 0; j < width; ++j) key[j] *= weights.bonus[of_head + j];
          kernels().add_scaled(out, values + at, kernels().dot(receptances + at, key, width), width);
          for (int64_t j = 0; j < width; ++j) out[j] *= gates[at + j];
        });
    pass.finish(block, mixed);
  }

  // Mix each normed token with the one of its sequence that ran the layer before it, once for each of six readers, and
  // keep the last one of each sequence.
  static void shift_tokens(const MixerPass& pass, const Weights& weights, const MixerPass::Block& block,
                           const Rows& normed, const Rows* inputs) {
    Scratch scratch;
    const int64_t dim = pass.dim;
    const Sequences& sequences = block.sequences;
    auto** previous = scratch.take<const float*>(block.count);
    for (int64_t s = 0; s < sequences.count; ++s) {
      const Sequence& sequence = sequences.list[s];
      previous[sequences.order[sequence.first]] = pass.conv(sequence.slot);
      for (int64_t j = sequence.first + 1; j < sequence.first + sequence.count; ++j) {
        previous[sequences.order[j]] = normed.values(sequences.order[j - 1]);
      }
    }
    pass.call.parallel(block.count, block.count * dim * 64, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        const float *x = normed.values(i), *before = previous[i];
        for (int64_t c = 0; c < kShifted; ++c) {
          const float* share = weights.shift + c * dim;
          float* out = inputs[c].values(i);
          for (int64_t j = 0; j < dim; ++j) out[j] = x[j] + share[j] * (before[j] - x[j]);
          inputs[c].quantize(i);
        }
      }
    });
    for (int64_t s = 0; s < sequences.count; ++s) {
      const Sequence& sequence = sequences.list[s];
      const int64_t last = sequences.order[sequence.first + sequence.count - 1];
      std::copy_n(normed.values(last), dim, pass.conv(sequence.slot));
    }
  }

  MixerShape shape_;
  int64_t rank_;
};

const Registration<Rwkv7> registration;

}  // namespace

}  // namespace adaptive
