#include "rotary.h"

namespace adaptive {

Rotary::Rotary(const Call& call, const RotaryPorts& ports, int64_t rotated, int64_t tokens) : rotated_(rotated) {
  const int64_t half = rotated > 0 ? rotated / 2 : any;  // without RoPE the tables are refused below
  cos_ = call.input<float>(ports.cos, {any, half});
  sin_ = call.input<float>(ports.sin, {any, half});
  const auto at = call.input<int64_t>(ports.positions, {any, any});
  if (at.size() != tokens) {
    call.fail_input(ports.positions,
                    "has " + std::to_string(at.size()) + " tokens, but x has " + std::to_string(tokens) + " rows");
  }
  positions_ = at.data;
  if (bool(cos_) != bool(sin_) || (cos_ && cos_.shape[0] != sin_.shape[0])) {
    call.fail_input(ports.sin, "does not match input cos");
  }
  if (bool(cos_) != (rotated > 0)) {
    call.fail_input(ports.cos,
                    std::string(cos_ ? "is given" : "is missing") + ", but rotated is " + std::to_string(rotated));
  }
}

void Rotary::check_holds(const Call& call, const RotaryPorts& ports, const int32_t* tokens, int64_t count) const {
  for (int64_t j = 0; cos_ && j < count; ++j) {
    const int64_t position = positions_[tokens[j]];
    if (position < 0 || position >= cos_.shape[0]) {
      call.fail_input(ports.positions, "is " + std::to_string(position) + " for row " + std::to_string(tokens[j]) +
                                           ", expected 0 to " + std::to_string(cos_.shape[0] - 1));
    }
  }
}

int64_t rotated_of(const Attributes& attributes, int64_t head_dim) {
  const int64_t rotated = attributes.integer("rotated", 0, head_dim);
  if (rotated % 2 == 0) return rotated;
  throw Failure(attributes.where() + ": rotated is " + std::to_string(rotated) + ", expected an even number");
}

}  // namespace adaptive
