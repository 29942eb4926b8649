// Keys and values of one layer, for the sequences of all slots.
//
// S slots, K key/value heads, C capacity, R elements of a cell (attend_task.h), W width of a head.
#pragma once

#include "../kernels/attend_task.h"
#include "in_place.h"
#include "places.h"

namespace adaptive {

struct CachePorts {
  InPlace key, value, counted;
};

struct Cache {
  CacheType type;
  int64_t num_kv_heads, head_dim, capacity;
  uint8_t *keys, *values;
  float* ran;  // (S, C): 1 where the token of a cell ran the layer; null: all did

  CacheHead head(int64_t slot, int64_t kv_head) const {
    const int64_t offset = (slot * num_kv_heads + kv_head) * capacity * cell_bytes(type, head_dim);
    return {type, head_dim, capacity, keys + offset, values + offset};
  }
  const float* counted(int64_t slot) const { return ran ? ran + slot * capacity : nullptr; }

  // Throw an error if a slot has fewer than `cells` cells.
  void check_holds(const Call& call, int64_t slot, int64_t cells, size_t past_key) const;

  // Write which of the writing rows run the layer.
  void count(const Places& places) const;
};

// Read a cache: keys and values (S, K, C, R), counted (S, 1, C, 1)?. Where an output is another buffer than its input,
// copy it first.
Cache read_cache(const Call& call, const CachePorts& ports, int64_t num_slots, int64_t num_kv_heads, int64_t head_dim);

}  // namespace adaptive
