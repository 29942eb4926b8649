#include "convolution.h"

namespace adaptive {

Convolution::Convolution(const Call& call, const ConvolutionPorts& ports, int64_t channels, int64_t width)
    : weight(nullptr), bias(nullptr), channels(channels), width(width) {
  const auto read = [&](size_t port, std::initializer_list<int64_t> shape) {
    const auto tensor = call.input<float>(port, shape);
    if (bool(tensor) == (width > 1)) return tensor.data;
    call.fail_input(port, std::string(tensor ? "is given" : "is missing") + ", but conv is " + std::to_string(width));
  };
  weight = read(ports.weight, {width, channels});
  if (ports.bias != kNoPort) bias = read(ports.bias, {channels});
}

}  // namespace adaptive
