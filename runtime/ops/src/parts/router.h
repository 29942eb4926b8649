// Routing decisions: thresholds that a token moves, and the ranking of units (experts or heads) by probability.
//
// Mirrors `export/model/routing/thresholded_router.py` and the choice in `export/model/routing/router.py`. R units to choose from.
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

// Divide by the sum, or by `least` where that is more.
inline void divide_by_sum(float* weights, int64_t count, float least = 0) {
  float sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += weights[i];
  sum = std::max(sum, least);
  for (int64_t i = 0; i < count; ++i) weights[i] /= sum;
}

// Order the units by probability; of equal ones the lower number first. Only the first `candidates` are in order, the
// others follow. False if a probability is NaN.
inline bool rank(const float* probs, int64_t count, int64_t candidates, int32_t* order) {
  for (int64_t i = 0; i < count; ++i) {
    if (std::isnan(probs[i])) return false;
    order[i] = static_cast<int32_t>(i);
  }
  std::partial_sort(order, order + candidates, order + count,
                    [probs](int32_t a, int32_t b) { return probs[a] != probs[b] ? probs[a] > probs[b] : a < b; });
  return true;
}

inline bool rank(const float* probs, int64_t count, int32_t* order) { return rank(probs, count, count, order); }

constexpr float kNoLimit = 2;  // a mass that is never reached

// Return how many of the ranked units have less than `limit` of the probability before them; the first always has.
inline int64_t count_by_mass(const float* probs, const int32_t* order, int64_t count, float limit) {
  float mass_before = 0;
  int64_t taken = 0;
  while (taken < count && (taken == 0 || mass_before < limit)) mass_before += probs[order[taken++]];
  return taken;
}

constexpr float kLeastMass = 1e-20f;  // what a mass is divided by at least; sigmoids can all be 0

// Return how many of the ranked candidates follow each other by two rules; the first always does. The share of the
// candidates' mass before one is less than `limit`, unless that is kNoLimit; and its score is at least `ratio` times
// that of the first. A selection bias ranks by other scores, so the scores need not fall.
inline int64_t count_candidates(const float* scores, const int32_t* order, int64_t candidates, float limit,
                                float ratio) {
  float mass = 0, mass_before = 0;
  for (int64_t i = 0; i < candidates; ++i) mass += scores[order[i]];
  mass = std::max(mass, kLeastMass);
  const float least = ratio * scores[order[0]];
  int64_t taken = 0;
  for (; taken < candidates; ++taken) {
    const float own = scores[order[taken]];
    if (taken > 0 && ((limit < kNoLimit && mass_before / mass >= limit) || own < least)) break;
    mass_before += own;
  }
  return taken;
}

// Return how many of the ranked gates are above 0 and have less than `limit` of the sum before them; there may be none.
inline int64_t count_positive(const float* gates, const int32_t* order, int64_t count, float limit) {
  int64_t taken = count_candidates(gates, order, count, limit, 0);
  while (taken > 0 && gates[order[taken - 1]] <= 0) --taken;
  return taken;
}

}  // namespace adaptive
