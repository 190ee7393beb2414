// The passes compiled for one instruction set: avx512.
#include "simd_avx512.h"
#include "types.h"

using namespace mimic;

#include "common.inc"
#include "attention.inc"
#include "globals.inc"
#include "bound.inc"
#include "scan.inc"
#include "coded.inc"

namespace mimic {

const Kernels* avx512_kernels() {
    static constexpr Kernels kernels{"avx512", Simd::W, Simd::kTokenBlock, totals, bounds, estimates, table};
    return &kernels;
}

}  // namespace mimic
