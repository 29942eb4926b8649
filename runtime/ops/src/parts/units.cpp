#include "units.h"

#include "product.h"
#include "sequences.h"

namespace adaptive {

Units units_of(const Places& places, const Cache& cache, const int64_t* first, int64_t most, int64_t queries_per_token,
               Scratch& scratch) {
  const Sequences sequences = sequences_of(places, places.running, places.num_running, scratch);
  Units units;
  units.order = sequences.order;
  units.list = scratch.take<Unit>(places.num_running * cache.num_kv_heads);
  for (int64_t s = 0; s < sequences.count; ++s) {
    const Sequence& sequence = sequences.list[s];
    const int64_t end = sequence.first + sequence.count;
    for (int64_t begin = sequence.first; begin < end; begin += most) {
      const int64_t count = std::min(end - begin, most), last = units.order[begin + count - 1];
      for (int64_t k = 0; k < cache.num_kv_heads; ++k) units.list[units.count++] = {begin, count, sequence.slot, k};
      const int64_t cells = places.place[places.running[last]] - first[units.order[begin]] + 1;
      // as many bytes as keys in float32 have: cells are in a near cache, and narrower ones take as long
      units.cost += cells * cache.num_kv_heads * cache.head_dim * 4 * cost_of_rows(count * queries_per_token);
    }
  }
  return units;
}

}  // namespace adaptive
