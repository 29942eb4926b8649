#include "places.h"

namespace adaptive {

namespace {

constexpr int64_t kMostPlaces = int64_t{1} << 40;  // so that sums of places do not overflow

}  // namespace

Places places_of(const Call& call, const PlaceInputs& inputs, int64_t tokens, int64_t layer, Policy policy,
                 Scratch& scratch) {
  const auto slots = call.input<int64_t>(inputs.slots, {any});
  const int64_t rows = slots.shape[0];
  if (tokens > 0 && (rows == 0 || tokens % rows != 0)) {
    call.fail_input(inputs.slots, "has " + std::to_string(rows) + " rows, which " + std::to_string(tokens) +
                                      " tokens cannot be divided into");
  }
  const auto lengths = call.input<int64_t>(inputs.lengths, {any, any});
  if (layer >= lengths.shape[0]) {
    call.fail_input(inputs.lengths,
                    "has " + std::to_string(lengths.shape[0]) + " layers, expected more than " + std::to_string(layer));
  }
  const auto runs = call.input<bool>(inputs.runs, {tokens, 1});
  Places places;
  places.num_slots = lengths.shape[1];
  places.slots = slots.data;
  places.time = rows > 0 ? std::max<int64_t>(tokens / rows, 1) : 1;
  places.place = scratch.take<int64_t>(tokens);
  places.running = scratch.take<int32_t>(tokens);
  places.writing = scratch.take<int32_t>(tokens);
  places.newest = scratch.take<int64_t>(places.num_slots);
  const int64_t* held = lengths.data + layer * places.num_slots;
  for (int64_t s = 0; s < places.num_slots; ++s) places.newest[s] = held[s] - 1;
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t slot = slots.data[row];
    if (slot < 0 || slot >= places.num_slots) {
      call.fail_input(inputs.slots, "is " + std::to_string(slot) + " for row " + std::to_string(row) +
                                        ", expected 0 to " + std::to_string(places.num_slots - 1));
    }
    if (held[slot] < 0 || held[slot] > kMostPlaces) {
      call.fail_input(inputs.lengths, "is " + std::to_string(held[slot]) + " for layer " + std::to_string(layer) +
                                          " and slot " + std::to_string(slot) + ", expected 0 to " +
                                          std::to_string(kMostPlaces));
    }
  }
  for (int64_t token = 0; token < tokens; ++token) {
    const bool running = !runs || runs.data[token], writing = running || policy != Policy::none;
    if (running) places.running[places.num_running++] = static_cast<int32_t>(token);
    if (writing) places.writing[places.num_writing++] = static_cast<int32_t>(token);
    places.place[token] = writing ? ++places.newest[places.slot(token)] : -1;
  }
  return places;
}

}  // namespace adaptive
