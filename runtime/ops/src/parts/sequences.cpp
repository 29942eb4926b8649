#include "sequences.h"

namespace adaptive {

Sequences sequences_of(const Places& places, const int32_t* tokens, int64_t number, Scratch& scratch) {
  Sequences sequences;
  sequences.order = scratch.take<int32_t>(number);
  sequences.list = scratch.take<Sequence>(std::min(number, places.num_slots));
  auto* ends = scratch.zeros<int64_t>(places.num_slots + 1);  // where a slot starts in `order`, then where it ends
  for (int64_t i = 0; i < number; ++i) ++ends[places.slot(tokens[i]) + 1];
  for (int64_t s = 0; s < places.num_slots; ++s) ends[s + 1] += ends[s];
  for (int64_t s = 0; s < places.num_slots; ++s) {
    if (ends[s + 1] > ends[s]) sequences.list[sequences.count++] = {s, ends[s], ends[s + 1] - ends[s]};
  }
  for (int64_t i = 0; i < number; ++i) sequences.order[ends[places.slot(tokens[i])]++] = static_cast<int32_t>(i);
  return sequences;
}

}  // namespace adaptive
