#include "cache.h"

namespace adaptive {

namespace {

CacheType type_of(const Call& call, size_t index, Element type) {
  switch (type) {
    case Element::float32:
      return CacheType::fp32;
    case Element::float16:
      return CacheType::fp16;
    case Element::int8:
      return CacheType::int8;
    default:
      call.fail_input(index, std::string("holds ") + name_of(type) + ", expected float32, float16 or int8");
  }
}

}  // namespace

Cache read_cache(const Call& call, const CachePorts& ports, int64_t num_slots, int64_t num_kv_heads, int64_t head_dim) {
  const auto keys = call.input<void>(ports.key.past, {num_slots, num_kv_heads, any, any});
  Cache cache{
      type_of(call, ports.key.past, keys.type), num_kv_heads, head_dim, keys.shape[2], nullptr, nullptr, nullptr};
  const int64_t elements = cache.type == CacheType::int8 ? head_dim + 4 : head_dim;
  if (keys.shape[3] != elements) {
    call.fail_input(ports.key.past, "has " + std::to_string(keys.shape[3]) + " elements of a cell, expected " +
                                        std::to_string(elements) + " of " + name_of(keys.type));
  }
  if (cache.capacity < 1) call.fail_input(ports.key.past, "has no cells, expected at least 1");
  const auto values = call.input<void>(ports.value.past, {num_slots, num_kv_heads, cache.capacity, elements});
  if (values.type != keys.type) {
    call.fail_input(ports.value.past,
                    std::string("holds ") + name_of(values.type) + ", expected " + name_of(keys.type) + " as past_key");
  }
  const auto ran = call.input<float>(ports.counted.past, {num_slots, 1, cache.capacity, 1});
  const int64_t bytes = num_slots * num_kv_heads * cache.capacity * cell_bytes(cache.type, head_dim);
  const std::initializer_list<int64_t> shape = {num_slots, num_kv_heads, cache.capacity, elements};
  cache.keys = present(call, ports.key, shape, keys.data, bytes);
  cache.values = present(call, ports.value, shape, values.data, bytes);
  if (ran) {
    uint8_t* data = present(call, ports.counted, {num_slots, 1, cache.capacity, 1}, ran.data, ran.size() * 4);
    cache.ran = reinterpret_cast<float*>(data);
  }
  return cache;
}

void Cache::check_holds(const Call& call, int64_t slot, int64_t cells, size_t past_key) const {
  if (cells <= capacity) return;
  call.fail_input(past_key, "has " + std::to_string(capacity) + " cells, expected at least " + std::to_string(cells) +
                                " for the tokens that this pass writes and sees in slot " + std::to_string(slot));
}

void Cache::count(const Places& places) const {
  if (ran == nullptr) return;
  for (int64_t j = 0, i = 0; j < places.num_writing; ++j) {
    const int64_t row = places.writing[j];
    const bool running = i < places.num_running && places.running[i] == row;
    if (running) ++i;
    ran[places.slot(row) * capacity + places.place[row] % capacity] = running ? 1.0f : 0.0f;
  }
}

}  // namespace adaptive
