// RetNet of one layer, from its norms to its residual, with the state that it writes.
//
// N tokens, R of a block, D width, H heads, W width of a head. Mirrors `export/model/mixers/retnet.py`.
// Attributes besides those of every mixer: rotated, the components of a head that RoPE turns.

#include <cmath>

#include "../parts/mixer.h"
#include "../parts/rotary.h"

namespace adaptive {

namespace {

class RetNet : MixerPorts {
 public:
  static constexpr const char* kName = "RetNet";
  enum Input { positions = own, q, k, v, gate, decay, cos, sin };
  static constexpr auto kInputs = with_own(Port{"positions", Element::int64},        // (B, T), places in the text
                                           Port{"q", Element::uint8},                // packed (H W, D)
                                           Port{"k", Element::uint8},                // packed (H W, D)
                                           Port{"v", Element::uint8},                // packed (H W, D)
                                           Port{"gate", Element::uint8},             // packed (H W, D)
                                           Port{"decay", Element::float32},          // (H,), factor of the state
                                           Port{"cos", Element::float32, optional},  // (context, rotated / 2)
                                           Port{"sin", Element::float32, optional});
  using MixerPorts::kOutputs;

  explicit RetNet(const Attributes& attributes)
      : shape_(attributes), rotated_(rotated_of(attributes, shape_.head_dim)) {}

  void run(Call& call) const {
    Scratch scratch;
    MixerPass pass(call, shape_, 0, 0, scratch);
    const int64_t width = shape_.head_dim, inner = shape_.inner();
    const Rotary rotary(call, kRotaryPorts, rotated_, pass.tokens);
    rotary.check_holds(call, kRotaryPorts, pass.places.running, pass.places.num_running);
    const auto large = [&](size_t index) { return matrix(call, index, shape_.precision, inner, pass.dim); };
    const Matrix of_q = large(q), of_k = large(k), of_v = large(v), of_gate = large(gate);
    const auto factor = call.input<float>(decay, {shape_.num_heads});
    const float scale = 1.0f / std::sqrt(static_cast<float>(width));

    pass.run([&](const MixerPass::Block& block) {
      Scratch own;
      float* ones = own.take<float>(width);
      std::fill_n(ones, width, 1.0f);
      const Rows normed(own, block.count, pass.dim, is_integer(shape_.precision));
      pass.normalize(block, normed);
      const auto grid = [&] { return own.take<float>(block.count * inner); };
      float *queries = grid(), *keys = grid(), *values = grid(), *gates = grid();
      pass.multiply_all({{of_q, normed, queries, inner},
                         {of_k, normed, keys, inner},
                         {of_v, normed, values, inner},
                         {of_gate, normed, gates, inner}});
      const Rows mixed(own, block.count, inner, is_integer(shape_.precision));
      pass.recur(
          block, false,
          [&](int64_t i, int64_t head, const HeadVectors& vectors, Step& step) {
            const int64_t at = i * inner + head * width;
            std::fill_n(vectors.w, width, factor.data[head]);
            std::copy_n(queries + at, width, vectors.r);
            std::copy_n(keys + at, width, vectors.k);
            rotary.turn(block.tokens[i], vectors.r);
            rotary.turn(block.tokens[i], vectors.k);
            for (int64_t j = 0; j < width; ++j) vectors.k[j] *= scale;
            step.v = values + at;
            step.o = mixed.values(i) + head * width;
          },
          [&](int64_t i, int64_t head) {
            float* out = mixed.values(i) + head * width;
            kernels().rms_norm(out, ones, shape_.eps, out, width);
            kernels().activate(Activation::silu, gates + i * inner + head * width, out, 1.0f, out, width);
          });
      pass.finish(block, mixed);
    });
  }

 private:
  static constexpr RotaryPorts kRotaryPorts{positions, cos, sin};

  MixerShape shape_;
  int64_t rotated_;
};

const Registration<RetNet> registration;

}  // namespace

}  // namespace adaptive
