// The scalar functions of the gates of recurrent mixers.
#pragma once

#include <cmath>

#include "router.h"

namespace adaptive {

// log(1 + e^x), without overflow.
inline double softplus(double x) { return std::fmax(x, 0.0) + std::log1p(std::exp(-std::fabs(x))); }

// e^(-rate softplus(x)): how much of its state a head keeps.
inline float kept_share(float rate, float x) { return static_cast<float>(std::exp(-rate * softplus(x))); }

}  // namespace adaptive
