// Mamba-2 of one layer, from its norms to its residual, with the states that it writes.
//
// R tokens of a block, D width, H heads, W width of a head, C = H W + 2 W channels of the convolution, K tokens that it
// sees. Mirrors `export/model/mixers/mamba2.py`. Attributes besides those of every mixer: conv, K.

#include "../parts/convolution.h"
#include "../parts/gates.h"
#include "../parts/mixer.h"

namespace adaptive {

namespace {

class Mamba2 : MixerPorts {
 public:
  static constexpr const char* kName = "Mamba2";
  enum Input { in = own, conv_weight, conv_bias, dt_bias, rate, skip, inner_norm };
  static constexpr auto kInputs = with_own(
      Port{"in", Element::uint8},                       // packed (2 H W + 2 W + H, D): z, x, B, C, dt
      Port{"conv_weight", Element::float32, optional},  // (K, C), the oldest token first; absent where K is 1
      Port{"conv_bias", Element::float32, optional},    // (C,)
      Port{"dt_bias", Element::float32},                // (H,)
      Port{"rate", Element::float32},                   // (H,), by which a head forgets
      Port{"skip", Element::float32},                   // (H,), factor of x in the output
      Port{"inner_norm", Element::float32});            // (H W,)
  using MixerPorts::kOutputs;

  explicit Mamba2(const Attributes& attributes)
      : shape_(attributes), conv_(attributes.integer("conv", 1, kMostConvolved)) {}

  void run(Call& call) const {
    Scratch scratch;
    const int64_t width = shape_.head_dim, heads = shape_.num_heads, inner = shape_.inner();
    const int64_t channels = inner + 2 * width, columns = inner + channels + heads;
    MixerPass pass(call, shape_, channels, conv_ - 1, scratch);
    const Matrix of_in = matrix(call, in, shape_.precision, columns, pass.dim);
    const Convolution convolution(call, {conv_weight, conv_bias}, channels, conv_);
    const auto offset = call.input<float>(dt_bias, {heads}), rates = call.input<float>(rate, {heads});
    const auto factor = call.input<float>(skip, {heads}), norm_weight = call.input<float>(inner_norm, {inner});

    pass.run([&](const MixerPass::Block& block) {
      Scratch own;
      const Rows normed(own, block.count, pass.dim, is_integer(shape_.precision));
      pass.normalize(block, normed);
      float* projected = own.take<float>(block.count * columns);
      pass.multiply_all({{of_in, normed, projected, columns}});
      pass.convolve(block, convolution, projected + inner, columns);
      const Rows mixed(own, block.count, inner, is_integer(shape_.precision));
      pass.recur(
          block, false,
          [&](int64_t i, int64_t head, const HeadVectors& vectors, Step& step) {
            const float* row = projected + i * columns;
            const float* value = row + inner + head * width;
            const float shifted = row[inner + channels + head] + offset.data[head];
            const auto dt = static_cast<float>(softplus(shifted));
            std::fill_n(vectors.w, width, kept_share(rates.data[head], shifted));
            std::copy_n(row + 2 * inner, width, vectors.k);
            std::copy_n(row + 2 * inner + width, width, vectors.r);
            for (int64_t j = 0; j < width; ++j) vectors.v[j] = dt * value[j];
            step.o = mixed.values(i) + head * width;
          },
          [&](int64_t i, int64_t head) {
            const float* value = projected + i * columns + inner + head * width;
            kernels().add_scaled(mixed.values(i) + head * width, value, factor.data[head], width);
          });
      call.parallel(block.count, block.count * inner * 32, [&](int64_t first, int64_t last) {
        for (int64_t i = first; i < last; ++i) {
          float* out = mixed.values(i);
          kernels().activate(Activation::silu, projected + i * columns, out, 1.0f, out, inner);
          kernels().rms_norm(out, norm_weight.data, shape_.eps, out, inner);
        }
      });
      pass.finish(block, mixed);
    });
  }

 private:
  MixerShape shape_;
  int64_t conv_;
};

const Registration<Mamba2> registration;

}  // namespace

}  // namespace adaptive
