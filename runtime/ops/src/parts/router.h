// Routing decisions: thresholds that a token moves, and the ranking of units (experts or heads) by probability.
//
// Mirrors `export/model/thresholded_router.py` and the choice in `export/model/router.py`. R units to choose from.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "../kernels/kernels.h"

namespace adaptive {

constexpr float kEdge = 1e-6f;  // least distance of a level from 0 and 1 when it is moved

inline float sigmoid(double value) { return static_cast<float>(1.0 / (1.0 + std::exp(-value))); }

// Compute sigmoid(logit(level) + reach tanh(logit)), the level kept away from 0 and 1.
inline float shifted(float level, float logit, float reach) {
  const double inside = std::min(std::max(level, kEdge), 1.0f - kEdge);
  const double odds = std::log(inside / (1.0 - inside));
  return sigmoid(odds + static_cast<double>(reach) * std::tanh(static_cast<double>(logit)));
}

// The predictor of a token's shift, w . x + b; a null weight means that the level holds for every token.
struct TokenShift {
  const float* weight = nullptr;
  const float* bias = nullptr;
  float reach = 0;  // of the shift, in logits

  float moved(float level, const float* x, int64_t dim) const {
    if (weight == nullptr) return level;
    return shifted(level, kernels().dot(x, weight, dim) + *bias, reach);
  }
};

// Turn logits into probabilities in place.
inline void softmax(float* logits, int64_t count) {
  const float sum = kernels().softmax(logits, count);
  for (int64_t i = 0; i < count; ++i) logits[i] /= sum;
}

inline void divide_by_sum(float* weights, int64_t count) {
  float sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += weights[i];
  for (int64_t i = 0; i < count; ++i) weights[i] /= sum;
}

// Order the units by probability; of equal ones the lower number first. False if a probability is NaN.
inline bool rank(const float* probs, int64_t count, int32_t* order) {
  for (int64_t i = 0; i < count; ++i) {
    if (std::isnan(probs[i])) return false;
    order[i] = static_cast<int32_t>(i);
  }
  std::sort(order, order + count,
            [probs](int32_t a, int32_t b) { return probs[a] != probs[b] ? probs[a] > probs[b] : a < b; });
  return true;
}

// Return how many of the ranked units have less than `limit` of the probability before them; the first always has.
inline int64_t count_by_mass(const float* probs, const int32_t* order, int64_t count, float limit) {
  float mass_before = 0;
  int64_t taken = 0;
  while (taken < count && (taken == 0 || mass_before < limit)) mass_before += probs[order[taken++]];
  return taken;
}

}  // namespace adaptive
