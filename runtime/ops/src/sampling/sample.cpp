// The choice of the next token: penalties, shifts, a mask, temperature, top-k, top-p and min-p, in a few passes over the
// logits.
//
// `Sampling` (runtime/generation/sampling/sampler.py) says what the settings mean. runtime/generation/sampling/draw.py computes the same
// numbers in the same order with numpy, and a test compares the tokens: who changes one changes both. All is float32,
// multiplied and added without fusing; only sums over columns or rows are float64.
//
// n tokens stand in a table of `columns` (a multiple of 16), row by row, padded with scores of -infinity. A draw picks a
// column by its sum, then a row of it.

#include <cstdint>
#include <cstdlib>
#include <cstring>

#if defined(_WIN32)
#define ADAPTIVE_SAMPLE_EXPORT extern "C" __declspec(dllexport)
#else
#define ADAPTIVE_SAMPLE_EXPORT extern "C" __attribute__((visibility("default")))
#endif

namespace {

constexpr float kInfinity = __builtin_inff();

// As `Settings` in runtime/ops/sampling.py.
struct Settings {
  int64_t size;         // of this struct in bytes, which tells one of another version
  int64_t tokens;       // n
  int64_t columns;      // of the table
  int64_t top_k;        // 1 to n; n keeps all
  double top_p;         // 1 keeps all
  float min_p;          // 0 keeps all
  float rate;           // log2(e) / temperature
  float penalty;        // applies to the `num_seen` tokens of `seen`, each of them once
  int32_t num_seen;
  const int32_t* seen;
  float* scores;        // (rows * columns,): space to work in, like the next two
  float* weights;       // (rows * columns,)
  float* sums;          // (columns,): of the weights
  uint64_t state;       // of the random numbers
  int64_t num_shifted;
  const int32_t* shifted;   // tokens to whose scores `shifts` are added, each of them once
  const float* shifts;      // (num_shifted,)
  const uint32_t* allowed;  // a bit for each token, the lowest first; null allows all
};

struct Range {
  float best, least;
};

// Floats as integers of the same order, and back.
int64_t ordered(float x) {
  int32_t key;
  std::memcpy(&key, &x, sizeof key);
  return key < 0 ? -static_cast<int64_t>(key & 0x7FFFFFFF) : key;
}

float unordered(int64_t key) {
  const uint32_t bits = key < 0 ? 0x80000000u | static_cast<uint32_t>(-key) : static_cast<uint32_t>(key);
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// The next random number, 0 to 1: SplitMix64 (Steele et al. 2014, "Fast splittable pseudorandom number generators").
double next_random(uint64_t& state) {
  state += 0x9E3779B97F4A7C15u;
  uint64_t z = state;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return static_cast<double>((z ^ (z >> 31)) >> 11) * 0x1p-53;
}

// Return the index whose part of the sum contains `place`, 0 to 1; never one of weight 0.
int64_t pick(const float* weights, int64_t count, int64_t stride, double place) {
  double whole = 0.0;
  for (int64_t i = 0; i < count; ++i) whole += weights[i * stride];
  const double wanted = place * whole;
  double sum = 0.0;
  for (int64_t i = 0; i < count; ++i) {
    sum += weights[i * stride];
    if (sum > wanted || sum >= whole) return i;
  }
  return 0;  // not reached: the last sum is `whole`
}

int64_t draw(Settings& s, int64_t n) {
  const int64_t column = pick(s.sums, s.columns, 1, next_random(s.state));
  const int64_t row = pick(s.weights + column, n / s.columns, s.columns, next_random(s.state));
  return row * s.columns + column;
}

int64_t best_token(const float* scores, float best) {
  int64_t token = 0;
  while (scores[token] != best) ++token;
  return token;
}

constexpr float kUsualRange = 32.0f;  // of the logits that matter
constexpr int kEvenPasses = 8;
constexpr int64_t kFew = 64;

struct Place {
  float score;    // the k-th largest
  int64_t reach;  // how many scores are at least as large
};

// Copy the logits and pad them with -infinity. Then divide (above 0) or multiply those of seen tokens by the penalty, and
// add the shifts.
void change_logits(Settings& s, const float* logits, int64_t n) {
  std::memcpy(s.scores, logits, static_cast<size_t>(s.tokens) * sizeof(float));
  for (int64_t i = s.tokens; i < n; ++i) s.scores[i] = -kInfinity;
  if (s.penalty != 1.0f) {
    for (int64_t i = 0; i < s.num_seen; ++i) {
      float& x = s.scores[s.seen[i]];
      x = x > 0.0f ? x / s.penalty : x * s.penalty;
    }
  }
  for (int64_t i = 0; i < s.num_shifted; ++i) s.scores[s.shifted[i]] += s.shifts[i];
}

namespace plain {
#define LANES 4
#define PASS inline
#include "passes.h"
#undef LANES
#undef PASS
}  // namespace plain

#if defined(__x86_64__)
namespace avx2 {
#define LANES 8
#define PASS __attribute__((target("avx2"))) inline
#include "passes.h"
#undef LANES
#undef PASS
}  // namespace avx2

namespace avx512 {
#define LANES 16
#define PASS __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl"))) inline
#include "passes.h"
#undef LANES
#undef PASS
}  // namespace avx512
#endif

using Sample = int64_t (*)(Settings&, const float*);

// Choose the passes for this processor, or those that ADAPTIVE_KERNEL names, as for the kernels of the operators.
Sample choose() {
#if defined(__x86_64__)
  const char* forced = std::getenv("ADAPTIVE_KERNEL");
  const auto may = [&](const char* name) { return forced == nullptr || std::strcmp(forced, name) == 0; };
  if (may("avx512vnni") && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    return avx512::sample;
  if (may("avx2") && __builtin_cpu_supports("avx2")) return avx2::sample;
#endif
  return plain::sample;
}

}  // namespace

// Return the next token, and move the state of the random numbers on; -1 if the logits are not finite numbers, -2 if the
// settings are of another version.
ADAPTIVE_SAMPLE_EXPORT int64_t adaptive_ops_sample(Settings* settings, const float* logits) {
  if (settings->size != static_cast<int64_t>(sizeof(Settings))) return -2;
  static const Sample chosen = choose();
  return chosen(*settings, logits);
}
