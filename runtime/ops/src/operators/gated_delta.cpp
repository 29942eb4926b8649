// The gated delta rule of one layer, from its norms to its residual, with the states that it writes.
//
// R tokens of a block, D width, H heads, W width of a head, K tokens that the convolution sees. Mirrors
// `export/model/mixers/gated_delta.py`. Attributes besides those of every mixer: conv, K.

#include <cmath>

#include "../parts/convolution.h"
#include "../parts/gates.h"
#include "../parts/mixer.h"

namespace adaptive {

namespace {

class GatedDelta : MixerPorts {
 public:
  static constexpr const char* kName = "GatedDelta";
  enum Input { q = own, k, v, gate, conv_weight, forget, write, dt_bias, rate, head_norm };
  static constexpr auto kInputs = with_own(
      Port{"q", Element::uint8},                        // packed (H W, D)
      Port{"k", Element::uint8},                        // packed (H W, D)
      Port{"v", Element::uint8},                        // packed (H W, D)
      Port{"gate", Element::uint8},                     // packed (H W, D)
      Port{"conv_weight", Element::float32, optional},  // (K, 3 H W), the oldest token first; absent where K is 1
      Port{"forget", Element::float32},                 // (H, D), of the share of the state that a head keeps
      Port{"write", Element::float32},                  // (H, D), of the share of a value that it writes
      Port{"dt_bias", Element::float32},                // (H,)
      Port{"rate", Element::float32},                   // (H,), by which a head forgets
      Port{"head_norm", Element::float32});             // (W,)
  using MixerPorts::kOutputs;

  explicit GatedDelta(const Attributes& attributes)
      : shape_(attributes), conv_(attributes.integer("conv", 1, kMostConvolved)) {}

  void run(Call& call) const {
    Scratch scratch;
    const int64_t width = shape_.head_dim, heads = shape_.num_heads, inner = shape_.inner();
    MixerPass pass(call, shape_, 3 * inner, conv_ - 1, scratch);
    const auto large = [&](size_t index) { return matrix(call, index, shape_.precision, inner, pass.dim); };
    const Matrix of_q = large(q), of_k = large(k), of_v = large(v), of_gate = large(gate);
    const Convolution convolution(call, {conv_weight}, 3 * inner, conv_);
    const auto forgets = call.input<float>(forget, {heads, pass.dim});
    const auto writes = call.input<float>(write, {heads, pass.dim});
    const auto offset = call.input<float>(dt_bias, {heads}), rates = call.input<float>(rate, {heads});
    const auto norm_weight = call.input<float>(head_norm, {width});
    const float scale = 1.0f / std::sqrt(static_cast<float>(width));

    pass.run([&](const MixerPass::Block& block) {
      Scratch own;
      const Rows normed(own, block.count, pass.dim, is_integer(shape_.precision));
      pass.normalize(block, normed);
      float* projected = own.take<float>(block.count * 3 * inner);
      float* gates = own.take<float>(block.count * inner);
      pass.multiply_all({{of_q, normed, projected, 3 * inner},
                         {of_k, normed, projected + inner, 3 * inner},
                         {of_v, normed, projected + 2 * inner, 3 * inner},
                         {of_gate, normed, gates, inner}});
      pass.convolve(block, convolution, projected, 3 * inner);
      const Rows mixed(own, block.count, inner, is_integer(shape_.precision));
      pass.recur(
          block, true,
          [&](int64_t i, int64_t head, const HeadVectors& vectors, Step& step) {
            const float *x = normed.values(i), *query = projected + i * 3 * inner + head * width;
            const float kept = kept_share(
                rates.data[head],
                kernels().dot(x, forgets.data + head * pass.dim, pass.dim) + offset.data[head]);
            const float written = sigmoid(kernels().dot(x, writes.data + head * pass.dim, pass.dim));
            std::fill_n(vectors.w, width, kept);
            normalize(query, scale, vectors.r);
            normalize(query + inner, 1.0f, vectors.k);
            const float removed = -kept * written;
            for (int64_t j = 0; j < width; ++j) vectors.a[j] = removed * vectors.k[j];
            for (int64_t j = 0; j < width; ++j) vectors.v[j] = written * query[2 * inner + j];
            step.b = vectors.k;
            step.o = mixed.values(i) + head * width;
          },
          [&](int64_t i, int64_t head) {
            float* out = mixed.values(i) + head * width;
            kernels().rms_norm(out, norm_weight.data, shape_.eps, out, width);
            kernels().activate(Activation::silu, gates + i * inner + head * width, out, 1.0f, out, width);
          });
      pass.finish(block, mixed);
    });
  }

 private:
  static constexpr float kLeastSquare = 1e-6f;

  // out = factor x / |x|
  void normalize(const float* x, float factor, float* out) const {
    const int64_t width = shape_.head_dim;
    const float scale = factor / std::sqrt(kernels().dot(x, x, width) + kLeastSquare);
    for (int64_t j = 0; j < width; ++j) out[j] = scale * x[j];
  }

  MixerShape shape_;
  int64_t conv_;
};

const Registration<GatedDelta> registration;

}  // namespace

}  // namespace adaptive
