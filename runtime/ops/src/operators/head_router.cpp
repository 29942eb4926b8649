// The choice of query heads, and the factors of their outputs.
//
// B batch, N = B*T tokens, D width, H query heads, S of them shared, R = H - S routed, L layers. Mirrors
// `head_router` in `export/model/attention/heads.py`.

#include <cmath>

#include "../parts/levels.h"
#include "../parts/norm.h"
#include "../parts/product.h"

namespace adaptive {

namespace {

enum class Routing : int64_t { top_k = 0, top_p = 1, adaptive = 2 };

class HeadRouter {
 public:
  static constexpr const char* kName = "HeadRouter";
  enum Input { x, runs, norm, norm_bias, head_top_p, weight, balance, per_token_weight, per_token_bias };
  static constexpr Port kInputs[] = {
      {"x", Element::float32},                     // (N, D)
      {"runs", Element::boolean, optional},        // (N, 1); absent: every token runs
      {"norm", Element::float32, optional},        // (D,); absent: x is read without a norm
      {"norm_bias", Element::float32, optional},   // (D,), of LayerNorm
      {"head_top_p", Element::float32, optional},  // (L, B), not for top_k
      {"weight", Element::float32},                // (H, D), shared heads first
      {"balance", Element::float32, optional},     // (2, D), of shared and routed heads
      {"per_token_weight", Element::float32,
       optional},                                      // (D,): the shift of the level, or under adaptive the complexity
      {"per_token_bias", Element::float32, optional},  // (1,)
  };
  enum Output { selected, head_weights };
  static constexpr Port kOutputs[] = {
      {"selected", Element::boolean},      // (N, H)
      {"head_weights", Element::float32},  // (N, H), 0 where not selected
  };

  explicit HeadRouter(const Attributes& attributes)
      : layer_(attributes.integer("layer", 0, kMostLayers)),
        eps_(attributes.real("eps", 0, 1)),
        routing_(static_cast<Routing>(attributes.integer("routing", 0, 2))),
        shared_(attributes.integer("shared_heads", 0, kMostWidth)),
        scale_(attributes.real("heads_per_token", 0, kMostWidth) - static_cast<float>(shared_)),
        least_(attributes.integer("least_heads", 0, kMostWidth)),
        most_(attributes.integer("most_heads", least_, kMostWidth)),
        reach_(attributes.real("reach", 0, kMostReach)) {
    if (routing_ == Routing::adaptive && shared_ != 0) {
      throw Failure(attributes.where() + ": shared_heads is " + std::to_string(shared_) +
                    ", expected 0 where routing is adaptive");
    }
  }

  void run(Call& call) const {
    Scratch scratch;
    const auto states = call.input<float>(x, {any, any});
    const int64_t rows = states.shape[0], dim = states.shape[1];
    const auto running = call.input<bool>(runs, {rows, 1});
    const auto router = call.input<float>(weight, {any, dim});
    const Norm before(call, norm, norm_bias, dim, eps_);
    const Router own{router.data,
                     call.input<float>(balance, {2, dim}).data,
                     token_shift(call, per_token_weight, per_token_bias, dim, reach_),
                     dim,
                     router.shape[0]};
    if (own.heads <= shared_) {
      call.fail_input(weight, "has " + std::to_string(own.heads) + " heads, expected more than the " +
                                  std::to_string(shared_) + " shared ones");
    }
    if ((shared_ > 0) != (own.balance != nullptr)) {
      call.fail_input(balance, shared_ > 0 ? "is missing" : "is given, but shared_heads is 0");
    }
    if (routing_ == Routing::adaptive && (own.shift.weight == nullptr || most_ > own.heads)) {
      call.fail("adaptive routing needs per_token_weight, and most_heads of at most " + std::to_string(own.heads));
    }
    const Levels levels = routing_ == Routing::top_k ? Levels() : Levels(call, head_top_p, layer_, rows);
    const auto chosen = call.output<bool>(selected, {rows, own.heads});
    const auto factors = call.output<float>(head_weights, {rows, own.heads});

    std::fill_n(chosen.data, rows * own.heads, false);
    std::fill_n(factors.data, rows * own.heads, 0.0f);
    float* normed = scratch.take<float>(dim);
    auto* order = scratch.take<int32_t>(own.heads);
    for (int64_t n = 0; n < rows; ++n) {
      if (running && !running.data[n]) continue;
      before.apply(states.data + n * dim, normed);
      const float level = routing_ == Routing::top_k ? 1.0f : levels.of(n);
      route(own, normed, level, order, chosen.data + n * own.heads, factors.data + n * own.heads);
    }
  }

 private:
  struct Router {
    const float *weight, *balance;
    TokenShift shift;
    int64_t dim, heads;
  };

  // Choose heads (H,) and their factors (H,) for a normed row.
  void route(const Router& router, const float* normed, float level, int32_t* order, bool* chosen,
             float* factors) const {
    const int64_t routed = router.heads - shared_;
    for (int64_t head = 0; head < router.heads; ++head) {
      factors[head] = kernels().dot(normed, router.weight + head * router.dim, router.dim);
    }
    float* probs = factors + shared_;  // (R,)
    softmax(probs, routed);
    if (!rank(probs, routed, order)) {  // NaN selects all heads, so that it cannot go unnoticed
      std::fill_n(chosen, router.heads, true);
      std::fill_n(factors, router.heads, std::numeric_limits<float>::quiet_NaN());
      return;
    }
    const int64_t taken = number(router, normed, level, probs, order, routed);
    for (int64_t i = 0; i < taken; ++i) chosen[shared_ + order[i]] = true;
    float total = 0, of_shared = 0, of_routed = scale_;
    for (int64_t i = 0; i < routed; ++i) {
      if (!chosen[shared_ + i]) probs[i] = 0;
      total += probs[i];
    }
    if (shared_ > 0) {
      float sides[2];
      for (int side = 0; side < 2; ++side) {
        sides[side] = kernels().dot(normed, router.balance + side * router.dim, router.dim);
      }
      softmax(sides, 2);
      of_shared = sides[0] * (2 * static_cast<float>(shared_));
      of_routed = sides[1] * (2 * scale_);
      softmax(factors, shared_);
      for (int64_t i = 0; i < shared_; ++i) {
        factors[i] *= of_shared;
        chosen[i] = true;
      }
    }
    for (int64_t i = 0; i < routed; ++i) probs[i] *= of_routed / total;
  }

  // Return how many of the ranked heads a token takes.
  int64_t number(const Router& router, const float* normed, float level, const float* probs, const int32_t* order,
                 int64_t routed) const {
    if (routing_ == Routing::top_k) return std::min(std::max(static_cast<int64_t>(scale_), int64_t{0}), routed);
    const bool everything = level >= 1;  // before any shift, and whatever rounding makes of the mass
    if (routing_ == Routing::top_p) {
      if (everything) return routed;
      return count_by_mass(probs, order, routed, router.shift.moved(level, normed, router.dim));
    }
    if (everything) return most_;
    const float complexity = kernels().dot(normed, router.shift.weight, router.dim) + *router.shift.bias;
    int64_t taken = least_;
    while (taken < most_) {  // the ranks between are at equal steps, which complexity moves down: scores rise with rank
      const double between = (static_cast<double>(taken - least_) + 0.5) / static_cast<double>(most_ - least_);
      const auto logit = static_cast<float>(std::log(between / (1 - between)));
      if (!(sigmoid(logit - complexity) < level)) break;
      ++taken;
    }
    return taken;
  }

  int64_t layer_;
  float eps_;
  Routing routing_;
  int64_t shared_;
  float scale_;  // of the routed heads' factors: their average number
  int64_t least_, most_;
  float reach_;
};

const Registration<HeadRouter> registration;

}  // namespace

}  // namespace adaptive
