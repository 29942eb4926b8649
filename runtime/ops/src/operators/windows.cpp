// The window of each token: the number of tokens that it looks back at, itself included.
//
// B batch, N = B*T tokens, S slots, D width, L layers. Mirrors `learned_windows` and `Tables` in
// `export/model/attention/window.py`.

#include <cmath>

#include "../parts/norm.h"
#include "../parts/places.h"
#include "../parts/product.h"
#include "../parts/router.h"

namespace adaptive {

namespace {

constexpr int64_t kLevels = 15;  // sizes of a learned window, from its least to its most

class Windows {
 public:
  static constexpr const char* kName = "Windows";
  enum Input { x, runs, slots, lengths, norm, norm_bias, weight, bias, levels, by_place };
  static constexpr Port kInputs[] = {
      {"x", Element::float32},                 // (N, D)
      {"runs", Element::boolean, optional},    // (N, 1); absent: every token runs
      {"slots", Element::int64},               // (B,), the slot of each row of tokens
      {"lengths", Element::int64},             // (L, S), tokens that each layer's cache holds
      {"norm", Element::float32, optional},       // (D,); absent: x is read without a norm
      {"norm_bias", Element::float32, optional},  // (D,), of LayerNorm
      {"weight", Element::float32, optional},  // (D,), of the score of a learned window
      {"bias", Element::float32, optional},    // (1,)
      {"levels", Element::int64, optional},    // (15,), the learned window of each level
      {"by_place", Element::int64, optional},  // (context,), the window of each place, where it is not learned
  };
  enum Output { windows };
  static constexpr Port kOutputs[] = {{"windows", Element::int64}};  // (N,), 0 where the layer is skipped

  explicit Windows(const Attributes& attributes)
      : layer_(attributes.integer("layer", 0, kMostWidth)),
        eps_(attributes.real("eps", 0, 1)),
        policy_(static_cast<Policy>(attributes.integer("policy", 0, 2))) {}

  void run(Call& call) const {
    Scratch scratch;
    const auto states = call.input<float>(x, {any, any});
    const int64_t rows = states.shape[0], dim = states.shape[1];
    const Places places = places_of(call, {runs, slots, lengths}, rows, layer_, policy_, scratch);
    const Norm before(call, norm, norm_bias, dim, eps_);
    const auto scorer = call.input<float>(weight, {dim});
    const auto offset = call.input<float>(bias, {1});
    const auto of_level = call.input<int64_t>(levels, {kLevels});
    const auto of_place = call.input<int64_t>(by_place, {any});
    if (bool(scorer) == bool(of_place) || bool(scorer) != bool(offset) || bool(scorer) != bool(of_level)) {
      call.fail("expected either the inputs weight, bias and levels, or by_place");
    }
    const auto out = call.output<int64_t>(windows, {rows});

    std::fill_n(out.data, rows, 0);
    float* normed = scratch.take<float>(dim);
    for (int64_t i = 0; i < places.num_running; ++i) {
      const int64_t row = places.running[i], place = places.place[row];
      if (of_place) {
        if (place >= of_place.shape[0]) {
          call.fail_input(by_place, "has " + std::to_string(of_place.shape[0]) + " places, expected more than " +
                                        std::to_string(place));
        }
        out.data[row] = of_place.data[place];
        continue;
      }
      before.apply(states.data + row * dim, normed);
      const float score = sigmoid(kernels().dot(normed, scorer.data, dim) + *offset.data);
      const float level = std::floor(static_cast<float>(kLevels) * score);
      out.data[row] = of_level.data[level >= 1 ? std::min(static_cast<int64_t>(level), kLevels - 1) : 0];
    }
  }

 private:
  int64_t layer_;
  float eps_;
  Policy policy_;
};

const Registration<Windows> registration;

}  // namespace

}  // namespace adaptive
