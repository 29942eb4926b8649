// The kernels for one instruction set. The build compiles this file once for each, with its macro ADAPTIVE_ISA_<name>
// and its flags.
//
// Everything here has internal linkage, and nothing of the standard library is used: the linker merges equal inline
// functions of several files, and could put code for AVX-512 where every processor runs it.
#include "attend.h"
#include "convolve.h"
#include "elementwise.h"
#include "linear.h"
#include "recur.h"
#include "write_cell.h"

#define ADAPTIVE_TABLE(name) \
  extern const Kernels kernels_##name = {#name, quantize, multiply, matrix_row, rms_norm, layer_norm, softcap, rotate, dot, \
                                         add_scaled, activate, sigmoid, exponential, softmax, attend, write_cell, recur, \
                                         convolve}

namespace adaptive {
#if defined(ADAPTIVE_ISA_avx512vnni)
ADAPTIVE_TABLE(avx512vnni);
#elif defined(ADAPTIVE_ISA_avx2)
ADAPTIVE_TABLE(avx2);
#elif defined(ADAPTIVE_ISA_neondot)
ADAPTIVE_TABLE(neondot);
#elif defined(ADAPTIVE_ISA_neon)
ADAPTIVE_TABLE(neon);
#else
ADAPTIVE_TABLE(plain);
#endif
}  // namespace adaptive
