// The passes compiled for one instruction set: portable.
#include "simd_portable.h"
#include "types.h"

using namespace mimic;

#include "common.inc"
#include "attention.inc"
#include "globals.inc"
#include "bound.inc"
#include "scan.inc"
#include "coded.inc"

namespace mimic {

const Kernels* portable_kernels() {
    static constexpr Kernels kernels{"portable", Simd::W, Simd::kTokenBlock, totals, bounds, estimates, table};
    return &kernels;
}

}  // namespace mimic
