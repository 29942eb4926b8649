// What the tests call: the kernels of recurrent mixers of a named table. No operator uses them.
#include <algorithm>
#include <vector>

#include "kernels.h"
#include "recur_task.h"

#define EXPORTED extern "C" __attribute__((visibility("default")))

// Take a state (V, K) through T tokens in tasks of at most `together`: vectors (T, K), values and outputs (T, V). a and
// b are null where the recurrence has no such term.
EXPORTED void adaptive_ops_recur(const char* kernel, int64_t key_width, int64_t value_width, int64_t tokens,
                                 int64_t together, float* state, const float* w, const float* k, const float* r,
                                 const float* a, const float* b, const float* v, float* o) {
  using namespace adaptive;
  const int64_t padded = padded_to_lane(key_width);
  std::vector<float> vectors(static_cast<size_t>(5 * tokens * padded));
  const float* sources[] = {w, k, r, a, b};
  std::vector<Step> steps(static_cast<size_t>(tokens));
  for (int64_t t = 0; t < tokens; t++) {
    float* own[5];
    for (int64_t s = 0; s < 5; s++) {
      own[s] = vectors.data() + (5 * t + s) * padded;
      if (sources[s]) std::copy_n(sources[s] + t * key_width, key_width, own[s]);
    }
    steps[static_cast<size_t>(t)] = {own[0], own[1], own[2], own[3], own[4], v + t * value_width, o + t * value_width};
  }
  for (int64_t t = 0; t < tokens; t += together) {
    kernels_named(kernel)->recur(
        {state, key_width, value_width, a != nullptr, steps.data() + t, std::min(together, tokens - t)});
  }
}

// Convolve rows (T, channels) in place, at most `together` in a task and channels [first, last).
EXPORTED void adaptive_ops_convolve(const char* kernel, int64_t channels, int64_t width, int64_t tokens,
                                    int64_t together, const float* weight, const float* bias, float* state, float* rows,
                                    int64_t first, int64_t last) {
  using namespace adaptive;
  std::vector<float*> pointers(static_cast<size_t>(tokens));
  for (int64_t t = 0; t < tokens; t++) pointers[static_cast<size_t>(t)] = rows + t * channels;
  for (int64_t t = 0; t < tokens; t += together) {
    kernels_named(kernel)->convolve(
        {weight, bias, state, pointers.data() + t, std::min(together, tokens - t), channels, width}, first, last);
  }
}
