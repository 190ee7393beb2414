// The passes compiled for one instruction set: avx2.
#include "simd_avx2.h"
#include "types.h"

using namespace mimic;

#include "common.inc"
#include "attention.inc"
#include "globals.inc"
#include "bound.inc"
#include "scan.inc"
#include "coded.inc"

namespace mimic {

const Kernels* avx2_kernels() {
    static constexpr Kernels kernels{"avx2", Simd::W, Simd::kTokenBlock, totals, bounds, estimates, table};
    return &kernels;
}

}  // namespace mimic
