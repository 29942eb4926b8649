#include "units.h"

#include "product.h"

namespace adaptive {

Units units_of(const Places& places, const Cache& cache, const int64_t* first, int64_t most, int64_t queries_per_token,
               Scratch& scratch) {
  const int64_t running = places.num_running;
  Units units;
  units.order = scratch.take<int32_t>(running);
  units.list = scratch.take<Unit>(running * cache.num_kv_heads);
  auto* ends = scratch.zeros<int64_t>(places.num_slots + 1);  // where a slot starts in `order`, then where it ends
  for (int64_t i = 0; i < running; ++i) ++ends[places.slot(places.running[i]) + 1];
  for (int64_t s = 0; s < places.num_slots; ++s) ends[s + 1] += ends[s];
  for (int64_t i = 0; i < running; ++i) units.order[ends[places.slot(places.running[i])]++] = static_cast<int32_t>(i);

  for (int64_t begin = 0; begin < running;) {
    const int64_t slot = places.slot(places.running[units.order[begin]]);
    const int64_t count = std::min(ends[slot] - begin, most), last = units.order[begin + count - 1];
    for (int64_t k = 0; k < cache.num_kv_heads; ++k) units.list[units.count++] = {begin, count, slot, k};
    const int64_t cells = places.place[places.running[last]] - first[units.order[begin]] + 1;
    // as many bytes as keys in float32 have: cells are in a near cache, and narrower ones take as long
    units.cost += cells * cache.num_kv_heads * cache.head_dim * 4 * cost_of_rows(count * queries_per_token);
    begin += count;
  }
  return units;
}

}  // namespace adaptive
