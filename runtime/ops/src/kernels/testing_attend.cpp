// What the tests call: the attention kernel of a named table, one token after the other. No operator uses it.
#include <algorithm>
#include <vector>

#include "attend_task.h"
#include "kernels.h"

// Write keys and values (T, W) to a ring of `capacity` cells, and attend from queries (T, W) with a window: out (T, W).
// `counted` (T,) and `embedding` (P / 16, W, 16) are null without contextual positions, `softcap` is 0 without a limit.
extern "C" __attribute__((visibility("default"))) void adaptive_ops_attend(
    const char* kernel, int64_t type, int64_t head_dim, int64_t capacity, int64_t tokens, int64_t window,
    const float* keys, const float* values, const float* queries, const float* counted, const float* embedding,
    int64_t num_positions, float softcap, float* out) {
  using namespace adaptive;
  const Kernels& table = *kernels_named(kernel);
  const auto cache_type = static_cast<CacheType>(type);
  const size_t bytes = static_cast<size_t>(capacity * cell_bytes(cache_type, head_dim));
  std::vector<uint8_t> key_cells(bytes, 0xFF), value_cells(bytes, 0xFF);  // NaN until written
  const CacheHead cache{cache_type, head_dim, capacity, key_cells.data(), value_cells.data()};
  std::vector<float> counts(static_cast<size_t>(capacity));
  std::vector<float> scratch(static_cast<size_t>(attend_scratch(head_dim, capacity, num_positions)));
  for (int64_t t = 0; t < tokens; t++) {
    table.write_cell(cache, t % capacity, keys + t * head_dim, values + t * head_dim);
    if (counted) counts[static_cast<size_t>(t % capacity)] = counted[t];
    const Query query{queries + t * head_dim, out + t * head_dim, 1.0f, std::max<int64_t>(t - window + 1, 0), t};
    table.attend({&cache, &query, 1, counted ? counts.data() : nullptr, embedding, num_positions, softcap,
                  scratch.data()});
  }
}
