// The choice of a table of kernels when the library runs.
#include <cstdlib>
#include <cstring>

#include "kernels.h"
#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace adaptive {

// Defined by the instances of table.cpp.
extern const Kernels kernels_plain;
#if defined(__x86_64__)
extern const Kernels kernels_avx512vnni, kernels_avx2;
#elif defined(__aarch64__)
extern const Kernels kernels_neondot, kernels_neon;
#endif

namespace {

#if defined(__aarch64__)
bool has_dotprod() {
#if defined(__linux__)
  return getauxval(AT_HWCAP) & 1 << 20;  // HWCAP_ASIMDDP, which old headers lack
#else
  return true;  // every arm64 processor of Apple
#endif
}
#endif

// Call `accept` with each table that this processor runs, the fastest first, until it returns true.
template <class Accept>
const Kernels* first_table(Accept accept) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni") && accept(kernels_avx512vnni))
    return &kernels_avx512vnni;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && accept(kernels_avx2)) return &kernels_avx2;
#elif defined(__aarch64__)
  if (has_dotprod() && accept(kernels_neondot)) return &kernels_neondot;
  if (accept(kernels_neon)) return &kernels_neon;
#endif
  return accept(kernels_plain) ? &kernels_plain : nullptr;
}

const Kernels& choose() {
  if (const char* name = std::getenv("ADAPTIVE_KERNEL"))
    if (const Kernels* named = kernels_named(name)) return *named;
  return *first_table([](const Kernels&) { return true; });
}

}  // namespace

const Kernels* kernels_named(const char* name) {
  return first_table([name](const Kernels& table) { return std::strcmp(table.name, name) == 0; });
}

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

}  // namespace adaptive

// The name of the chosen table, for `adaptive bench` and for who forced one.
extern "C" __attribute__((visibility("default"))) const char* adaptive_ops_kernel() { return adaptive::kernels().name; }
