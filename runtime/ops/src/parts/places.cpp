#include "places.h"

namespace adaptive {

namespace {

constexpr int64_t kMostPlaces = int64_t{1} << 40;  // so that sums of places do not overflow

}  // namespace

Places places_of(const Call& call, const PlaceInputs& inputs, int64_t rows, int64_t layer, Policy policy,
                 Scratch& scratch) {
  const auto positions = call.input<int64_t>(inputs.positions, {any, any});
  Places places;
  places.batch = positions.shape[0], places.time = positions.shape[1];
  if (places.batch * places.time != rows) {
    call.fail_input(inputs.positions, "has " + std::to_string(places.batch * places.time) + " tokens, but x has " +
                                          std::to_string(rows) + " rows");
  }
  const auto lengths = call.input<int64_t>(inputs.lengths, {any, places.batch});
  if (layer >= lengths.shape[0]) {
    call.fail_input(inputs.lengths,
                    "has " + std::to_string(lengths.shape[0]) + " layers, expected more than " + std::to_string(layer));
  }
  const auto runs = call.input<bool>(inputs.runs, {rows, 1});
  places.place = scratch.take<int64_t>(rows);
  places.running = scratch.take<int32_t>(rows);
  places.writing = scratch.take<int32_t>(rows);
  places.newest = scratch.take<int64_t>(places.batch);
  for (int64_t b = 0; b < places.batch; ++b) {
    int64_t place = lengths.data[layer * places.batch + b];
    if (place < 0 || place > kMostPlaces) {
      call.fail_input(inputs.lengths, "is " + std::to_string(place) + " for layer " + std::to_string(layer) +
                                          " and sequence " + std::to_string(b) + ", expected 0 to " +
                                          std::to_string(kMostPlaces));
    }
    for (int64_t t = 0; t < places.time; ++t) {
      const int64_t row = b * places.time + t;
      const bool running = !runs || runs.data[row], writing = running || policy != Policy::none;
      if (running) places.running[places.num_running++] = static_cast<int32_t>(row);
      if (writing) places.writing[places.num_writing++] = static_cast<int32_t>(row);
      places.place[row] = writing ? place++ : -1;
    }
    places.newest[b] = place - 1;
  }
  return places;
}

}  // namespace adaptive
