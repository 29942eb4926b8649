// Inputs of routers: the level of each sequence, and the predictor of a token's shift from it.
#pragma once

#include "../binding/operator.h"
#include "router.h"

namespace adaptive {

constexpr float kMostReach = 1e6f;
constexpr int64_t kMostLayers = 1 << 20;

// Row `layer` of levels (L, B), read by token: N tokens are B sequences of T.
class Levels {
 public:
  Levels() = default;  // of a router without levels
  Levels(const Call& call, size_t index, int64_t layer, int64_t tokens) {
    const auto levels = call.input<float>(index, {any, any});
    if (!levels) call.fail_input(index, "is missing");
    const int64_t layers = levels.shape[0], batch = levels.shape[1];
    if (layer >= layers) {
      call.fail_input(index, "has " + std::to_string(layers) + " layers, but the attribute layer is " +
                                 std::to_string(layer));
    }
    if (tokens > 0 && (batch == 0 || tokens % batch != 0)) {
      call.fail_input(index, "is for " + std::to_string(batch) + " sequences, which " + std::to_string(tokens) +
                                 " tokens cannot be divided into");
    }
    levels_ = levels.data + layer * batch;
    time_ = batch > 0 ? tokens / batch : 1;
  }

  float of(int64_t token) const { return levels_[token / time_]; }

 private:
  const float* levels_ = nullptr;
  int64_t time_ = 1;
};

// Read the predictor of a token's shift, weight (D,) and bias (1,), both or neither.
inline TokenShift token_shift(const Call& call, size_t weight, size_t bias, int64_t dim, float reach) {
  const auto weights = call.input<float>(weight, {dim});
  const auto offset = call.input<float>(bias, {1});
  if (weights.present != offset.present) call.fail_input(bias, "and the weight come together, found one of them");
  return weights ? TokenShift{weights.data, offset.data, reach} : TokenShift{};
}

}  // namespace adaptive
