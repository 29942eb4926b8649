// The choice of the layers that a token runs.
//
// B batch, N = B*T tokens, D width, L layers. Mirrors `export/model/routing/depth.py`.
// Attributes: layer, the row of depth_threshold; eps, added to the mean square; reach, the most that a token moves its
// threshold, in logits.

#include "../parts/levels.h"

namespace adaptive {

namespace {

class DepthRouter {
 public:
  static constexpr const char* kName = "DepthRouter";
  enum Input { x, alive, depth_threshold, weight, bias, per_token_weight, per_token_bias };
  static constexpr Port kInputs[] = {
      {"x", Element::float32},                 // (N, D)
      {"alive", Element::boolean, optional},   // (N, 1), the tokens that have not left; absent: all
      {"depth_threshold", Element::float32},   // (L, B)
      {"weight", Element::float32},            // (D,)
      {"bias", Element::float32},              // (1,)
      {"per_token_weight", Element::float32, optional},  // (D,)
      {"per_token_bias", Element::float32, optional},    // (1,)
  };
  enum Output { runs, gate };
  static constexpr Port kOutputs[] = {
      {"runs", Element::boolean},  // (N, 1)
      {"gate", Element::float32},  // (N, 1), 2 * score: the factor of the layer's update
  };

  explicit DepthRouter(const Attributes& attributes)
      : layer_(attributes.integer("layer", 0, kMostLayers)),
        eps_(attributes.real("eps", 0, 1)),
        reach_(attributes.real("reach", 0, kMostReach)) {}

  void run(Call& call) const {
    const auto states = call.input<float>(x, {any, any});
    const int64_t count = states.shape[0], dim = states.shape[1];
    const auto here = call.input<bool>(alive, {count, 1});
    const Levels levels(call, depth_threshold, layer_, count);
    const auto scorer = call.input<float>(weight, {dim});
    const auto offset = call.input<float>(bias, {1});
    const TokenShift shift = token_shift(call, per_token_weight, per_token_bias, dim, reach_);
    const auto runs_here = call.output<bool>(runs, {count, 1});
    const auto gates = call.output<float>(gate, {count, 1});

    call.parallel(count, count * dim * kCostOfValue, [&](int64_t first, int64_t last) {
      for (int64_t n = first; n < last; ++n) {
        if (here && !here.data[n]) {
          runs_here.data[n] = false;
          gates.data[n] = 0;
          continue;
        }
        const float* own = states.data + n * dim;
        const float mean = kernels().dot(own, own, dim) / static_cast<float>(dim);
        const float scale = 1.0f / std::sqrt(mean + eps_);  // w . rms(x) = scale (w . x)
        const float score = sigmoid(scale * kernels().dot(own, scorer.data, dim) + *offset.data);
        const float level = levels.of(n);
        float limit = level;
        if (shift.weight != nullptr && level > 0) {  // a level of 0 lets every token run
          limit = shifted(level, scale * kernels().dot(own, shift.weight, dim) + *shift.bias, shift.reach);
        }
        runs_here.data[n] = level <= 0 || score >= limit;
        gates.data[n] = 2 * score;
      }
    });
  }

 private:
  static constexpr int64_t kCostOfValue = 4;  // a dot product reads it from the cache

  int64_t layer_;
  float eps_, reach_;
};

const Registration<DepthRouter> registration;

}  // namespace

}  // namespace adaptive
