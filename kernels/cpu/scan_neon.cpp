// The passes compiled for one instruction set: neon.
#include "simd_neon.h"
#include "types.h"

using namespace mimic;

#include "common.inc"
#include "attention.inc"
#include "globals.inc"
#include "bound.inc"
#include "scan.inc"
#include "coded.inc"

namespace mimic {

const Kernels* neon_kernels() {
    static constexpr Kernels kernels{"neon", Simd::W, Simd::kTokenBlock, totals, bounds, estimates, table};
    return &kernels;
}

}  // namespace mimic
