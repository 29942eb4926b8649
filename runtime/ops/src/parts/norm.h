// The norm of a hidden state: LayerNorm where it has a bias, RMSNorm where it has a weight alone, else none.
//
// D width.
#pragma once

#include <algorithm>

#include "../kernels/kernels.h"
#include "../binding/operator.h"

namespace adaptive {

class Norm {
 public:
  // Read weight and bias, (D,) each.
  Norm(const Call& call, size_t weight, size_t bias, int64_t dim, float eps)
      : weight_(call.input<float>(weight, {dim}).data),
        bias_(call.input<float>(bias, {dim}).data),
        eps_(eps),
        dim_(dim) {
    if (bias_ != nullptr && weight_ == nullptr) call.fail_input(bias, "is given, but the weight of the norm is not");
  }

  explicit operator bool() const { return weight_ != nullptr; }

  // out = norm(x), or x without a norm, of D values; out may be x.
  void apply(const float* x, float* out) const {
    if (bias_ != nullptr) {
      kernels().layer_norm(x, weight_, bias_, eps_, out, dim_);
    } else if (weight_ != nullptr) {
      kernels().rms_norm(x, weight_, eps_, out, dim_);
    } else if (out != x) {
      std::copy_n(x, dim_, out);
    }
  }

 private:
  const float *weight_, *bias_;
  float eps_;
  int64_t dim_;
};

}  // namespace adaptive
