// The entry points of the library; `adaptive_ops_kernel`, the name of the kernels, is in kernels/dispatch.cpp.

#include "operator.h"
#include "../parts/product.h"

namespace adaptive {

namespace {

Api table;

constexpr const char* kDomain = "adaptive_lm";

}  // namespace

const Api& api() { return table; }

std::vector<const OrtCustomOp*>& operators() {
  static std::vector<const OrtCustomOp*> list;
  return list;
}

}  // namespace adaptive

// Add the operators to a session. ONNX Runtime calls this by its name.
ADAPTIVE_EXPORT OrtStatus* ORT_CALL RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  using namespace adaptive;
  const OrtApi* entries = base->get_api(kApiVersion);
  if (entries == nullptr) {  // older than 1.24: creating an error is the first entry of every version
    const Api oldest(base->get_api(1));
    return oldest.create_status(ErrorCode::fail, "adaptive_ops needs ONNX Runtime 1.24 or later");
  }
  table = Api(entries);
  return guarded(kDomain, [&] {
    // one domain for all sessions: the ABI leaves it to us how long it lives
    static OrtCustomOpDomain* const domain = [] {
      OrtCustomOpDomain* created = nullptr;
      check(api().create_domain(kDomain, &created));
      for (const OrtCustomOp* op : operators()) check(api().add_operator(created, op));
      return created;
    }();
    check(api().add_domain(options, domain));
  });
}

// Return the version of layout and operators.
ADAPTIVE_EXPORT int adaptive_ops_version() { return adaptive::kVersion; }

// Return the bytes of packed weights that products have read since the library was loaded.
ADAPTIVE_EXPORT int64_t adaptive_ops_bytes_read() { return adaptive::bytes_read(); }
